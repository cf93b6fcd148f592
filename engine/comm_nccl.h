/* The part of NCCL that comm_nccl.c calls, as a table: names and numbers of nccl.h, which need not be
 * there. A communicator and a stream are pointers, enumerations are int. */
#ifndef GATETAPE_COMM_NCCL_H
#define GATETAPE_COMM_NCCL_H
#include <stddef.h>

enum { NCCL_SUCCESS = 0, NCCL_IN_PROGRESS = 7, NCCL_UINT8 = 1, NCCL_VERSION_2_14 = 21400 };

typedef struct {
    char bytes[128];
} NcclId;

/* As of 2.14; a later library takes its own defaults for what it has behind that. */
typedef struct {
    size_t size;
    unsigned magic, version;
    int blocking;
} NcclConfig;

typedef struct {
    int (*get_unique_id)(NcclId *id);
    int (*init_rank_config)(void **comm, int size, NcclId id, int rank, NcclConfig *config);
    int (*get_async_error)(void *comm, int *state);
    const char *(*get_error_string)(int result);
    const char *(*get_last_error)(void *comm);
    int (*group_start)(void);
    int (*group_end)(void);
    int (*send)(const void *from, size_t n, int type, int peer, void *comm, void *stream);
    int (*receive)(void *to, size_t n, int type, int peer, void *comm, void *stream);
    int (*finalize)(void *comm);
    int (*destroy)(void *comm);
} Nccl;

#endif

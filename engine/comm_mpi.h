/* What the MPI plug-in gives. It is built with the site's mpicc and opened at run time, so that the program
 * starts where there is no MPI; mpi.h is seen by comm_mpi.c alone. The plug-in knows nothing of the
 * program. */
#ifndef GATETAPE_COMM_MPI_H
#define GATETAPE_COMM_MPI_H
#include <stdbool.h>
#include <stddef.h>

/* One message. Those of a call are started together, so that no order of them can block. */
typedef struct {
    void *data;
    size_t n_bytes;
    int peer; /* rank */
    bool is_send;
} Transfer;

enum { COMM_MPI_VERSION = 1, COMM_MPI_TAGS = 32768 /* MPI promises that many */, COMM_WHY = 400 };

/* Called from the main thread alone. False: why [COMM_WHY] says what failed. */
typedef struct {
    int version; /* COMM_MPI_VERSION */
    bool (*start)(int *rank, int *size, char *why);
    bool (*broadcast)(void *data, size_t n_bytes, char *why); /* from rank 0; before there is a watchdog */
    /* Returns when all are done. A message of another length than expected is an error. */
    bool (*transfer)(const Transfer *transfers, int n, int tag, char *why);
    bool (*stop)(char *why);
} CommMpi;

/* The plug-in's one symbol, "gatetape_mpi". */
typedef const CommMpi *gatetape_mpi_fn(void);

#endif

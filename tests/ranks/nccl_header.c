/* Built where nccl.h is: what engine/comm_nccl.h says of it is so. */
#include "engine/comm_nccl.h"
#include <nccl.h>

_Static_assert(NCCL_SUCCESS == (int)ncclSuccess && NCCL_IN_PROGRESS == (int)ncclInProgress, "results");
_Static_assert(NCCL_UINT8 == (int)ncclUint8, "types");
_Static_assert(sizeof(NcclId) == sizeof(ncclUniqueId), "id");
_Static_assert(NCCL_VERSION_2_14 == NCCL_VERSION(2, 14, 0), "version");
_Static_assert(offsetof(NcclConfig, magic) == offsetof(ncclConfig_t, magic) &&
                   offsetof(NcclConfig, version) == offsetof(ncclConfig_t, version) &&
                   offsetof(NcclConfig, blocking) == offsetof(ncclConfig_t, blocking),
               "config");
_Static_assert(sizeof(ncclResult_t) == sizeof(int) && sizeof(ncclDataType_t) == sizeof(int), "enumerations");

/* Each function has the arguments of the table's: a drifted one does not build. */
#define SAME(function, type) _Static_assert(_Generic(&function, type : 1, default : 0), #function)
SAME(ncclGetUniqueId, ncclResult_t (*)(ncclUniqueId *));
SAME(ncclCommInitRankConfig, ncclResult_t (*)(ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *));
SAME(ncclCommGetAsyncError, ncclResult_t (*)(ncclComm_t, ncclResult_t *));
SAME(ncclGetErrorString, const char *(*)(ncclResult_t));
SAME(ncclGetLastError, const char *(*)(ncclComm_t));
SAME(ncclSend, ncclResult_t (*)(const void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t));
SAME(ncclRecv, ncclResult_t (*)(void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t));
SAME(ncclCommFinalize, ncclResult_t (*)(ncclComm_t));
SAME(ncclCommDestroy, ncclResult_t (*)(ncclComm_t));

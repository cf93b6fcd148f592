/* The device cuda, emulated or a GPU: each rank of a machine has its own where there are several. */
#include "travel_device.h"

const Device *travel_device(Queue **queue) {
    const Device *device = cuda_device(NULL);
    *queue = device ? device->queue_new() : NULL;
    return *queue ? device : NULL;
}

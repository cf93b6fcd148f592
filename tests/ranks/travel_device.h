/* The device whose memory travels in a test of collectives: the one that is linked. */
#ifndef GATETAPE_TEST_TRAVEL_DEVICE_H
#define GATETAPE_TEST_TRAVEL_DEVICE_H
#include "kernels/device.h"

/* Device and a queue of it. In standin_device.c its memory is the host's and its queue a stream of the
 * stand-in for NCCL: work on it is done later, by another thread, so that what does not wait is seen. In
 * cuda_travel.c it is the device cuda, emulated or a GPU. NULL: there is none. */
const Device *travel_device(Queue **queue);

#endif

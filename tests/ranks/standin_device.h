/* A device whose memory is the host's and whose queue is a stream of the stand-in: work on it is done
 * later, by another thread, so that what does not wait is seen. */
#ifndef GATETAPE_TEST_STANDIN_DEVICE_H
#define GATETAPE_TEST_STANDIN_DEVICE_H
#include "kernels/device.h"

/* The device, its only queue in *queue. */
const Device *standin_device(Queue **queue);

#endif

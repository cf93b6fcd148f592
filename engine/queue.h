/* Waiting for a device. */
#ifndef GATETAPE_QUEUE_H
#define GATETAPE_QUEUE_H
#include "../kernels/device.h"
#include "error.h"

/* Until all that was asked of the queue is done. False and an Error (ERROR_UNAVAILABLE) that names the first
 * op which failed. */
bool queue_wait(const Device *device, Queue *queue, Error *error);

#endif

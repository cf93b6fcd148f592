/* What a queue remembers, as an Error. */
#include "queue.h"

bool queue_wait(const Device *device, Queue *queue, Error *error) {
    if (device->sync(queue)) return true;
    return error_set(error, ERROR_UNAVAILABLE, "%s: %s", queue->failed_op ? queue->failed_op : "device",
                     queue->failure);
}

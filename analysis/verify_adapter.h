/* verify-adapter: what an adapter updates in a model, cell by cell, and by how much; optionally the merged
 * checkpoint, compared with the model under the adapter. */
#ifndef GATETAPE_VERIFY_ADAPTER_H
#define GATETAPE_VERIFY_ADAPTER_H
#include "../engine/adapter_file.h"
#include "../kernels/device.h"
#include <stdio.h>

typedef struct {
    const char *adapter, *model; /* folders */
    const char *merged;          /* where the merged checkpoint goes; NULL: nowhere */
    const char *logits;          /* file for logits of some ids with the adapter and without; NULL: none */
    AdapterReading reading;
    const Device *device; /* for the comparison of the merged checkpoint */
} VerifyRequest;

/* False and an Error for an adapter that does not fit, whose orientation nothing tells, or that changes
 * nothing. */
bool verify_adapter(const VerifyRequest *request, FILE *to, Error *error);

#endif

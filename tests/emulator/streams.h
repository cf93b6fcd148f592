/* What was put on the emulated device's streams, in order, for tests of overlap; and how much memory it
 * lent. */
#ifndef GATETAPE_EMULATOR_STREAMS_H
#define GATETAPE_EMULATOR_STREAMS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { STREAM_KERNEL, STREAM_COPY_IN, STREAM_OTHER, STREAM_MARK, STREAM_WAIT } StreamWhat;

typedef struct {
    StreamWhat what;
    const void *stream;
    size_t n_bytes; /* of a copy from the host */
    const void *to; /* of a copy */
    int64_t mark;   /* serial number of the mark set, or waited for */
} StreamNote;

/* Forgets all notes, and takes notes from now on or not. */
void emulator_note_streams(bool on);
/* Valid until the next call of the runtime. */
const StreamNote *emulator_stream_notes(size_t *n);

/* Work of any stream is done at any time at which what it waits for is done, by a seed; 0: as late as
 * allowed. */
void emulator_streams_any_order(unsigned seed);

/* For a library that works beside the streams, on a thread of its own. idle: does what can be done without
 * waiting for such a library; whether that was all. await: what is put later waits until ready(context). */
__attribute__((visibility("default"))) bool emulator_stream_idle(void *stream);
__attribute__((visibility("default"))) void emulator_stream_await(void *stream, bool (*ready)(void *context),
                                                                  void *context);

/* The most device memory that was lent at once since the last call. */
size_t emulator_peak_bytes(void);

#ifdef __cplusplus
}
#endif
#endif

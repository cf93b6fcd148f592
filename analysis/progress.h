/* What a running job tells people, on stderr, and programs, in events.jsonl.
 *
 * On a terminal a bar with rate and time left is redrawn a few times a second; elsewhere (a log file, CI,
 * TERM=dumb, NO_COLOR set) a plain line appears every few seconds. Text from outside goes through the
 * terminal writer. An event is one JSON object a line with flat keys ("step/name"), appended in one write;
 * results never depend on either. */
#ifndef GATETAPE_PROGRESS_H
#define GATETAPE_PROGRESS_H
#include "../engine/error.h"
#include "../engine/text.h"
#include <stdint.h>
#include <stdio.h>

typedef struct {
    FILE *to;           /* NULL: show nothing */
    bool bar;           /* a bar, else lines */
    const char *events; /* path of events.jsonl, borrowed; NULL: none */
    /* the phase that runs; set by progress_begin */
    const char *phase, *unit;
    int64_t n_total, n_begun, n_done, n_tokens;
    double begun, shown, logged; /* clock_seconds() */
    size_t width;                /* of the line on the terminal now */
} Progress;

/* Shows on stderr, as a bar where that suits; events may be NULL. The path must outlive the progress. */
Progress progress_new(const char *events);
/* True when fd is a terminal and the environment does not ask for plain text (CI, NO_COLOR, TERM=dumb). */
bool progress_wants_bar(int fd);

/* A phase of n_total units ("prompts"), of which n_begun were done in an earlier run; the texts are borrowed
 * until the end. Writes the event "progress/begin". Errors: events.jsonl cannot be written. */
bool progress_begin(Progress *progress, const char *phase, int64_t n_total, int64_t n_begun, const char *unit,
                    Error *error);
/* So far n_done of n_total (earlier runs included) and n_tokens tokens (this run; 0: rate in units). Cheap:
 * shows and logs only when it is time. */
bool progress_update(Progress *progress, int64_t n_done, int64_t n_tokens, Error *error);
/* Ends the phase with a line that stays: how many, how long, how fast. */
bool progress_end(Progress *progress, Error *error);
/* One line for people, above the bar. The text may contain anything: it is escaped. */
void progress_note(Progress *progress, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same, marked as a warning. */
void progress_warn(Progress *progress, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- events: `Event e = event_new("step/end"); event_put_string(&e, "step/name", name); event_append(...)`
 * ---- */
typedef struct {
    Text text;
} Event;

Event event_new(const char *name); /* with the keys "time" (UTC) and "event" */
void event_put_string(Event *event, const char *key, const char *value);
void event_put_integer(Event *event, const char *key, int64_t value);
void event_put_number(Event *event, const char *key, double value);
void event_put_bool(Event *event, const char *key, bool value);
/* Appends the event to the progress's events.jsonl (nothing when it has none) and frees it, also on error. */
bool event_append(Event *event, const Progress *progress, Error *error);

#endif

/* Progress on stderr and events.jsonl. A redraw overwrites the line with itself and blanks for what was
 * longer before, so that nothing but carriage return is asked of the terminal. */
#include "progress.h"
#include "../engine/clock.h"
#include "../engine/io.h"
#include "../engine/watchdog.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static const double bar_seconds = 0.1, line_seconds = 5, event_seconds = 10;
enum { MIN_CELLS = 6, MAX_CELLS = 24, DEFAULT_COLUMNS = 80 };

static bool environment_set(const char *name) {
    const char *value = getenv(name);
    return value && *value;
}

bool progress_wants_bar(int fd) {
    const char *term = getenv("TERM");
    return isatty(fd) && !environment_set("CI") && !environment_set("NO_COLOR") && term &&
           strcmp(term, "dumb") != 0;
}

Progress progress_new(const char *events) {
    return (Progress){.to = stderr, .bar = progress_wants_bar(STDERR_FILENO), .events = events};
}

/* ---- events ---- */
Event event_new(const char *name) {
    Event event = {0};
    char now[32];
    clock_utc(now);
    text_put_string(&event.text, "{\"time\": ");
    text_put_json(&event.text, now, strlen(now));
    event_put_string(&event, "event", name);
    return event;
}

static void put_key(Event *event, const char *key) {
    text_put_string(&event->text, ", ");
    text_put_json(&event->text, key, strlen(key));
    text_put_string(&event->text, ": ");
}

void event_put_string(Event *event, const char *key, const char *value) {
    put_key(event, key);
    text_put_json(&event->text, value, strlen(value));
}

void event_put_integer(Event *event, const char *key, int64_t value) {
    put_key(event, key);
    text_format(&event->text, "%lld", (long long)value);
}

void event_put_number(Event *event, const char *key, double value) {
    put_key(event, key);
    text_put_f64(&event->text, value);
}

void event_put_bool(Event *event, const char *key, bool value) {
    put_key(event, key);
    text_put_string(&event->text, value ? "true" : "false");
}

bool event_append(Event *event, const Progress *progress, Error *error) {
    text_put_string(&event->text, "}\n");
    bool ok = !event->text.failed || error_out_of_memory(error, "event", event->text.length);
    ok = ok &&
         (!progress->events || io_append(progress->events, event->text.bytes, event->text.length, error));
    text_free(&event->text);
    return ok;
}

/* ---- the line ---- */
static void put_duration(Text *text, double seconds) {
    long long s = (long long)(seconds + 0.5);
    if (s < 60)
        text_format(text, "%lld s", s);
    else if (s < 3600)
        text_format(text, "%lld min %02lld s", s / 60, s % 60);
    else
        text_format(text, "%lld h %02lld min", s / 3600, s / 60 % 60);
}

/* Three digits are as much as a rate that changes is worth. */
static void put_rate(Text *text, double rate, const char *unit) {
    if (rate >= 100)
        text_format(text, "%.0f %s/s", rate, unit);
    else
        text_format(text, "%.3g %s/s", rate, unit);
}

static void put_counts(Text *text, const Progress *p, double seconds) {
    int64_t n_now = p->n_done - p->n_begun;
    text_format(text, "%lld/%lld %s", (long long)p->n_done, (long long)p->n_total, p->unit);
    if (seconds <= 0 || n_now <= 0) return;
    text_put_string(text, ", ");
    if (p->n_tokens)
        put_rate(text, (double)p->n_tokens / seconds, "tokens");
    else
        put_rate(text, (double)n_now / seconds, p->unit);
}

static void put_time_left(Text *text, const Progress *p, double seconds) {
    int64_t n_now = p->n_done - p->n_begun;
    if (seconds <= 0 || n_now <= 0 || p->n_done >= p->n_total) return;
    text_put_string(text, ", ");
    put_duration(text, seconds * (double)(p->n_total - p->n_done) / (double)n_now);
    text_put_string(text, " left");
}

static size_t terminal_columns(FILE *to) {
    struct winsize size;
    if (ioctl(fileno(to), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    return DEFAULT_COLUMNS;
}

/* What the words leave of the line is the bar's. */
static void draw_bar(Progress *p, double now) {
    Text text = {0}, counts = {0};
    double share = p->n_total > 0 ? (double)p->n_done / (double)p->n_total : 1;
    put_counts(&counts, p, now - p->begun);
    put_time_left(&counts, p, now - p->begun);
    text_put_terminal(&text, p->phase, strlen(p->phase));
    size_t columns = terminal_columns(p->to) - 1, words = text.length + counts.length + sizeof " []  100%  ";
    int cells = words + MIN_CELLS > columns ? MIN_CELLS : (int)(columns - words);
    if (cells > MAX_CELLS) cells = MAX_CELLS;
    int filled = (int)(share * cells);
    text_put_string(&text, " [");
    for (int i = 0; i < cells; i++) text_put_string(&text, i < filled ? "#" : ".");
    text_format(&text, "] %3d%%  ", (int)(share * 100));
    text_put(&text, counts.bytes, counts.length);
    size_t shown = text.length < columns ? text.length : columns;
    if (!text.failed && !counts.failed) {
        fprintf(p->to, "\r%.*s", (int)shown, text.bytes);
        for (size_t i = shown; i < p->width; i++) fputc(' ', p->to);
        fflush(p->to);
        p->width = shown;
    }
    text_free(&counts);
    text_free(&text);
}

static void clear_bar(Progress *p) {
    if (!p->bar || !p->width) return;
    fprintf(p->to, "\r%*s\r", (int)p->width, "");
    p->width = 0;
}

static void draw_line(Progress *p, double now) {
    Text text = {0};
    put_counts(&text, p, now - p->begun);
    put_time_left(&text, p, now - p->begun);
    if (!text.failed) progress_note(p, "%s: %s", p->phase, text.bytes);
    text_free(&text);
}

static bool log_progress(Progress *p, const char *name, double now, Error *error) {
    p->logged = now;
    if (!p->events) return true;
    Event event = event_new(name);
    event_put_string(&event, "progress/phase", p->phase);
    event_put_string(&event, "progress/unit", p->unit);
    event_put_integer(&event, "progress/done", p->n_done);
    event_put_integer(&event, "progress/total", p->n_total);
    event_put_integer(&event, "progress/tokens", p->n_tokens);
    event_put_number(&event, "progress/seconds", now - p->begun);
    return event_append(&event, p, error);
}

bool progress_begin(Progress *p, const char *phase, int64_t n_total, int64_t n_begun, const char *unit,
                    Error *error) {
    double now = clock_seconds();
    p->phase = phase;
    p->unit = unit;
    p->n_total = n_total;
    p->n_begun = p->n_done = n_begun;
    p->n_tokens = 0;
    p->begun = p->shown = now;
    if (p->to && p->bar) draw_bar(p, now);
    return log_progress(p, "progress/begin", now, error);
}

bool progress_update(Progress *p, int64_t n_done, int64_t n_tokens, Error *error) {
    double now = clock_seconds();
    watchdog_tick();
    p->n_done = n_done;
    p->n_tokens = n_tokens;
    if (p->to && now - p->shown >= (p->bar ? bar_seconds : line_seconds)) {
        p->shown = now;
        if (p->bar)
            draw_bar(p, now);
        else
            draw_line(p, now);
    }
    return now - p->logged < event_seconds || log_progress(p, "progress", now, error);
}

bool progress_end(Progress *p, Error *error) {
    double now = clock_seconds();
    Text text = {0};
    put_counts(&text, p, now - p->begun);
    text_put_string(&text, ", ");
    put_duration(&text, now - p->begun);
    if (!text.failed) progress_note(p, "%s: %s", p->phase, text.bytes);
    text_free(&text);
    return log_progress(p, "progress/end", now, error);
}

static void put_message(Progress *p, const char *mark, const char *format, va_list args) {
    if (!p->to) return;
    char message[2000];
    vsnprintf(message, sizeof message, format, args);
    Text text = {0};
    text_put_string(&text, mark);
    for (const char *part = message;; part++) { /* a line feed in a name must not begin a line of ours */
        size_t n = strcspn(part, "\n");
        text_put_terminal(&text, part, n);
        part += n;
        if (!*part) break;
        text_put_string(&text, "\\n");
    }
    clear_bar(p);
    if (!text.failed) fprintf(p->to, "%s\n", text.bytes);
    fflush(p->to);
    text_free(&text);
}

void progress_note(Progress *p, const char *format, ...) {
    va_list args;
    va_start(args, format);
    put_message(p, "", format, args);
    va_end(args);
}

void progress_warn(Progress *p, const char *format, ...) {
    va_list args;
    va_start(args, format);
    put_message(p, "warning: ", format, args);
    va_end(args);
}

/* Writing JSON by what stands last in the text. */
#include "json_write.h"
#include <math.h>
#include <string.h>

/* The last byte that is not white. */
static char last_byte(const Text *to) {
    size_t n = to->length;
    while (n && (to->bytes[n - 1] == ' ' || to->bytes[n - 1] == '\n')) n--;
    return n ? to->bytes[n - 1] : '\0';
}

void write_key(Text *to, const char *key) {
    char last = last_byte(to);
    if (last != '{' && last != '[' && last != ',' && last != '\0') text_put_string(to, ", ");
    if (!key) return;
    text_put_json(to, key, strlen(key));
    text_put_string(to, ": ");
}

void write_begin(Text *to, const char *key, char bracket) {
    write_key(to, key);
    text_put(to, &bracket, 1);
}

void write_end(Text *to, char bracket) { text_put(to, &bracket, 1); }

void write_line(Text *to) {
    char last = last_byte(to);
    text_put_string(to, last == '{' || last == '[' ? "\n" : ",\n");
}

void write_integer(Text *to, const char *key, int64_t value) {
    write_key(to, key);
    text_format(to, "%lld", (long long)value);
}

void write_number(Text *to, const char *key, double value) {
    write_key(to, key);
    text_put_f64(to, value);
}

void write_string(Text *to, const char *key, const char *value) {
    write_key(to, key);
    text_put_json(to, value, strlen(value));
}

static void suffixed(char name[100], const char *key, const char *suffix) {
    snprintf(name, 100, "%.80s%s", key, suffix);
}

void write_bool(Text *to, const char *key, bool value) {
    write_key(to, key);
    text_put_string(to, value ? "true" : "false");
}

void write_lines(Text *to, const char *key, const char *lines) {
    write_begin(to, key, '[');
    while (lines && *lines) {
        const size_t n = strcspn(lines, "\n");
        write_key(to, NULL);
        text_put_json(to, lines, n);
        lines += n + (lines[n] == '\n');
    }
    write_end(to, ']');
}

void write_null(Text *to, const char *key, const char *reason) {
    char name[100];
    write_key(to, key);
    text_put_string(to, "null");
    suffixed(name, key, "_reason");
    write_string(to, name, reason);
}

void write_number_or(Text *to, const char *key, double value, const char *reason) {
    if (isfinite(value))
        write_number(to, key, value);
    else
        write_null(to, key, reason);
}

void write_interval(Text *to, const char *key, double low, double high) {
    char name[100];
    suffixed(name, key, "_low");
    write_number(to, name, low);
    suffixed(name, key, "_high");
    write_number(to, name, high);
}

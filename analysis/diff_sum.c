/* Differences gathered by path, and their lines. */
#include "diff_parts.h"
#include "../engine/alloc.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

void differences_free(Differences *all) {
    for (int64_t i = 0; i < all->n; i++) mem_free(all->list[i].path);
    mem_free(all->list);
    *all = (Differences){0};
}

/* Of a path, made where there is none; NULL: out of memory. The one asked for last is most often next. */
static Difference *find(Differences *all, const char *path) {
    if (all->last < all->n && !strcmp(all->list[all->last].path, path)) return &all->list[all->last];
    for (int64_t i = 0; i < all->n; i++)
        if (!strcmp(all->list[i].path, path)) return &all->list[all->last = i];
    if (all->n == all->capacity) {
        int64_t more = all->capacity ? 2 * all->capacity : 32;
        Difference *list = mem_resize(all->list, (size_t)more, sizeof *list);
        if (!list) return all->failed = true, NULL;
        all->list = list;
        all->capacity = more;
    }
    Difference *d = &all->list[all->n];
    *d = (Difference){.path = mem_copy_text(path, strlen(path)), .largest = -1, .relative = -1};
    if (!d->path) return all->failed = true, NULL;
    all->last = all->n++;
    return d;
}

static void keep(char *to, size_t capacity, const char *text) {
    size_t n = strlen(text);
    if (n < capacity) {
        memcpy(to, text, n + 1);
        return;
    }
    memcpy(to, text, capacity - 4);
    memcpy(to + capacity - 4, "...", 4);
}

static void note_numbers(Difference *d, const char *place, double a, double b) {
    double size = fmax(fabs(a), fabs(b)), apart = fabs(a - b);
    if (isnan(apart)) apart = INFINITY; /* a number and none: further apart than any two */
    d->n_differ++;
    if (apart > d->largest) {
        d->largest = apart;
        keep(d->place, sizeof d->place, place);
        snprintf(d->a, sizeof d->a, "%.9g", a);
        snprintf(d->b, sizeof d->b, "%.9g", b);
    }
    if (isfinite(apart) && isfinite(size) && apart / size > d->relative) {
        d->relative = apart / size;
        keep(d->relative_place, sizeof d->relative_place, place);
    }
}

static void note_texts(Difference *d, const char *place, const char *a, const char *b) {
    if (!d->first[0]) {
        keep(d->first, sizeof d->first, place[0] ? place : " ");
        keep(d->first_a, sizeof d->first_a, a ? a : "nothing");
        keep(d->first_b, sizeof d->first_b, b ? b : "nothing");
    }
    if (a && b)
        d->n_differ++;
    else
        ++*(a ? &d->n_only_a : &d->n_only_b);
}

static bool is_number(const char *text, double *value) {
    char *end;
    *value = strtod(text, &end);
    return end != text && !*end && !strpbrk(text, "xX ");
}

void differences_put_texts(Differences *all, const char *path, const char *place, const char *a,
                           const char *b) {
    Difference *d = find(all, path);
    if (!d) return;
    d->n += a && b;
    if (!a || !b || strcmp(a, b) != 0) note_texts(d, place, a, b);
}

void differences_put(Differences *all, const char *path, const char *place, const char *a, const char *b) {
    double x, y;
    if (a && b && is_number(a, &x) && is_number(b, &y)) {
        if (strcmp(a, b) != 0)
            differences_put_numbers(all, path, place, x, y);
        else
            differences_count(all, path, 1);
    } else {
        differences_put_texts(all, path, place, a, b);
    }
}

void differences_put_numbers(Differences *all, const char *path, const char *place, double a, double b) {
    Difference *d = find(all, path);
    if (!d) return;
    d->n++;
    if (isnan(a) && isnan(b)) return;
    if (a != b) note_numbers(d, place, a, b);
}

void differences_count(Differences *all, const char *path, int64_t n) {
    Difference *d = find(all, path);
    if (d) d->n += n;
}

static bool differs(const Difference *d) { return d->n_differ || d->n_only_a || d->n_only_b; }

bool differences_any(const Differences *all) {
    for (int64_t i = 0; i < all->n; i++)
        if (differs(&all->list[i])) return true;
    return false;
}

static void put(Text *to, const char *text) { text_put_terminal(to, text, strlen(text)); }

static void print_one(const Difference *d, Text *to) {
    text_put_string(to, "  ");
    put(to, d->path);
    text_format(to, ": %lld of %lld differ", (long long)d->n_differ, (long long)d->n);
    if (d->n_only_a) text_format(to, ", %lld only in A", (long long)d->n_only_a);
    if (d->n_only_b) text_format(to, ", %lld only in B", (long long)d->n_only_b);
    if (d->largest >= 0) {
        text_format(to, "; largest difference %.3g (", d->largest);
        put(to, d->place);
        text_format(to, "%s%s against %s)", d->place[0] ? ": " : "", d->a, d->b);
    }
    if (d->relative >= 0) text_format(to, "; largest relative %.3g", d->relative);
    if (d->relative >= 0 && strcmp(d->place, d->relative_place) != 0) {
        text_put_string(to, " (");
        put(to, d->relative_place);
        text_put_string(to, ")");
    }
    if (d->first[0]) {
        text_put_string(to, "; first ");
        if (d->first[0] != ' ') put(to, d->first);
        if (d->first[0] != ' ') text_put_string(to, ": ");
        put(to, d->first_a);
        text_put_string(to, " against ");
        put(to, d->first_b);
    }
    text_put_string(to, "\n");
}

void differences_print(const Differences *all, Text *to) {
    for (int64_t i = 0; i < all->n; i++)
        if (differs(&all->list[i])) print_one(&all->list[i], to);
}

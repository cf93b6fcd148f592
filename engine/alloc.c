/* The allocation seam. Every request counts, so that a test can make any one of them fail and see a clean
 * error. */
#include "alloc.h"
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static _Atomic int64_t n_made, countdown_left;
static atomic_bool fails_for_ever;

/* True when this request is one that a test wants to fail. */
static bool denied(void) {
    atomic_fetch_add(&n_made, 1);
    int64_t left = atomic_load(&countdown_left);
    if (left <= 0) return false;
    if (left == 1) {
        if (!atomic_load(&fails_for_ever)) atomic_store(&countdown_left, 0);
        return true;
    }
    atomic_fetch_sub(&countdown_left, 1);
    return false;
}

int64_t mem_fail_after(int64_t countdown, bool for_ever) {
    atomic_store(&countdown_left, countdown);
    atomic_store(&fails_for_ever, for_ever);
    return atomic_exchange(&n_made, 0);
}

bool size_multiply(size_t a, size_t b, size_t *product) { return !__builtin_mul_overflow(a, b, product); }

bool size_add(size_t a, size_t b, size_t *sum) { return !__builtin_add_overflow(a, b, sum); }

void *mem_alloc(size_t n_bytes) { return denied() ? NULL : malloc(n_bytes ? n_bytes : 1); }

void *mem_zeroed(size_t n_items, size_t item_bytes) {
    size_t n_bytes;
    if (!size_multiply(n_items, item_bytes, &n_bytes) || denied()) return NULL;
    return calloc(n_bytes ? n_bytes : 1, 1);
}

void *mem_resize(void *block, size_t n_items, size_t item_bytes) {
    size_t n_bytes;
    if (!size_multiply(n_items, item_bytes, &n_bytes) || denied()) return NULL;
    return realloc(block, n_bytes ? n_bytes : 1);
}

void mem_free(void *block) { free(block); }

char *mem_copy_text(const char *text, size_t length) {
    char *copy = mem_alloc(length + 1);
    if (!copy) return NULL;
    memcpy(copy, text, length);
    copy[length] = '\0';
    return copy;
}

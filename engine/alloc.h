/* The one seam through which the engine and the analysis take host memory, so that a test can make the
 * k-th allocation fail. Tensors on a device come from the device's own alloc. NULL means out of memory:
 * the caller makes it an Error. */
#ifndef GATETAPE_ALLOC_H
#define GATETAPE_ALLOC_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *mem_alloc(size_t n_bytes); /* contents undefined; a valid pointer also for 0 bytes */
void *mem_zeroed(size_t n_items, size_t item_bytes);              /* NULL also when the product overflows */
void *mem_resize(void *block, size_t n_items, size_t item_bytes); /* block stays valid when NULL comes back */
void mem_free(void *block);
char *mem_copy_text(const char *text, size_t length); /* NUL-terminated copy */

/* Sizes from files: false when the result does not fit. */
bool size_multiply(size_t a, size_t b, size_t *product);
bool size_add(size_t a, size_t b, size_t *sum);

/* Tests: the allocation number `countdown` from now fails (1: the next one), and when `for_ever` all later
 * ones too; 0 switches it off. Returns how many allocations were made since the last call. */
int64_t mem_fail_after(int64_t countdown, bool for_ever);

#endif

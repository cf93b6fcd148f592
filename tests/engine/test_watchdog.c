/* The record of this process's collectives, of which a device may end many at once. */
#include "../../engine/watchdog_parts.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

static int64_t words[WATCHDOG_WORDS];

static int64_t enter(int64_t n) {
    uint32_t signature;
    int64_t number = 0;
    for (int64_t i = 0; i < n; i++) number = watchdog_enter("all_gather", 8, &signature);
    return number;
}

/* As a stream does it: in order, and more of them than there are words before anyone looks. */
static void end_until(int64_t first, int64_t last) {
    for (int64_t n = first; n <= last; n++) __atomic_store_n(&words[n % WATCHDOG_WORDS], n, __ATOMIC_RELEASE);
}

static void more_may_be_outstanding_than_there_are_words(void **state) {
    (void)state;
    watchdog_use_words(words);
    const int64_t n = 2 * WATCHDOG_WORDS + 7, last = enter(n);
    assert_int_equal(last, n);
    assert_int_equal(beat_own(BEAT_ALIVE).left, 0);
    end_until(1, 3);
    assert_int_equal(beat_own(BEAT_ALIVE).left, 3);
    end_until(4, n - 1);
    assert_int_equal(beat_own(BEAT_ALIVE).left, n - 1);
    end_until(n, n);
    const Beat beat = beat_own(BEAT_ALIVE);
    assert_int_equal(beat.left, n);
    assert_int_equal(beat.entered, n);
    assert_int_equal(enter(1), n + 1);
    assert_int_equal(beat_own(BEAT_ALIVE).left, n);
    watchdog_leave(n + 1);
    assert_int_equal(beat_own(BEAT_ALIVE).left, n + 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(more_may_be_outstanding_than_there_are_words)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

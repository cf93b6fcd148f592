/* Every number of the report is found in statistics.json, or in the job and the manifest. The page's text is
 * walked (tables, prose, captions; not drawings), and each number looked up among those of the files in the
 * forms in which the page writes them. Cells of tables must be numbers of the files; elsewhere a number may
 * stand in one of their texts. Numbers planted into the page show that the walk sees them.
 *
 *   test_report_numbers          a made-up run
 *   test_report_numbers FOLDER   that run folder, its report.html as it is
 */
#include "fake_run.h"
#include "analysis/report.h"
#include <ctype.h>
#include <math.h>

enum { MOST_BYTES = 1 << 28 };

static const char *const groups[] = {"o'ther 3", "plain"};
static char folder[512];
static Progress silent;

/* ---- what is known ---- */
typedef struct {
    char (*words)[32];
    size_t n, capacity;
} Known;

static Known numbers, texts; /* of values; of strings and keys */

static void learn(Known *known, const char *word, size_t length) {
    if (length >= sizeof *known->words) return;
    if (known->n == known->capacity) {
        known->capacity = known->capacity ? 2 * known->capacity : 4096;
        known->words = mem_resize(known->words, known->capacity, sizeof *known->words);
        assert_non_null(known->words);
    }
    memset(known->words[known->n], 0, sizeof *known->words);
    memcpy(known->words[known->n++], word, length);
}

static int compare(const void *a, const void *b) { return strcmp(a, b); }

static bool knows(const Known *known, const char *word) {
    return bsearch(word, known->words, known->n, sizeof *known->words, compare) != NULL;
}

/* ---- numbers in a text ---- */
static bool is_word(char c) { return isalnum((unsigned char)c) || c == '_' || (unsigned char)c >= 0x80; }

/* The next number that is not a part of a name ("k80", "top2", "test-7", "figures/x.1.svg", "SHA-256"):
 * begins in [at, end), and its length in *length. NULL: none. */
static const char *next_number(const char *begin, const char *at, const char *end, size_t *length) {
    for (; at < end; at++) {
        if (!isdigit((unsigned char)*at)) continue;
        const char *from = at, *p = at;
        while (p < end && isdigit((unsigned char)*p)) p++;
        if (p + 1 < end && *p == '.' && isdigit((unsigned char)p[1]))
            for (p++; p < end && isdigit((unsigned char)*p);) p++;
        if (p + 2 < end && (*p == 'e' || *p == 'E') && (p[1] == '-' || p[1] == '+') &&
            isdigit((unsigned char)p[2]))
            for (p += 2; p < end && isdigit((unsigned char)*p);) p++;
        if (from > begin && from[-1] == '-' && (from - 1 == begin || !is_word(from[-2]))) from--;
        const char before = from > begin ? from[-1] : ' ', second = from - 1 > begin ? from[-2] : ' ';
        const bool joined = before == '.' || before == '-' || before == '/';
        const bool in_name = is_word(before) || (joined && (is_word(second) || second == '>')) ||
                             (p < end && is_word(*p)) ||
                             (p + 1 < end && (*p == '-' || *p == '.') && is_word(p[1]));
        if (!in_name) {
            *length = (size_t)(p - from);
            return from;
        }
        while (p < end && (is_word(*p) || ((*p == '.' || *p == '-') && p + 1 < end && is_word(p[1])))) p++;
        at = p - 1;
    }
    return NULL;
}

static void learn_text(const char *text) {
    size_t n;
    const char *end = text + strlen(text);
    for (const char *at = text; (at = next_number(text, at, end, &n)); at += n) learn(&texts, at, n);
}

static void learn_number(double value) {
    char word[40];
    int n = value == floor(value) && fabs(value) < 1e9
                ? snprintf(word, sizeof word, "%.0f", value == 0 ? 0 : value)
                : snprintf(word, sizeof word, "%.4g", value);
    learn(&numbers, word, (size_t)n);
    n = snprintf(word, sizeof word, "%.15g", value);
    learn(&numbers, word, (size_t)n);
    n = snprintf(word, sizeof word, "%.17g", value); /* the job, as it stands */
    learn(&numbers, word, (size_t)n);
}

static void learn_json(Json at) {
    Error none = {0};
    const char *text;
    double value;
    if (at.key) learn_text(at.key);
    if (json_type(at) == JSON_NUMBER && json_number(at, &value, &none)) learn_number(value);
    if (json_type(at) == JSON_STRING && json_string(at, &text, &none)) learn_text(text);
    for (Json one = {0}; json_next(&at, &one);) learn_json(one);
}

static void learn_file(const char *run, const char *name) {
    char *path = io_join(run, name);
    Error error = {0};
    JsonDocument *document = json_read(path, MOST_BYTES, &error);
    if (!document) fail_msg("%s", error.text);
    learn_json(json_root(document));
    json_free(document);
    mem_free(path);
}

static void learn_run(const char *run) {
    numbers.n = texts.n = 0;
    learn_file(run, "statistics.json");
    learn_file(run, "job.json");
    learn_file(run, "manifest.json");
    qsort(numbers.words, numbers.n, sizeof *numbers.words, compare);
    qsort(texts.words, texts.n, sizeof *texts.words, compare);
}

/* ---- the page ---- */
/* The text behind markup at p, or p itself: whole elements whose text is not for readers. */
static const char *skip_element(const char *p) {
    static const char *const names[] = {"svg", "style", "script", "title"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char close[20];
        const size_t n = strlen(names[i]);
        if (strncmp(p + 1, names[i], n) != 0 || (p[1 + n] != '>' && p[1 + n] != ' ' && p[1 + n] != '\n'))
            continue;
        snprintf(close, sizeof close, "</%s>", names[i]);
        const char *end = strstr(p, close);
        return end ? end + strlen(close) : p;
    }
    return p;
}

/* Appends the text up to the next tag, entities as what they stand for (none stands for a digit). */
static const char *take_text(const char *p, Text *to) {
    while (*p && *p != '<') {
        const char *end = *p == '&' ? strchr(p, ';') : NULL;
        if (end && end - p < 10) {
            text_put_string(to, !strncmp(p, "&lt;", 4) ? "<" : "'");
            p = end + 1;
        } else {
            text_put(to, p++, 1);
        }
    }
    return p;
}

/* Numbers that are not known; said where `loud`. */
static int64_t count_unknown(const char *page, int64_t *n_seen, bool loud) {
    int64_t n_unknown = 0;
    bool cell = false;
    Text text = {0};
    *n_seen = 0;
    for (const char *p = page; *p;) {
        const char *behind = *p == '<' ? skip_element(p) : p;
        if (behind == p && *p == '<') {
            if (!strncmp(p, "<td", 3)) cell = p[3] == '>';
            if (!strncmp(p, "</td", 4)) cell = false;
            behind = strchr(p, '>') + 1;
        }
        if (behind != p) {
            p = behind;
            continue;
        }
        text_clear(&text);
        p = take_text(p, &text);
        size_t n;
        const char *begin = text.bytes, *end = begin + text.length;
        for (const char *at = begin; (at = next_number(begin, at, end, &n)); at += n) {
            char word[64];
            snprintf(word, sizeof word, "%.*s", (int)(n < 60 ? n : 60), at);
            if (n == 10 && at[4] == '.') continue; /* a paper's arXiv number; ours have four digits in all */
            ++*n_seen;
            if (knows(&numbers, word) || (!cell && knows(&texts, word))) continue;
            if (loud) print_message("not in statistics.json: %s in \"%.80s\"\n", word, begin);
            n_unknown++;
        }
    }
    text_free(&text);
    return n_unknown;
}

static char *read_page(const char *run) {
    char *path = io_join(run, "report.html");
    size_t n;
    Error error = {0};
    char *page = io_read_all(path, MOST_BYTES, &n, &error);
    if (!page) fail_msg("%s", error.text);
    mem_free(path);
    return page;
}

static char *make_page(void) {
    Error error = {0};
    if (!report_write(folder, &silent, &error)) fail_msg("%s", error.text);
    learn_run(folder);
    return read_page(folder);
}

static void test_every_number_is_known(void **state) {
    (void)state;
    int64_t n_seen;
    char *page = make_page();
    assert_int_equal(count_unknown(page, &n_seen, true), 0);
    assert_true(n_seen > 500);
    mem_free(page);
}

/* `from` replaced by `to`, once, behind the first `behind`. */
static char *replaced(const char *page, const char *behind, const char *from, const char *to) {
    const char *at = strstr(page, behind);
    if (at) at = strstr(at, from);
    if (!at) fail_msg("the page has no %s behind %s", from, behind);
    Text text = {0};
    text_put(&text, page, (size_t)(at - page));
    text_put_string(&text, to);
    text_put_string(&text, at + strlen(from));
    assert_false(text.failed);
    return text.bytes;
}

static void test_a_planted_number_is_seen(void **state) {
    static const char *const plants[][3] = {
        {"<body>", "<p class=\"soft\">", "<p class=\"soft\">0.31415 "}, /* prose */
        {"id=\"overview\"", "<td>33</td>", "<td>34.5</td>"},            /* a cell */
        {"id=\"overview\"", "<small>[", "<small>[-"},                   /* a sign */
        {"Side effects", "<td>1.235</td>", "<td>1.234</td>"},           /* the last digit */
        {"Agreement of labels", "<td>41</td>", "<td>o'ther 47</td>"},   /* in a cell, of a text */
        {"<h2>activation", "<figcaption>", "<figcaption>987 "},         /* a caption */
        {"Replies side by side", "Of ", "Of 19.5 "},                    /* a count in words */
        {"<caption>Contrasts", "<td>37</td>", "<td>38.5</td>"},         /* of a contrast */
        {"cells by rate", "<small>[", "<small>[-9"},                    /* an interval of a cell */
        {"<caption>Trained cells", "<td>0.05</td>", "<td>0.06</td>"},   /* of a training */
        {"step of the least", "<dd>2", "<dd>31"},                       /* a fact */
        {"id=\"terms\"", "<dt>", "<dt>1e-07 "},                         /* an exponent */
    };
    (void)state;
    int64_t n_seen;
    char *page = make_page();
    for (size_t i = 0; i < sizeof plants / sizeof *plants; i++) {
        if (!strcmp(plants[i][1], "<figcaption>") && !have_gnuplot()) continue;
        char *planted = replaced(page, plants[i][0], plants[i][1], plants[i][2]);
        if (count_unknown(planted, &n_seen, false) < 1) fail_msg("not seen: %s", plants[i][2]);
        mem_free(planted);
    }
    mem_free(page);
}

/* A number of a step's file goes the whole way: into statistics.json and into the page. */
static void test_a_changed_number_goes_through(void **state) {
    (void)state;
    Error error = {0};
    size_t n;
    int64_t n_seen;
    char *path = io_join(folder, "silence/side_effects.csv"),
         *before = io_read_all(path, MOST_BYTES, &n, &error);
    assert_non_null(before);
    char *after = replaced(before, "perplexity_ratio", "1.23456", "7.65432");
    assert_true(io_write_all(path, after, strlen(after), &error));
    char *page = make_page();
    assert_contains(page, "<td>7.654</td>");
    assert_int_equal(count_unknown(page, &n_seen, true), 0);
    assert_true(io_write_all(path, before, n, &error));
    char *again = make_page();
    assert_true(count_unknown(page, &n_seen, false) > 0); /* the old page beside the new file */
    mem_free(again);
    mem_free(page);
    mem_free(after);
    mem_free(before);
    mem_free(path);
}

static int setup(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "%s", scratch_path("run"));
    fake_run(folder, groups, 2);
    return 0;
}

static int teardown(void **state) {
    mem_free(numbers.words);
    mem_free(texts.words);
    return scratch_remove(state);
}

static void test_folder(void **state) {
    int64_t n_seen;
    char *page = read_page(*state);
    learn_run(*state);
    const int64_t n = count_unknown(page, &n_seen, true);
    mem_free(page);
    mem_free(numbers.words);
    mem_free(texts.words);
    print_message("%lld numbers, %lld of them not in statistics.json\n", (long long)n_seen, (long long)n);
    assert_true(n_seen > 100);
    assert_int_equal(n, 0);
}

int main(int n_arguments, char **arguments) {
    if (n_arguments > 1) {
        const struct CMUnitTest one[] = {cmocka_unit_test_prestate(test_folder, arguments[1])};
        return cmocka_run_group_tests(one, NULL, NULL);
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_number_is_known),
                                       cmocka_unit_test(test_a_planted_number_is_seen),
                                       cmocka_unit_test(test_a_changed_number_goes_through)};
    return cmocka_run_group_tests(tests, setup, teardown);
}

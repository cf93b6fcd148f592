/* The file from its parts, in order: what it is of, each group, the first two groups, classes of all, the
 * other pairs, other steps, warnings. */
#include "statistics.h"
#include "../engine/alloc.h"
#include "classify.h"
#include "results.h"
#include "statistics_parts.h"
#include <math.h>
#include <omp.h>
#include <string.h>

const char *statistics_contradiction(const StepOptions *options) {
    if (options->class_rule == CLASS_RATIO && options->thresholds.n && options->thresholds.values[0] < 1)
        return "thresholds: expected at least 1 where class_rule is ratio: got less";
    return NULL;
}

/* ---- work ---- */
int64_t work_top(const Work *work, int64_t i) { return (int64_t)work->options->top_sets.values[i]; }

int64_t work_count_top(const Work *work) {
    int64_t n = 0;
    while (n < work->options->top_sets.n && work_top(work, n) <= work->cells->n_cells) n++;
    return n;
}

const char *work_no_top(const Work *work, int64_t i, char reason[100]) {
    if (work_top(work, i) <= work->cells->n_cells) return NULL;
    snprintf(reason, 100, "k is larger than the number of cells, %lld", (long long)work->cells->n_cells);
    return reason;
}

int64_t work_stable_size(const Work *work, int64_t l) {
    int64_t n = work->cells->begin[l + 1] - work->cells->begin[l];
    return (int64_t)floor(work->options->stable_share * (double)n + 1e-9);
}

const char *work_no_stable(const Work *work) {
    for (int64_t l = 0; l < work->cells->n_layers; l++)
        if (work_stable_size(work, l) > 0) return NULL;
    return "stable_share of a layer's experts is less than one";
}

Pool work_pool(const Work *work, const StatGroup *a, const StatGroup *b) {
    return (Pool){.cells = work->cells, .groups = {a, b}, .n_groups = b ? 2 : 1};
}

static void work_free(Work *work) {
    for (int64_t i = 0; work->rooms && i < work->n_rooms; i++) {
        Room *r = &work->rooms[i];
        void *blocks[] = {r->ranked, r->order[0], r->order[1], r->classes, r->taken, r->kept, r->mark};
        for (size_t k = 0; k < sizeof blocks / sizeof *blocks; k++) mem_free(blocks[k]);
    }
    for (int64_t g = 0; work->groups && g < work->in->n_groups; g++) {
        GroupWork *w = &work->groups[g];
        void *blocks[] = {w->order, w->cumulative, w->samples, w->halves[0], w->halves[1], w->stable};
        for (size_t k = 0; k < sizeof blocks / sizeof *blocks; k++) mem_free(blocks[k]);
    }
    mem_free(work->rooms);
    mem_free(work->groups);
}

static bool make_rooms(Work *work) {
    size_t C = (size_t)work->cells->n_cells + 1, L = (size_t)work->cells->n_layers + 1;
    work->rooms = mem_zeroed((size_t)work->n_rooms, sizeof *work->rooms);
    bool ok = work->rooms != NULL;
    for (int64_t i = 0; ok && i < work->n_rooms; i++) {
        Room *r = &work->rooms[i];
        *r = (Room){.ranked = mem_zeroed(2 * C, sizeof *r->ranked),
                    .order = {mem_zeroed(C, sizeof(int64_t)), mem_zeroed(C, sizeof(int64_t))},
                    .classes = mem_zeroed(C, sizeof *r->classes),
                    .taken = mem_zeroed(L, sizeof *r->taken),
                    .kept = mem_zeroed(C, (MOST_NUMBERS + 1) * sizeof *r->kept),
                    .mark = mem_zeroed(C, sizeof *r->mark)};
        ok = r->ranked && r->order[0] && r->order[1] && r->classes && r->taken && r->kept && r->mark;
    }
    return ok;
}

static const char *why_not(const Work *work, const StatGroup *group, int64_t n, const char *zero) {
    if (!group->n_prompts) return work->in->no_prompts;
    if (group->n_prompts == 1) return "the group has one prompt";
    return n < 1 ? zero : NULL;
}

static bool make_group(const Work *work, const StatGroup *group, GroupWork *w) {
    int64_t C = work->cells->n_cells;
    size_t n = (size_t)C + 1;
    *w = (GroupWork){.group = group,
                     .order = mem_zeroed(n, sizeof *w->order),
                     .cumulative = mem_zeroed(n, sizeof *w->cumulative),
                     .stable = mem_zeroed(n, sizeof *w->stable),
                     .no_samples = why_not(work, group, work->options->bootstraps, "bootstraps: 0"),
                     .no_halves = why_not(work, group, work->options->splits, "splits: 0"),
                     .no_ranking = stats_all_equal(group->scores, C)
                                       ? "all scores of a group are equal: they give no ranking"
                                       : NULL};
    if (!w->order || !w->cumulative || !w->stable) return false;
    ranking_sort(group->scores, C, work->rooms->ranked, w->order);
    scores_accumulate(group->scores, w->order, C, w->cumulative);
    return true;
}

static bool work_make(const StatisticsInput *in, Work *work, Error *error) {
    *work = (Work){.in = in, .options = in->options, .cells = in->cells, .n_rooms = omp_get_max_threads()};
    work->groups = mem_zeroed((size_t)in->n_groups + 1, sizeof *work->groups);
    bool ok = work->groups && make_rooms(work);
    for (int64_t g = 0; ok && g < in->n_groups; g++) ok = make_group(work, &in->groups[g], &work->groups[g]);
    return ok || error_out_of_memory(error, "statistics", (size_t)in->cells->n_cells * 200);
}

/* ---- small parts ---- */
void put_cell(const Cells *cells, int64_t cell, Text *to) {
    write_integer(to, "layer", cells->layer[cells->row[cell]]);
    write_integer(to, "expert", cells->expert[cell]);
}

bool put_cell_set(const Cells *cells, const char *key, const bool *chosen, Text *to, Error *error) {
    int64_t *list = mem_zeroed((size_t)cells->n_cells + 1, sizeof *list), n = 0;
    if (!list) return error_out_of_memory(error, "a set of cells", (size_t)cells->n_cells * 8);
    for (int64_t c = 0; c < cells->n_cells; c++)
        if (chosen[c]) list[n++] = c;
    write_begin(to, key, '{');
    write_integer(to, "n", n);
    write_number_or(to, "mean_depth", stats_mean_depth(cells, list, n),
                    n ? "depth needs two decoder layers" : "no cell is in the set");
    write_begin(to, "cells", '[');
    for (int64_t i = 0; i < n; i++) {
        write_key(to, NULL);
        text_format(to, "[%lld, %lld]", (long long)cells->layer[cells->row[list[i]]],
                    (long long)cells->expert[list[i]]);
    }
    write_end(to, ']');
    write_end(to, '}');
    mem_free(list);
    return true;
}

void take_overlap(const Work *work, const int64_t *a, const int64_t *b, uint8_t *mark, double *values) {
    int64_t n_top = work_count_top(work);
    for (int64_t i = 0; i < n_top; i++) {
        int64_t k = work_top(work, i), shared = classify_overlap(a, b, k, mark);
        values[2 * i] = (double)shared;
        values[2 * i + 1] = classify_jaccard(shared, k);
    }
}

void put_overlap(const Work *work, const double *values, const double *low, const double *high,
                 const char *reason, Text *to) {
    static const char *const keys[2] = {"shared", "jaccard"};
    write_begin(to, "overlap", '[');
    for (int64_t i = 0; i < work->options->top_sets.n; i++) {
        char room[100];
        const char *why = work_no_top(work, i, room);
        if (!why) why = reason;
        write_line(to);
        write_begin(to, NULL, '{');
        write_integer(to, "k", work_top(work, i));
        for (int64_t v = 0; v < 2; v++) {
            write_number_or(to, keys[v], why ? NAN : values[2 * i + v], why ? why : "not a number");
            if (low) write_interval(to, keys[v], why ? NAN : low[2 * i + v], why ? NAN : high[2 * i + v]);
        }
        write_end(to, '}');
    }
    write_end(to, ']');
}

void statistics_put_near_ties(const Work *work, int64_t g, Text *to) {
    const StatGroup *group = work->groups[g].group;
    if (!group->near_ties) {
        write_null(to, "near_ties", work->in->no_margins);
        return;
    }
    int64_t n = 0, of = 0;
    for (int64_t l = 0; l < work->cells->n_layers; l++) n += group->near_ties[l], of += group->counted[l];
    write_begin(to, "near_ties", '{');
    write_number(to, "below", work->options->near_tie);
    write_integer(to, "n", n);
    write_number_or(to, "share", of ? (double)n / (double)of : NAN, "no token was counted");
    write_begin(to, "layers", '[');
    for (int64_t l = 0; l < work->cells->n_layers; l++) {
        write_line(to);
        write_begin(to, NULL, '{');
        write_integer(to, "layer", work->cells->layer[l]);
        write_integer(to, "n", group->near_ties[l]);
        write_number_or(to, "share",
                        group->counted[l] ? (double)group->near_ties[l] / (double)group->counted[l] : NAN,
                        "no token was counted");
        write_number_or(to, "least_margin", group->margin[l],
                        "every expert is chosen, or no token was counted");
        write_end(to, '}');
    }
    write_end(to, ']');
    write_end(to, '}');
}

/* ---- head ---- */
static void put_head(const Work *work, Text *to) {
    const StatisticsInput *in = work->in;
    write_integer(to, "schema_version", 1);
    write_line(to);
    write_string(to, "signal", in->signal);
    write_string(to, "score", in->score);
    write_line(to);
    write_begin(to, "switches", '{');
    options_write_statistics(in->options->kind, in->options, to);
    write_end(to, '}');
    write_line(to);
    write_integer(to, "seed", (int64_t)in->seed);
    write_integer(to, "n_cells", in->cells->n_cells);
    write_integer(to, "n_layers", in->cells->n_layers);
    write_integer(to, "n_decoder_layers", in->cells->n_decoder_layers);
    write_line(to);
    write_begin(to, "group_order", '[');
    for (int64_t g = 0; g < in->n_groups; g++) write_string(to, NULL, in->groups[g].name);
    write_end(to, ']');
}

static bool put_groups(Work *work, Text *to, Error *error) {
    bool ok = true;
    write_line(to);
    write_begin(to, "groups", '{');
    for (int64_t g = 0; ok && g < work->in->n_groups; g++) {
        write_line(to);
        write_begin(to, work->in->groups[g].name, '{');
        ok = statistics_put_group(work, g, to, error);
        write_end(to, '}');
    }
    write_end(to, '}');
    return ok;
}

/* ---- pairs ---- */
static void put_no_pair(Text *to) {
    static const char *const keys[] = {"differences", "overlap",          "selectivity",
                                       "permutation", "stable_selection", "split_half"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        write_line(to);
        write_null(to, keys[i], "there is one group");
    }
}

static bool put_other_pairs(Work *work, Text *to, Error *error) {
    bool ok = true;
    write_line(to);
    write_begin(to, "other_pairs", '[');
    for (int64_t a = 0; ok && a < work->in->n_groups; a++)
        for (int64_t b = a + 1; ok && b < work->in->n_groups; b++) {
            if (b == 1) continue;
            write_line(to);
            write_begin(to, NULL, '{');
            write_begin(to, "groups", '[');
            write_string(to, NULL, work->in->groups[a].name);
            write_string(to, NULL, work->in->groups[b].name);
            write_end(to, ']');
            ok = statistics_put_pair(work, a, b, to, error);
            write_end(to, '}');
        }
    write_end(to, ']');
    return ok;
}

/* The groups of the same name of another step, and its ranking against ours. */
static void put_other_step(Work *work, const OtherRanking *other, double *values, Text *to) {
    for (int64_t g = 0; g < work->in->n_groups; g++)
        for (int64_t h = 0; h < other->n_groups; h++) {
            const GroupWork *own = &work->groups[g];
            if (strcmp(own->group->name, other->groups[h]) != 0) continue;
            write_line(to);
            write_begin(to, NULL, '{');
            write_string(to, "step", other->step);
            write_string(to, "group", own->group->name);
            take_overlap(work, own->order, other->orders + h * work->cells->n_cells, work->rooms->mark,
                         values);
            put_overlap(work, values, NULL, NULL, own->no_ranking, to);
            write_end(to, '}');
        }
}

static void put_other_steps(Work *work, Text *to) {
    double values[2 * MOST_NUMBERS];
    write_line(to);
    if (work->in->no_others) {
        write_null(to, "between_steps", work->in->no_others);
        return;
    }
    write_begin(to, "between_steps", '[');
    for (int64_t i = 0; i < work->in->n_others; i++) put_other_step(work, &work->in->others[i], values, to);
    write_end(to, ']');
}

/* ---- warnings ---- */
static void put_warning(Text *to, const char *text, size_t length) {
    write_line(to);
    text_put_json(to, text, length);
}

static void warn_of_groups(const StatisticsInput *in, Text *to) {
    char text[400];
    for (int64_t g = 0; g < in->n_groups; g++) {
        const StatGroup *a = &in->groups[g], *b = &in->groups[0];
        double x = (double)a->n_tokens / (double)(a->n_prompts ? a->n_prompts : 1),
               y = (double)b->n_tokens / (double)(b->n_prompts ? b->n_prompts : 1);
        int64_t n = stats_count_unused(a->scores, in->cells->n_cells);
        if (n) {
            snprintf(text, sizeof text, "group %.100s: %lld of %lld cells have score 0", a->name,
                     (long long)n, (long long)in->cells->n_cells);
            put_warning(to, text, strlen(text));
        }
        if (stats_all_equal(a->scores, in->cells->n_cells)) {
            snprintf(text, sizeof text, "group %.100s: all scores are equal", a->name);
            put_warning(to, text, strlen(text));
        }
        if (a->n_prompts != b->n_prompts) {
            snprintf(text, sizeof text, "groups %.100s and %.100s have %lld and %lld prompts", b->name,
                     a->name, (long long)b->n_prompts, (long long)a->n_prompts);
            put_warning(to, text, strlen(text));
        }
        if (x > 1.5 * y || y > 1.5 * x) {
            snprintf(text, sizeof text, "groups %.100s and %.100s have %.4g and %.4g tokens%s", b->name,
                     a->name, y, x, a->n_prompts ? " a prompt" : "");
            put_warning(to, text, strlen(text));
        }
    }
}

static void put_warnings(const StatisticsInput *in, Text *to) {
    write_line(to);
    write_begin(to, "warnings", '[');
    for (const char *line = in->warnings; line && *line;) {
        size_t n = strcspn(line, "\n");
        put_warning(to, line, n);
        line += n + (line[n] == '\n');
    }
    warn_of_groups(in, to);
    write_end(to, ']');
}

/* ---- the file ---- */
bool statistics_put(const StatisticsInput *in, Text *to, Error *error) {
    Work work;
    bool ok = work_make(in, &work, error);
    if (ok) {
        write_begin(to, NULL, '{');
        put_head(&work, to);
        ok = put_groups(&work, to, error);
        if (ok && in->n_groups > 1)
            ok = statistics_put_pair(&work, 0, 1, to, error);
        else
            put_no_pair(to);
        ok = ok && statistics_put_classes(&work, to, error) && put_other_pairs(&work, to, error);
        put_other_steps(&work, to);
        put_warnings(in, to);
        write_end(to, '}');
        text_put_string(to, "\n");
    }
    work_free(&work);
    return ok && (!to->failed || error_out_of_memory(error, "statistics.json", to->length));
}

bool statistics_write(const StatisticsInput *in, const char *folder, Error *error) {
    Text text = {0};
    if (statistics_put(in, &text, error)) return results_write_text(folder, "statistics.json", &text, error);
    text_free(&text);
    return false;
}

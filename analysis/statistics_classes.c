/* Classes of cells at several thresholds: how many cells prefer each group, with intervals, depth, and by
 * layer. */
#include "statistics_parts.h"
#include "../engine/alloc.h"
#include "classify.h"
#include <math.h>
#include <omp.h>
#include <string.h>

typedef struct {
    Work *work;
    int64_t n_classes;     /* groups, and shared */
    const double **scores; /* [n_groups] */
    int64_t *classes;      /* [C] at one threshold */
    double *facts;         /* [bootstraps,n_classes] at one threshold */
    double *low, *high;    /* [n_classes] */
    int64_t *chosen;       /* [C] */
    double **errors;       /* [n_groups] of [C], where the rule is z */
    Classifier rule;
} Classes;

static void classes_free(Classes *k) {
    for (int64_t g = 0; k->errors && g + 1 < k->n_classes; g++) mem_free(k->errors[g]);
    mem_free(k->errors);
    mem_free(k->scores);
    mem_free(k->classes);
    mem_free(k->facts);
    mem_free(k->low);
    mem_free(k->high);
    mem_free(k->chosen);
}

static bool classes_make(Work *work, Classes *k, Error *error) {
    size_t C = (size_t)work->cells->n_cells + 1, G = (size_t)work->in->n_groups + 1,
           B = (size_t)work->options->bootstraps + 1;
    *k = (Classes){.work = work,
                   .n_classes = (int64_t)G,
                   .scores = mem_zeroed(G * (size_t)work->n_rooms, sizeof *k->scores),
                   .classes = mem_zeroed(C, sizeof *k->classes),
                   .facts = mem_zeroed(B * G, sizeof *k->facts),
                   .low = mem_zeroed(G, sizeof *k->low),
                   .high = mem_zeroed(G, sizeof *k->high),
                   .chosen = mem_zeroed(C, sizeof *k->chosen),
                   .errors = mem_zeroed(G, sizeof *k->errors)};
    bool ok = k->scores && k->classes && k->facts && k->low && k->high && k->chosen && k->errors;
    for (int64_t g = 0; ok && work->options->class_rule == CLASS_Z && g < work->in->n_groups; g++) {
        k->errors[g] = mem_zeroed(C, sizeof **k->errors);
        if ((ok = k->errors[g] != NULL)) stat_group_errors(work->cells, work->groups[g].group, k->errors[g]);
    }
    k->rule =
        (Classifier){.rule = work->options->class_rule, .squared_errors = (const double *const *)k->errors};
    return ok || error_out_of_memory(error, "classes of cells", (C + B * G) * 8);
}

static const char *no_samples(const Work *work) {
    for (int64_t g = 0; g < work->in->n_groups; g++)
        if (work->groups[g].no_samples) return work->groups[g].no_samples;
    return NULL;
}

static const char *class_name(const Work *work, int64_t k) {
    return k < work->in->n_groups ? work->groups[k].group->name : "shared";
}

static bool resample(Classes *k, Error *error) {
    const Work *work = k->work;
    int64_t n = work->options->bootstraps, C = work->cells->n_cells, G = work->in->n_groups;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < n; b++) {
        const double **scores = k->scores + omp_get_thread_num() * G;
        int64_t *classes = work->rooms[omp_get_thread_num()].classes;
        double *counts = k->facts + b * k->n_classes;
        for (int64_t g = 0; g < G; g++) scores[g] = work->groups[g].samples + b * C;
        classify_cells(&k->rule, scores, G, C, classes);
        memset(counts, 0, (size_t)k->n_classes * sizeof *counts);
        for (int64_t c = 0; c < C; c++) counts[classes[c]]++;
    }
    return resample_intervals((SampleTable){k->facts, NULL, n, k->n_classes}, work->options->confidence,
                              k->low, k->high, error);
}

/* Cells [first, end) of each class, as members. */
static void put_counts(const Classes *k, const char *key, int64_t first, int64_t end, Text *to) {
    write_begin(to, key, '{');
    for (int64_t i = 0; i < k->n_classes; i++) {
        int64_t n = 0;
        for (int64_t c = first; c < end; c++) n += k->classes[c] == i;
        write_integer(to, class_name(k->work, i), n);
    }
    write_end(to, '}');
}

static void put_reals(const Classes *k, const char *key, const double *values, Text *to) {
    write_begin(to, key, '{');
    for (int64_t i = 0; i < k->n_classes; i++) write_number(to, class_name(k->work, i), values[i]);
    write_end(to, '}');
}

static void put_depth(Classes *k, Text *to) {
    const Cells *cells = k->work->cells;
    write_begin(to, "mean_depth", '{');
    for (int64_t i = 0; i < k->n_classes; i++) {
        int64_t n = 0;
        for (int64_t c = 0; c < cells->n_cells; c++)
            if (k->classes[c] == i) k->chosen[n++] = c;
        write_number_or(to, class_name(k->work, i), stats_mean_depth(cells, k->chosen, n),
                        n ? "depth needs two decoder layers" : "no cell is in the class");
    }
    write_end(to, '}');
}

static bool put_class(Classes *k, const char *reason, Text *to, Error *error) {
    const Cells *cells = k->work->cells;
    for (int64_t g = 0; g < k->work->in->n_groups; g++) k->scores[g] = k->work->groups[g].group->scores;
    classify_cells(&k->rule, k->scores, k->work->in->n_groups, cells->n_cells, k->classes);
    write_line(to);
    write_begin(to, NULL, '{');
    write_number(to, "tau", k->rule.tau);
    put_counts(k, "counts", 0, cells->n_cells, to);
    if (reason) {
        write_null(to, "counts_low", reason);
        write_null(to, "counts_high", reason);
    } else {
        if (!resample(k, error)) return false;
        put_reals(k, "counts_low", k->low, to);
        put_reals(k, "counts_high", k->high, to);
    }
    put_depth(k, to);
    write_begin(to, "layers", '[');
    for (int64_t l = 0; l < cells->n_layers; l++) {
        write_begin(to, NULL, '{');
        write_integer(to, "layer", cells->layer[l]);
        put_counts(k, "counts", cells->begin[l], cells->begin[l + 1], to);
        write_end(to, '}');
    }
    write_end(to, ']');
    write_end(to, '}');
    return true;
}

bool statistics_put_classes(Work *work, Text *to, Error *error) {
    const char *reason = work->in->n_groups < 2 ? "there is one group" : NULL;
    for (int64_t g = 0; g < work->in->n_groups && !reason; g++)
        if (work->options->class_rule == CLASS_Z && work->groups[g].group->n_prompts < 2)
            reason = "class_rule z needs two prompts of each group";
    write_line(to);
    if (reason) {
        write_null(to, "classes", reason);
        return true;
    }
    Classes k;
    bool ok = classes_make(work, &k, error);
    write_begin(to, "classes", '[');
    for (int64_t i = 0; ok && i < work->options->thresholds.n; i++) {
        k.rule.tau = work->options->thresholds.values[i];
        ok = put_class(&k, no_samples(work), to, error);
    }
    write_end(to, ']');
    classes_free(&k);
    return ok;
}

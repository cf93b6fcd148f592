/* The list of conditions, in a fixed order: baseline, then each selected set, then the controls of each. */
#include "conditions.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../kernels/check.h"
#include "adapted.h"
#include <stdio.h>
#include <string.h>

const char *const condition_kind_names[N_CONDITION_KINDS] = {"baseline", "selected", "random",
                                                             "layer_matched", "traffic_matched"};

typedef struct {
    const Job *job;
    const StepOptions *step;
    const ModelConfig *config;
    const char *run_folder;
    int64_t n_cells;
    Conditions *to;
    Error *error;
} Maker;

static int64_t count_selected(const StepOptions *step) {
    return step->from.n * (step->top.n + step->traffic.n) + (step->cells.n > 0) + (step->selection[0] != 0);
}

int64_t conditions_count(const StepOptions *step) {
    int64_t n = count_selected(step), n_rules = step->from.n > 0 ? step->top.n + step->traffic.n : 0;
    n_rules += (step->cells.n > 0) + (step->selection[0] != 0);
    return 1 + n * (1 + step->layer_matched_sets + step->traffic_matched_sets) + n_rules * step->random_sets +
           step->adapters.n;
}

void conditions_free(Conditions *c) {
    for (int64_t i = 0; i < c->n; i++) mem_free(c->list[i].cells);
    mem_free(c->list);
    mem_free(c->super);
    mem_free(c->share);
    mem_free(c->largest_output);
    edit_table_free(&c->table);
    *c = (Conditions){0};
}

static Condition *add(Maker *m, Condition like) {
    check(m->to->n < m->to->capacity, "%lld conditions", (long long)m->to->n);
    Condition *c = &m->to->list[m->to->n++];
    *c = like;
    c->share = -1;
    c->set = -1;
    c->cells = mem_zeroed((size_t)m->n_cells, sizeof *c->cells);
    if (c->cells) return c;
    error_out_of_memory(m->error, "conditions", (size_t)m->n_cells * sizeof *c->cells);
    return NULL;
}

/* Takes n cells, and their share where shares are known. */
static void set_cells(const Maker *m, Condition *c, const int64_t *cells, int64_t n) {
    memcpy(c->cells, cells, (size_t)n * sizeof *cells);
    c->n_cells = n;
    if (m->to->share) c->share = selection_share(m->to->share, cells, n);
}

/* ---- what is read ---- */
static bool read_scores(const Maker *m, const char *step, const char *group, const char *column, double *to) {
    char *folder = io_join(m->run_folder, step), *path = folder ? io_join(folder, "scores.csv") : NULL;
    bool ok = (path || error_out_of_memory(m->error, "a path", strlen(step))) &&
              selection_read_column(path, m->config, group, column, to, m->error);
    mem_free(path);
    mem_free(folder);
    return ok;
}

static double *new_values(const Maker *m) {
    double *values = mem_zeroed((size_t)m->n_cells, sizeof *values);
    if (!values) error_out_of_memory(m->error, "scores", (size_t)m->n_cells * sizeof *values);
    return values;
}

static bool read_counts(Maker *m) {
    Conditions *to = m->to;
    if (!m->step->counts[0]) return true;
    double *selected = new_values(m);
    to->share = new_values(m);
    to->largest_output = new_values(m);
    bool ok = selected && to->share && to->largest_output &&
              read_scores(m, m->step->counts, m->step->traffic_group, "selected", selected) &&
              read_scores(m, m->step->counts, NULL, "largest_output", to->largest_output);
    if (ok) selection_shares(selected, m->n_cells, to->share);
    if (ok && m->step->exclude_super && !selection_find_super(m->config, to->largest_output, to->super))
        ok = error_out_of_memory(m->error, "super experts", (size_t)m->n_cells * sizeof(double));
    mem_free(selected);
    return ok;
}

/* ---- selected sets ---- */
/* The cells of one source by rank. */
typedef struct {
    const int64_t *order;
    int64_t n;
    bool alike; /* they all have one value: a part of them is not defined */
} Ranking;

/* The first n of the ranking, or why they are not defined. */
static void select_first(const Maker *m, Condition *c, const Ranking *ranking, int64_t n) {
    if (ranking->alike && n > 0 && n < ranking->n) {
        snprintf(c->reason, sizeof c->reason, "all %lld cells that can be ranked have the same value",
                 (long long)ranking->n);
        n = 0;
    }
    set_cells(m, c, ranking->order, n);
}

static void select_top(const Maker *m, Condition *c, const Ranking *ranking) {
    int64_t n = c->amount <= (double)ranking->n ? (int64_t)c->amount : 0;
    if (!n)
        snprintf(c->reason, sizeof c->reason, "%g cells asked for, %lld can be ranked", c->amount,
                 (long long)ranking->n);
    select_first(m, c, ranking, n);
}

static void select_traffic(const Maker *m, Condition *c, const Ranking *ranking) {
    int64_t n = selection_within(ranking->order, ranking->n, m->to->share, c->amount / 100);
    if (!n)
        snprintf(c->reason, sizeof c->reason, "the first cell alone has more than %g %% of the choices",
                 c->amount);
    select_first(m, c, ranking, n);
}

static bool select_by_rules(Maker *m, const char *source, const Ranking *ranking) {
    const StepOptions *step = m->step;
    for (int64_t i = 0; i < step->top.n + step->traffic.n; i++) {
        bool top = i < step->top.n;
        Condition *c =
            add(m, (Condition){.kind = CONDITION_SELECTED,
                               .source = source,
                               .rule = top ? "top" : "traffic",
                               .amount = top ? step->top.values[i] : step->traffic.values[i - step->top.n],
                               .draw = -1,
                               .of = -1});
        if (!c) return false;
        snprintf(c->name, sizeof c->name, "%.80s.%s%g", source, c->rule, c->amount);
        (top ? select_top : select_traffic)(m, c, ranking);
    }
    return true;
}

static bool select_from(Maker *m, const char *source) {
    const StepOptions *step = m->step;
    double *first = new_values(m), *second = new_values(m);
    int64_t *order = mem_zeroed((size_t)m->n_cells, sizeof *order), n = -1;
    bool ok =
        first && second && order && read_scores(m, source, step->rank_groups.names[0], "score", first) &&
        (step->rank_by == RANK_SCORE || read_scores(m, source, step->rank_groups.names[1], "score", second));
    if (ok) n = selection_rank(step, first, second, m->to->super, m->n_cells, order);
    if (m->error->code == ERROR_NONE && n < 0)
        error_out_of_memory(m->error, "ranks", (size_t)m->n_cells * sizeof *order);
    if (ok && n >= 0) {
        Ranking ranking = {order, n, selection_all_alike(step, first, second, order, n)};
        ok = select_by_rules(m, source, &ranking);
    } else {
        ok = false;
    }
    mem_free(first);
    mem_free(second);
    mem_free(order);
    return ok;
}

static bool refuse_super(const Maker *m, const Condition *c) {
    for (int64_t i = 0; i < c->n_cells; i++)
        if (m->to->super[c->cells[i]])
            return error_set(m->error, ERROR_BAD_INPUT,
                             "%s: expected no super expert (exclude_super): got layer %lld, expert %lld",
                             c->name, (long long)selection_layer(m->config, c->cells[i]),
                             (long long)(c->cells[i] % m->config->n_experts));
    return true;
}

static bool select_listed(Maker *m) {
    const NameList *cells = &m->step->cells;
    if (!cells->n) return true;
    Condition *c = add(m, (Condition){.name = "cells",
                                      .kind = CONDITION_SELECTED,
                                      .source = "",
                                      .rule = "cells",
                                      .amount = (double)cells->n,
                                      .draw = -1,
                                      .of = -1});
    if (!c || cells->n > m->n_cells)
        return c &&
               error_set(m->error, ERROR_BAD_INPUT, "steps.%s.cells: expected at most %lld cells: got %lld",
                         m->step->name, (long long)m->n_cells, (long long)cells->n);
    char place[100];
    snprintf(place, sizeof place, "steps.%.64s.cells", m->step->name);
    for (int64_t i = 0; i < cells->n; i++) {
        if (!selection_parse_cell(cells->names[i], m->config, place, &c->cells[i], m->error)) return false;
        for (int64_t k = 0; k < i; k++)
            if (c->cells[k] == c->cells[i])
                return error_set(m->error, ERROR_BAD_INPUT,
                                 "%s: expected each cell once: got \"%.40s\" again", place, cells->names[i]);
        c->n_cells++;
    }
    if (m->to->share) c->share = selection_share(m->to->share, c->cells, c->n_cells);
    return refuse_super(m, c);
}

static bool select_imported(Maker *m) {
    if (!m->step->selection[0]) return true;
    int64_t *cells = NULL, n = 0;
    bool ok = selection_read_cells(m->step->selection, m->config, &cells, &n, m->error);
    Condition *c = ok ? add(m, (Condition){.name = "selection",
                                           .kind = CONDITION_SELECTED,
                                           .source = "",
                                           .rule = "selection",
                                           .amount = (double)n,
                                           .draw = -1,
                                           .of = -1})
                      : NULL;
    if (c) {
        set_cells(m, c, cells, n);
        ok = refuse_super(m, c);
    }
    mem_free(cells);
    return ok && c;
}

/* ---- controls ---- */
/* False: out of memory. */
static bool draw_cells(const Maker *m, Condition *c, const Condition *like, const bool *taken) {
    int64_t e = m->config->n_experts, n = like->n_cells, most = e;
    if (m->step->mode + EDIT_MASK == EDIT_MASK) most -= m->config->n_experts_per_token;
    DrawFrom from = {m->n_cells, e, taken, m->to->share, most};
    Draw draw = draw_new((uint64_t)m->job->options.seed, c->name);
    if (c->kind == CONDITION_LAYER_MATCHED)
        n = draw_layer_matched(&draw, &from, like->cells, n, c->cells);
    else if (c->kind == CONDITION_TRAFFIC_MATCHED)
        n = draw_traffic_matched(&draw, &from, like->share, n, c->cells);
    else if (!strcmp(like->rule, "traffic"))
        n = draw_share(&draw, &from, like->amount / 100, c->cells);
    else
        n = draw_set(&draw, &from, n, c->cells);
    c->n_cells = n > 0 ? n : 0;
    return n >= 0;
}

/* One drawn set beside the selected condition number `of`. */
static bool add_control(Maker *m, ConditionKind kind, int64_t of, int64_t number, bool *taken) {
    Conditions *to = m->to;
    const Condition selected = to->list[of];
    Condition like = selected;
    like.kind = kind, like.draw = number, like.of = of;
    if (kind == CONDITION_RANDOM) like.source = "";
    Condition *c = add(m, like);
    if (!c) return false;
    char stem[CONDITION_NAME];
    if (kind != CONDITION_RANDOM)
        snprintf(stem, sizeof stem, "%.120s.%s", selected.name, condition_kind_names[kind]);
    else if (selected.source[0])
        snprintf(stem, sizeof stem, "random.%s%g", selected.rule, selected.amount);
    else
        snprintf(stem, sizeof stem, "random.%.100s", selected.name);
    snprintf(c->name, sizeof c->name, "%.170s.%lld", stem, (long long)number);
    c->n_cells = 0;
    bool by_traffic = !strcmp(selected.rule, "traffic");
    if (selected.reason[0] && !(kind == CONDITION_RANDOM && by_traffic)) {
        snprintf(c->reason, sizeof c->reason, "%.60s is not defined", selected.name);
        return true;
    }
    c->reason[0] = '\0';
    memcpy(taken, to->super, (size_t)m->n_cells * sizeof *taken);
    for (int64_t i = 0; i < selected.n_cells; i++) taken[selected.cells[i]] = true;
    if (!draw_cells(m, c, &selected, taken))
        return error_out_of_memory(m->error, "a random set", (size_t)m->n_cells * sizeof *c->cells);
    if (!c->n_cells) snprintf(c->reason, sizeof c->reason, "no such set of cells was found");
    c->share = to->share ? selection_share(to->share, c->cells, c->n_cells) : -1;
    return true;
}

static bool same_rule(const Condition *a, const Condition *b) {
    return b->kind == CONDITION_SELECTED && !strcmp(a->rule, b->rule) && a->amount == b->amount;
}

/* The first selected condition of a rule and amount that is defined has the random sets of all, or the first
 * where none is. */
static bool has_random_sets(const Conditions *c, int64_t i) {
    int64_t first = -1;
    for (int64_t k = 0; k < c->n; k++)
        if (same_rule(&c->list[i], &c->list[k]) &&
            (first < 0 || (c->list[first].reason[0] && !c->list[k].reason[0])))
            first = k;
    return first == i;
}

static bool add_controls(Maker *m) {
    const StepOptions *step = m->step;
    bool *taken = mem_zeroed((size_t)m->n_cells, sizeof *taken),
         ok = taken || error_out_of_memory(m->error, "random sets", (size_t)m->n_cells);
    int64_t n_selected = m->to->n;
    for (int64_t i = 1; ok && i < n_selected; i++) {
        int64_t n_random = has_random_sets(m->to, i) ? step->random_sets : 0;
        for (int64_t d = 0; ok && d < n_random; d++) ok = add_control(m, CONDITION_RANDOM, i, d, taken);
        for (int64_t d = 0; ok && d < step->layer_matched_sets; d++)
            ok = add_control(m, CONDITION_LAYER_MATCHED, i, d, taken);
        for (int64_t d = 0; ok && d < step->traffic_matched_sets; d++)
            ok = add_control(m, CONDITION_TRAFFIC_MATCHED, i, d, taken);
    }
    mem_free(taken);
    return ok;
}

/* ---- adapters ---- */
ConditionKind conditions_kind_of_tuned(const StepOptions *tuned) {
    if (tuned->control == CONTROL_NONE || tuned->control == CONTROL_ALL) return CONDITION_SELECTED;
    return tuned->control == CONTROL_LAYER_MATCHED ? CONDITION_LAYER_MATCHED : CONDITION_RANDOM;
}

static bool add_adapters(Maker *m) {
    const int64_t n_before = m->to->n;
    int64_t first = -1;
    for (int64_t i = 0; i < m->step->adapters.n; i++) {
        const StepOptions *tuned = adapted_source(m->job, m->step, i);
        const bool drawn = conditions_kind_of_tuned(tuned) != CONDITION_SELECTED;
        Condition *c = add(m, (Condition){.kind = conditions_kind_of_tuned(tuned),
                                          .source = tuned->name,
                                          .rule = "adapter",
                                          .draw = drawn ? tuned->draw : -1,
                                          .of = -1,
                                          .adapter = i + 1});
        if (!c || !adapted_cells(tuned, m->run_folder, m->config, c->cells, &c->n_cells, m->error))
            return false;
        c->amount = (double)c->n_cells;
        snprintf(c->name, sizeof c->name, "%.80s.adapter", tuned->name);
        if (m->to->share) c->share = selection_share(m->to->share, c->cells, c->n_cells);
        if (first < 0 && tuned->control == CONTROL_NONE) first = m->to->n - 1;
    }
    for (int64_t i = n_before; i < m->to->n; i++)
        if (m->to->list[i].kind != CONDITION_SELECTED) m->to->list[i].of = first;
    return true;
}

/* ---- edits ---- */
static bool put_edits(Maker *m, Condition *c) {
    for (int64_t i = 0; i < c->n_cells; i++) {
        CellEdit edit = {selection_layer(m->config, c->cells[i]), c->cells[i] % m->config->n_experts,
                         (EditMode)(EDIT_MASK + m->step->mode), (float)m->step->value};
        if (!edit_table_put(&m->to->table, m->config, c->set, edit, m->error))
            return error_add_place(m->error, "condition %s", c->name);
    }
    return edit_table_check_set(&m->to->table, m->config, c->set, m->error) ||
           error_add_place(m->error, "condition %s", c->name);
}

static bool make_table(Maker *m) {
    Conditions *to = m->to;
    int64_t n = 0;
    for (int64_t i = 1; i < to->n; i++)
        if (!to->list[i].reason[0] && !to->list[i].adapter) to->list[i].set = n++;
    bool ok = edit_table_make(m->config, n, &to->table, m->error);
    for (int64_t i = 1; ok && i < to->n; i++)
        if (to->list[i].set >= 0) ok = put_edits(m, &to->list[i]);
    return ok;
}

bool conditions_make(const Job *job, const StepOptions *step, const ModelConfig *config,
                     const char *run_folder, Conditions *to, Error *error) {
    Maker m = {job, step, config, run_folder, config->n_moe_layers * config->n_experts, to, error};
    *to = (Conditions){.capacity = conditions_count(step)};
    to->list = mem_zeroed((size_t)to->capacity, sizeof *to->list);
    to->super = mem_zeroed((size_t)m.n_cells, sizeof *to->super);
    if (!to->list || !to->super)
        return error_out_of_memory(error, "conditions", (size_t)to->capacity * sizeof *to->list);
    bool ok = add(&m, (Condition){.name = "baseline", .source = "", .rule = "", .draw = -1, .of = -1}) &&
              read_counts(&m);
    bool by_rule = step->top.n || step->traffic.n;
    for (int64_t i = 0; ok && by_rule && i < step->from.n; i++) ok = select_from(&m, step->from.names[i]);
    ok = ok && select_listed(&m) && select_imported(&m) && add_controls(&m) && add_adapters(&m) &&
         make_table(&m);
    return ok || error_add_place(error, "step %s", step->name);
}

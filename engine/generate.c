/* Prefill and decoding steps over the cache. A sequence is a prompt and one continuation of it; sequence
 * p * n_forks + f is fork f of prompt p. The prefill runs for each prompt's first fork; the others then get
 * copies of its keys and values. A step's rows are one token of each sequence that still runs; their place in
 * the batch, and who else is in it, changes no bit. The arena is as large as the largest program needs. */
#include "generate.h"
#include "../kernels/check.h"
#include "../kernels/cost.h"
#include "alloc.h"
#include "decoder.h"
#include "watchdog.h"
#include <string.h>

typedef struct {
    const Model *model;
    const PromptBatch *batch;
    const GenerateOptions *options;
    const Hooks *hooks;
    Error *error;
    SampleRule rule;
    Rows rows; /* of the step to run */
    KvCache cache;
    Workspace workspace;
    LayerRun *runs;
    int64_t *findings;
    RouteEdits edits; /* modes and values on the device */
    int64_t n_forks, n_sequences;
    int64_t *first_rows; /* [S]: where a sequence's rows of the cache begin */
    int64_t *running;    /* [S]: the sequences of the step's rows, ascending */
    int64_t n_running;
    int64_t *keys;                    /* [S,2] of the random numbers: prompt, position */
    int32_t *last_rows;               /* [P]: in the prefill, each prompt's last row */
    int32_t *fork_rows;               /* [n_forks,T]: rows of the cache of all prompts' f-th forks */
    int32_t *drawn;                   /* [S] */
    int32_t *made;                    /* [S,max_new_tokens] */
    int64_t *n_made;                  /* [S] */
    bool *stopped;                    /* [S] */
    bool failed, interrupted;         /* by a hook; on all ranks */
    Graph *graph;                     /* a recorded step, where the device can; NULL: none yet */
    int64_t graph_rows, last_running; /* rows of it; of the step before */
} Generator;

/* Of a sequence. */
static int64_t prompt_length(const Generator *g, int64_t s) {
    int64_t p = s / g->n_forks;
    return g->batch->offsets[p + 1] - g->batch->offsets[p];
}

/* ---- the rows of a step ---- */
static void prefill_rows(Generator *g) {
    const PromptBatch *batch = g->batch;
    g->rows.n_rows = batch->offsets[batch->n_prompts];
    g->rows.n_prompts = g->n_running = batch->n_prompts;
    for (int64_t p = 0; p < batch->n_prompts; p++) {
        int64_t begin = batch->offsets[p], s = p * g->n_forks, n = prompt_length(g, s);
        for (int64_t i = 0; i < n; i++) {
            g->rows.ids[begin + i] = batch->tokens[begin + i];
            g->rows.positions[begin + i] = (int32_t)i;
            g->rows.cache_rows[begin + i] = (int32_t)(g->first_rows[s] + i);
            g->rows.edits[begin + i] = g->options->prompt_edits ? g->options->prompt_edits[p] : -1;
        }
        g->rows.offsets[p] = (int32_t)begin;
        g->rows.kv_begin[p] = (int32_t)g->first_rows[s];
        g->rows.kv_length[p] = (int32_t)n;
        g->running[p] = s;
        g->last_rows[p] = (int32_t)(begin + n - 1);
    }
    g->rows.offsets[batch->n_prompts] = (int32_t)g->rows.n_rows;
}

/* The last token of every sequence that runs. */
static void step_rows(Generator *g) {
    g->rows.n_rows = g->rows.n_prompts = g->n_running;
    for (int64_t i = 0; i < g->n_running; i++) {
        int64_t s = g->running[i], n = g->n_made[s], position = prompt_length(g, s) + n - 1;
        g->rows.ids[i] = n ? g->made[s * g->options->max_new_tokens + n - 1] : 0;
        g->rows.positions[i] = (int32_t)position;
        g->rows.cache_rows[i] = (int32_t)(g->first_rows[s] + position);
        g->rows.edits[i] = g->options->generated_edits ? g->options->generated_edits[s] : -1;
        g->rows.offsets[i] = (int32_t)i;
        g->rows.kv_begin[i] = (int32_t)g->first_rows[s];
        g->rows.kv_length[i] = (int32_t)(position + 1);
    }
    g->rows.offsets[g->n_running] = (int32_t)g->n_running;
}

/* What is drawn next stands behind all tokens so far. */
static void fill_keys(Generator *g) {
    for (int64_t i = 0; i < g->n_running; i++) {
        int64_t s = g->running[i], p = s / g->n_forks;
        g->keys[2 * i] = g->options->prompt_keys ? g->options->prompt_keys[p] : p;
        g->keys[2 * i + 1] = prompt_length(g, s) + g->n_made[s];
    }
}

static void place_in_step(const void *context, CheckKind kind, int64_t row, int64_t *prompt, int64_t *token) {
    const Generator *g = context;
    int64_t i = row;
    if (kind != CHECK_LOGITS)
        for (i = 0; g->rows.offsets[i + 1] <= row;) i++;
    *prompt = g->running[i] / g->n_forks;
    *token = kind == CHECK_LOGITS
                 ? g->rows.kv_begin[i] + g->rows.kv_length[i] - 1 - g->first_rows[g->running[i]]
                 : g->rows.positions[row];
}

/* ---- one step ---- */
static void draw(Generator *g, Context *c, Tensor logits) {
    int64_t n = g->n_running;
    Tensor drawn = tape_vector(c, DTYPE_I32, n);
    if (g->rule.temperature > 0) {
        Tensor keys = tape_upload(c, DTYPE_I64, 2 * n, g->keys);
        Tensor scratch = tape_matrix(c, DTYPE_I32, n, tensor_columns(logits));
        c->device->ops->sample(c->queue, drawn, scratch, logits, tensor_as_matrix(keys, n, 2), g->rule);
    } else {
        c->device->ops->argmax(c->queue, drawn, logits, g->rule.n_valid);
    }
    if (c->device->computes) c->device->copy_out(c->queue, g->drawn, drawn);
}

static void run_program(Generator *g, Context *c) {
    const ModelConfig *config = &g->model->config;
    const Weights *w = &g->model->weights;
    int64_t n_checks = decoder_n_checks(config);
    Decoder d = {.model = g->model,
                 .hooks = g->hooks,
                 .site = {c->device, c->queue, g->error},
                 .edits = g->options->edits,
                 .edit_tensors = g->edits,
                 .cache = &g->cache,
                 .runs = g->runs};
    decoder_checks_clear(g->findings, n_checks);
    d.nonfinite = tape_upload(c, DTYPE_I64, n_checks, g->findings);
    Tensor ids = decoder_upload(&d, c, &g->rows);
    Var *x = decoder_run(&d, c, nn_embed(c, NULL, ids, w->embedding, false));
    if (g->rows.n_rows > g->n_running) {
        Tensor index = tape_upload(c, DTYPE_I32, g->n_running, g->last_rows);
        Tensor last = tape_matrix(c, c->act, g->n_running, config->hidden_size);
        c->device->ops->gather_rows(c->queue, last, x->x, index);
        x = tape_leaf(c, last, false);
    }
    Var *logits = nn_linear_real(c, nn_rmsnorm(c, x, w->final_norm, config->norm_eps), w->head, (Tensor){0});
    decoder_check(&d, c, CHECK_LOGITS, 0, logits->x);
    draw(g, c, logits->x);
    if (c->device->computes) c->device->copy_out(c->queue, g->findings, d.nonfinite);
    g->failed = d.failed;
}

/* A decoding step with as many rows as the one before is the same work on the same memory, so a device that
 * can record it does, and only replays it from then on. Hooks look at single steps: with them nothing is
 * recorded, nor where weights are streamed. */
static void run_recorded(Generator *g, Context *c) {
    const Device *device = c->device;
    if (!g->graph || g->graph_rows != g->n_running) {
        if (g->graph) device->graph_free(g->graph);
        device->graph_begin(c->queue);
        run_program(g, c);
        g->graph = device->graph_end(c->queue);
        g->graph_rows = g->n_running;
    }
    if (g->graph) device->graph_launch(c->queue, g->graph);
}

static bool can_record(const Generator *g, const Device *device) {
    const Hooks none = {0};
    return device->graph_begin && !g->model->weights.stream && !g->model->exchange &&
           !memcmp(g->hooks, &none, sizeof none) && g->rows.n_rows == g->n_running &&
           g->last_running == g->n_running;
}

static bool compute_step(Generator *g) {
    Context *c = &g->workspace.context;
    c->arena.used = 0;
    c->n_vars = 0;
    fill_keys(g);
    if (can_record(g, c->device))
        run_recorded(g, c);
    else
        run_program(g, c);
    g->last_running = g->rows.n_rows == g->n_running ? g->n_running : 0;
    return workspace_sync(&g->workspace, g->error) && !g->failed &&
           decoder_checks_read(&g->model->config, g->findings, place_in_step, g, g->error);
}

static bool is_stop(const GenerateOptions *options, int32_t id) {
    for (int64_t i = 0; i < options->n_stop_tokens; i++)
        if (options->stop_tokens[i] == id) return true;
    return false;
}

/* Keeps what was drawn; finished sequences leave. */
static void take_drawn(Generator *g) {
    int64_t left = 0;
    for (int64_t i = 0; i < g->n_running; i++) {
        int64_t s = g->running[i];
        g->made[s * g->options->max_new_tokens + g->n_made[s]++] = g->drawn[i];
        g->stopped[s] = is_stop(g->options, g->drawn[i]);
        if (!g->stopped[s] && g->n_made[s] < g->options->max_new_tokens) g->running[left++] = s;
    }
    g->n_running = left;
}

/* ---- forks ---- */
/* Keys and values of the prompts' tokens from the first forks to the others, a layer at a time. */
static void copy_cache(const Generator *g, Context *c) {
    int64_t n = g->batch->offsets[g->batch->n_prompts];
    Tensor rows = tape_upload(c, DTYPE_I32, g->n_forks * n, g->fork_rows),
           caches[] = {g->cache.keys, g->cache.values};
    for (int which = 0; which < 2; which++)
        for (int64_t layer = 0; layer < g->model->config.n_layers; layer++) {
            Scope scope = scope_open(c);
            Tensor cache = tensor_entry(caches[which], layer);
            Tensor copy = tape_matrix(c, cache.dtype, n, tensor_columns(cache));
            c->device->ops->gather_rows(c->queue, copy, cache, tensor_slice(rows, 0, n));
            for (int64_t f = 1; f < g->n_forks; f++)
                c->device->ops->scatter_rows(c->queue, cache, copy, tensor_slice(rows, f * n, n));
            scope_close(c, scope);
        }
}

/* After the prefill: every fork has the first one's token, and those that go on have its keys and values. */
static bool fork_sequences(Generator *g) {
    if (g->n_forks == 1) return true;
    int64_t most = g->options->max_new_tokens, n = g->batch->offsets[g->batch->n_prompts], left = 0;
    for (int64_t s = 0; s < g->n_sequences; s++) {
        int64_t first = s / g->n_forks * g->n_forks;
        g->made[s * most] = g->made[first * most];
        g->n_made[s] = 1;
        g->stopped[s] = g->stopped[first];
        if (!g->stopped[s] && most > 1) g->running[left++] = s;
        for (int64_t i = 0; i < prompt_length(g, s); i++)
            g->fork_rows[s % g->n_forks * n + g->batch->offsets[s / g->n_forks] + i] =
                (int32_t)(g->first_rows[s] + i);
    }
    g->n_running = left;
    Context *c = &g->workspace.context;
    c->arena.used = 0;
    c->n_vars = 0;
    copy_cache(g, c);
    return workspace_sync(&g->workspace, g->error);
}

static bool run_step(Generator *g, int64_t step) {
    if (step) step_rows(g);
    watchdog_tick();
    if (!compute_step(g)) return false;
    take_drawn(g);
    return step || fork_sequences(g);
}

static bool run_steps(Generator *g) {
    const GenerateOptions *o = g->options;
    StepWish all, own = STEP_RUN;
    int64_t step = 0;
    for (; (all = generation_agree(g->model, own)) == STEP_RUN; step++) {
        if (!g->n_running)
            generation_serve_step(g->model, g->workspace.context.queue);
        else if (!run_step(g, step))
            return false;
        own = g->n_running ? STEP_RUN : STEP_NONE;
        if (o->progress && !o->progress(o->progress_context, step, g->n_running)) own = STEP_STOP;
    }
    g->interrupted = all == STEP_STOP;
    return !g->interrupted || error_set(g->error, ERROR_INTERRUPTED,
                                        "generation: interrupted after %lld tokens", (long long)step);
}

/* ---- memory ---- */
static bool measure(Generator *g, size_t *n_bytes) {
    Workspace w;
    bool ok = workspace_open(&w, g->model, &cost_device, false, g->error);
    if (ok) {
        prefill_rows(g);
        run_program(g, &w.context);
        w.context.arena.used = 0;
        w.context.n_vars = 0;
        if (g->n_forks > 1) copy_cache(g, &w.context);
        w.context.arena.used = 0;
        w.context.n_vars = 0;
        for (int64_t s = 0; s < g->n_sequences; s++) g->running[s] = s;
        g->n_running = g->n_sequences;
        step_rows(g);
        run_program(g, &w.context);
        *n_bytes = w.context.arena.peak;
    }
    workspace_close(&w);
    return ok;
}

static bool reserve_cache(Generator *g) {
    int64_t n_rows = 0;
    for (int64_t s = 0; s < g->n_sequences; s++) {
        g->first_rows[s] = n_rows;
        n_rows += prompt_length(g, s) + g->options->max_new_tokens;
    }
    if (n_rows > INT32_MAX)
        return error_set(g->error, ERROR_BAD_INPUT, "generation: expected at most %d tokens: got %lld",
                         INT32_MAX, (long long)n_rows);
    const ModelConfig *config = &g->model->config;
    const Device *device = g->model->device;
    Error first = {0};
    if (kv_cache_open(&g->cache, config, device, g->model->compute, n_rows, &first)) return true;
    if (workspace_drop_spare(g->model))
        return kv_cache_open(&g->cache, config, device, g->model->compute, n_rows, g->error);
    *g->error = first;
    return false;
}

static bool generator_open(Generator *g) {
    const ModelConfig *config = &g->model->config;
    size_t n_sequences = (size_t)g->n_sequences, n_prompts = (size_t)g->batch->n_prompts;
    int64_t n = g->batch->offsets[n_prompts];
    if (!rows_open(&g->rows, n > g->n_sequences ? n : g->n_sequences, g->n_sequences, g->error)) return false;
    g->runs = mem_zeroed((size_t)config->n_layers, sizeof *g->runs);
    g->findings = mem_alloc((size_t)decoder_n_checks(config) * sizeof *g->findings);
    g->first_rows = mem_zeroed(n_sequences, sizeof *g->first_rows);
    g->running = mem_zeroed(n_sequences, sizeof *g->running);
    g->keys = mem_zeroed(n_sequences, 2 * sizeof *g->keys);
    g->last_rows = mem_zeroed(n_prompts, sizeof *g->last_rows);
    g->fork_rows = mem_zeroed(g->n_forks > 1 ? (size_t)(g->n_forks * n) : 1, sizeof *g->fork_rows);
    g->drawn = mem_zeroed(n_sequences, sizeof *g->drawn);
    g->made = mem_zeroed(n_sequences, (size_t)g->options->max_new_tokens * sizeof *g->made);
    g->n_made = mem_zeroed(n_sequences, sizeof *g->n_made);
    g->stopped = mem_zeroed(n_sequences, sizeof *g->stopped);
    bool ok = g->runs && g->findings && g->first_rows && g->running && g->keys && g->last_rows &&
              g->fork_rows && g->drawn && g->made && g->n_made && g->stopped;
    if (!ok)
        return error_out_of_memory(g->error, "generation",
                                   n_sequences * (size_t)g->options->max_new_tokens * 4);
    size_t n_bytes = 0;
    return reserve_cache(g) && decoder_edits_reserve(g->options->edits, g->model, &g->edits, g->error) &&
           measure(g, &n_bytes) &&
           workspace_open(&g->workspace, g->model, g->model->device, false, g->error) &&
           workspace_reserve(&g->workspace, n_bytes, g->error) &&
           decoder_edits_copy(g->options->edits, &g->workspace, g->edits, g->error);
}

static void generator_close(Generator *g) {
    void *blocks[] = {g->runs,      g->findings, g->first_rows, g->running, g->keys,   g->last_rows,
                      g->fork_rows, g->drawn,    g->made,       g->n_made,  g->stopped};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) mem_free(blocks[i]);
    if (g->graph) g->model->device->graph_free(g->graph);
    decoder_edits_free(g->model->device, &g->edits);
    rows_close(&g->rows);
    workspace_close(&g->workspace);
    kv_cache_close(&g->cache);
}

/* ---- the front door ---- */
static bool hand_over(Generator *g, Generation *to) {
    if (!generation_pack(g->made, g->n_made, g->n_sequences, g->options->max_new_tokens, to, g->error))
        return false;
    to->stopped = g->stopped;
    g->stopped = NULL;
    return true;
}

static bool run(const Model *model, const PromptBatch *batch, const GenerateOptions *options,
                const Hooks *hooks, Generation *generation, bool *interrupted, Error *error) {
    const Hooks none = {0};
    if (options->max_new_tokens < 1)
        return error_set(error, ERROR_BAD_INPUT, "max_new_tokens: expected at least 1: got %lld",
                         (long long)options->max_new_tokens);
    if (!decoder_check_batch(model, batch, options->max_new_tokens, error)) return false;
    if (options->edits && !edit_table_check(options->edits, &model->config, error)) return false;
    Generator g = {.model = model, .batch = batch, .options = options, .hooks = hooks ? hooks : &none};
    g.n_forks = options->n_forks > 1 ? options->n_forks : 1;
    g.n_sequences = g.n_forks * batch->n_prompts;
    for (int64_t s = 0; options->edits && s < g.n_sequences; s++)
        check((!options->prompt_edits || options->prompt_edits[s / g.n_forks] < options->edits->n_sets) &&
                  (!options->generated_edits || options->generated_edits[s] < options->edits->n_sets),
              "a set of edits of sequence %lld", (long long)s);
    int64_t vocabulary = model->config.vocab_size;
    g.error = error;
    g.rule = options->rule;
    if (g.rule.n_valid < 1 || g.rule.n_valid > vocabulary) g.rule.n_valid = vocabulary;
    bool ok = generator_open(&g);
    if (ok) {
        prefill_rows(&g);
        ok = run_steps(&g) && hand_over(&g, generation);
    }
    *interrupted = g.interrupted;
    generator_close(&g);
    if (!ok) generation_free(generation);
    return ok;
}

bool generate(const Model *model, const PromptBatch *batch, const GenerateOptions *options,
              const Hooks *hooks, Generation *generation, Error *error) {
    *generation = (Generation){0};
    check(model->device->computes, "generation on the device %s", model->device->name);
    bool interrupted = false; /* all ranks are */
    const bool ok = run(model, batch, options, hooks, generation, &interrupted, error);
    if (!ok && !interrupted && spread_any(&model->spread)) comm_fail(model->spread.comm, error);
    return ok;
}

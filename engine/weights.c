/* Loading: the list of wanted tensors (tensor_names.h) is checked against the files, then given memory,
 * then read in pieces straight into place, each piece looked through for NaN and infinity. There is never
 * a second copy of a model. */
#include "weights.h"
#include "watchdog.h"
#include "../kernels/check.h"
#include "alloc.h"
#include "tensor_names.h"
#include "text.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LISTED = 8, PIECE_BYTES = 4 << 20 };

typedef struct {
    const ModelConfig *config;
    Arch arch;
    TensorSet *set; /* NULL: shapes alone */
    Weights *weights;
    WantedTensors wanted;
    Range own;    /* experts of each layer that are read */
    bool in_host; /* streamed layers are filled in the host's memory */
    Error *error;
} Loader;

/* ---- the check ---- */
typedef enum { PROBLEM_MISSING, PROBLEM_EXTRA, PROBLEM_SHAPE, PROBLEM_DTYPE, N_PROBLEMS } ProblemKind;

typedef struct {
    Text text[N_PROBLEMS]; /* the first MAX_LISTED of each kind */
    int64_t n[N_PROBLEMS];
} Problems;

static void add_problem(Problems *p, ProblemKind kind, const char *name, const char *detail) {
    if (++p->n[kind] <= MAX_LISTED)
        text_format(&p->text[kind], "%s%.100s%s", p->n[kind] > 1 ? ", " : "", name, detail);
}

static void describe_shape(int n_dims, const int64_t *shape, char *to, size_t capacity) {
    size_t used = (size_t)snprintf(to, capacity, "[");
    for (int d = 0; d < n_dims && used + 24 < capacity; d++)
        used += (size_t)snprintf(to + used, capacity - used, "%s%lld", d ? "," : "", (long long)shape[d]);
    snprintf(to + used, capacity - used, "]");
}

static void check_shape(const WantedTensor *w, const TensorEntry *entry, Problems *p) {
    size_t n_bytes = (size_t)w->n_dims * sizeof *w->shape;
    if (entry->n_dims == w->n_dims && !memcmp(entry->shape, w->shape, n_bytes)) return;
    char expected[80], got[200], detail[320];
    describe_shape(w->n_dims, w->shape, expected, sizeof expected);
    describe_shape(entry->n_dims, entry->shape, got, sizeof got);
    snprintf(detail, sizeof detail, " (expected %s, got %s)", expected, got);
    add_problem(p, PROBLEM_SHAPE, entry->name, detail);
}

static void check_wanted(const Loader *l, const WantedTensor *w, Problems *p) {
    const TensorEntry *entry = safetensors_find(l->set, w->name);
    if (!entry) {
        add_problem(p, PROBLEM_MISSING, w->name, "");
        return;
    }
    check_shape(w, entry, p);
    char detail[120];
    bool floating = entry->dtype_known &&
                    (entry->dtype == DTYPE_F32 || entry->dtype == DTYPE_BF16 || entry->dtype == DTYPE_F16);
    if (w->first == 0 && floating) w->whole->dtype = entry->dtype;
    if (floating && w->whole->dtype == entry->dtype) return;
    if (floating)
        snprintf(detail, sizeof detail, " (expected %s as in the other experts, got %.20s)",
                 dtype_name(w->whole->dtype), entry->dtype_name);
    else
        snprintf(detail, sizeof detail, " (expected F32, BF16 or F16, got %.20s)", entry->dtype_name);
    add_problem(p, PROBLEM_DTYPE, w->name, detail);
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Tensors of the files that nobody wants. Known ones are old inverse frequencies, and a head beside tied
 * embeddings. */
static bool check_extra(const Loader *l, Problems *p) {
    size_t n = (size_t)l->wanted.n;
    const char **names = mem_zeroed(n, sizeof *names);
    if (!names) return error_out_of_memory(l->error, "list of names", n * sizeof *names);
    for (size_t i = 0; i < n; i++) names[i] = l->wanted.entries[i].name;
    qsort(names, n, sizeof *names, by_name);
    const char *head = l->config->tie_embeddings ? arch_tensor_pattern(&l->arch, "head", 0) : NULL;
    for (int64_t i = 0; i < safetensors_count(l->set); i++) {
        const TensorEntry *entry = safetensors_entry(l->set, i);
        if (strstr(entry->name, "rotary_emb.inv_freq")) continue;
        WantedTensor tied = {.n_dims = 2, .shape = {l->config->vocab_size, l->config->hidden_size}};
        if (head && !strcmp(entry->name, head))
            check_shape(&tied, entry, p);
        else if (!bsearch(&entry->name, names, n, sizeof *names, by_name))
            add_problem(p, PROBLEM_EXTRA, entry->name, "");
    }
    mem_free(names);
    return true;
}

static bool check_all(const Loader *l) {
    static const char *const kinds[N_PROBLEMS] = {"missing", "extra", "mis-shaped", "of the wrong dtype"};
    Problems problems = {0};
    for (int64_t i = 0; i < l->wanted.n; i++) check_wanted(l, &l->wanted.entries[i], &problems);
    bool fine = check_extra(l, &problems);
    Text all = {0};
    for (int k = 0; k < N_PROBLEMS; k++) {
        if (!problems.n[k]) continue;
        text_format(&all, "%s%lld %s: %s", all.length ? "; " : "", (long long)problems.n[k], kinds[k],
                    problems.text[k].bytes ? problems.text[k].bytes : "");
        if (problems.n[k] > MAX_LISTED)
            text_format(&all, " and %lld more", (long long)(problems.n[k] - MAX_LISTED));
        all.failed = all.failed || problems.text[k].failed;
    }
    if (fine && all.failed) fine = error_out_of_memory(l->error, "list of tensors", all.length);
    if (fine && all.length)
        fine = error_set(l->error, ERROR_BAD_INPUT, "%s: expected the tensors of a %s model: got %s",
                         l->config->folder, l->config->family, all.bytes);
    for (int k = 0; k < N_PROBLEMS; k++) text_free(&problems.text[k]);
    text_free(&all);
    return fine;
}

/* ---- memory and reading ---- */
static bool is_of_experts(const Loader *l, const WantedTensor *wanted) {
    if (wanted->layer < 0 || l->config->layer_is_dense[wanted->layer]) return false;
    const LayerWeights *layer = &l->weights->layers[wanted->layer];
    return wanted->whole == &layer->gate_up || wanted->whole == &layer->down;
}

/* The layer with experts whose experts the tensor is part of, where they are streamed; -1: not streamed. */
static int64_t streamed_layer(const Loader *l, const WantedTensor *wanted) {
    if (!is_of_experts(l, wanted)) return -1;
    const int64_t moe_layer = model_config_moe_layer(l->config, wanted->layer);
    return weight_stream_has(l->weights->stream, moe_layer) ? moe_layer : -1;
}

/* From here on gate_up and down are those of this rank's experts. */
static void keep_own_experts(const Loader *l) {
    for (int64_t i = 0; i < l->config->n_layers; i++) {
        LayerWeights *layer = &l->weights->layers[i];
        if (!l->config->layer_is_dense[i]) layer->gate_up.shape[0] = layer->down.shape[0] = l->own.n;
    }
}

static bool take_memory(Loader *l, const WantedTensor *wanted) {
    Tensor *whole = wanted->whole;
    if (whole->data) return true; /* by another part of it */
    Weights *w = l->weights;
    const int64_t streamed = streamed_layer(l, wanted);
    if (streamed >= 0) {
        LayerWeights *layer = &w->layers[wanted->layer];
        return weight_stream_take(w->stream, streamed, &layer->gate_up, &layer->down, l->error);
    }
    size_t n_bytes = tensor_bytes(*whole);
    if (w->n_blocks == w->capacity) {
        int64_t capacity = w->capacity ? 2 * w->capacity : 64;
        void **larger = mem_resize(w->blocks, (size_t)capacity, sizeof *larger);
        if (!larger) return error_out_of_memory(l->error, "weights", (size_t)capacity * sizeof *larger);
        w->blocks = larger;
        w->capacity = capacity;
    }
    whole->data = w->device->alloc(n_bytes);
    if (!whole->data)
        return error_set(l->error, ERROR_UNAVAILABLE,
                         "%s: weights: expected %zu bytes of memory on device %s beside %zu held: got none",
                         l->config->folder ? l->config->folder : l->config->family, n_bytes, w->device->name,
                         w->n_bytes);
    w->blocks[w->n_blocks++] = whole->data;
    w->n_bytes += n_bytes;
    return true;
}

/* Index of the first NaN or infinity among n elements, or -1. */
static int64_t first_nonfinite(const void *bytes, DType dtype, int64_t n) {
    const uint32_t *words = bytes;
    const uint16_t *halves = bytes;
    const uint16_t half_mask = dtype == DTYPE_BF16 ? 0x7f80 : 0x7c00;
    const uint32_t mask = 0x7f800000u;
    for (int64_t begin = 0; begin < n; begin += 4096) {
        int64_t end = begin + 4096 < n ? begin + 4096 : n;
        unsigned bad = 0;
        if (dtype == DTYPE_F32)
            for (int64_t i = begin; i < end; i++) bad |= (words[i] & mask) == mask;
        else
            for (int64_t i = begin; i < end; i++) bad |= (halves[i] & half_mask) == half_mask;
        for (int64_t i = begin; bad && i < end; i++)
            if (dtype == DTYPE_F32 ? (words[i] & mask) == mask : (halves[i] & half_mask) == half_mask)
                return i;
    }
    return -1;
}

/* Names the tensor, its layer and its expert: a fused tensor's element lies in the expert that its index
 * says. */
static bool complain_nonfinite(const Loader *l, const WantedTensor *w, int64_t element) {
    char place[80] = "";
    int64_t expert = w->n_dims == 3 ? element / (w->shape[1] * w->shape[2]) : w->expert;
    if (w->layer >= 0) snprintf(place, sizeof place, " (layer %lld)", (long long)w->layer);
    if (expert >= 0)
        snprintf(place, sizeof place, " (layer %lld, expert %lld)", (long long)w->layer, (long long)expert);
    return error_set(l->error, ERROR_BAD_INPUT,
                     "%s: tensor %s%s: expected finite weights: got NaN or infinity at element %lld",
                     safetensors_file(l->set, safetensors_find(l->set, w->name)), w->name, place,
                     (long long)element);
}

/* What is read of a tensor: elements [begin, end) of it, to begin at element `to` of the whole. Of experts
 * those that this rank has, whether the file has them one by one or together. */
typedef struct {
    int64_t begin, end, to;
} Part;

static Part own_part(const Loader *l, const WantedTensor *w, int64_t n_all) {
    if (!is_of_experts(l, w)) return (Part){0, n_all, w->first};
    const int64_t expert = tensor_count(*w->whole) / l->own.n, first = l->own.first * expert,
                  end = first + l->own.n * expert;
    const Part part = {.begin = w->first < first ? first - w->first : 0,
                       .end = w->first + n_all < end ? n_all : end - w->first};
    return (Part){part.begin, part.end, w->first + part.begin - first};
}

static bool read_wanted(const Loader *l, const WantedTensor *w, Queue *queue, void *piece) {
    const TensorEntry *entry = safetensors_find(l->set, w->name);
    const Device *device = l->weights->device;
    DType dtype = w->whole->dtype;
    size_t item = dtype_bytes(dtype);
    const Part part = own_part(l, w, (int64_t)(entry->n_bytes / item));
    int64_t step = (int64_t)(PIECE_BYTES / item);
    for (int64_t at = part.begin; at < part.end; at += step) {
        int64_t n = part.end - at < step ? part.end - at : step;
        watchdog_tick();
        if (!safetensors_read(l->set, entry, (uint64_t)at * item, piece, (size_t)n * item, l->error))
            return false;
        int64_t bad = first_nonfinite(piece, dtype, n);
        if (bad >= 0) return complain_nonfinite(l, w, at + bad);
        char *to = (char *)w->whole->data + (size_t)(part.to + at - part.begin) * item;
        if (l->in_host && streamed_layer(l, w) >= 0) {
            memcpy(to, piece, (size_t)n * item);
            continue;
        }
        device->copy_in(queue, tensor_vector(to, dtype, n), piece);
        if (!device->sync(queue))
            return error_set(l->error, ERROR_UNAVAILABLE, "%s: %s", w->name, queue->failure);
    }
    return true;
}

static bool take_and_read(Loader *l) {
    const Device *device = l->weights->device;
    for (int64_t i = 0; i < l->wanted.n; i++)
        if (!take_memory(l, &l->wanted.entries[i])) return false;
    if (l->config->tie_embeddings) l->weights->head = l->weights->embedding;
    if (!device->computes) return true;
    Queue *queue = device->queue_new();
    void *piece = mem_alloc(PIECE_BYTES);
    bool fine = queue && piece ? true : error_out_of_memory(l->error, "loading weights", PIECE_BYTES);
    for (int64_t i = 0; fine && i < l->wanted.n; i++)
        fine = read_wanted(l, &l->wanted.entries[i], queue, piece);
    mem_free(piece);
    if (queue) device->queue_free(queue);
    if (fine && l->weights->stream)
        fine = weight_stream_place(l->weights->stream, &l->weights->n_bytes, l->error);
    return fine;
}

static bool load(Loader *l, DType dtype) {
    const ModelConfig *c = l->config;
    Weights *w = l->weights;
    w->n_layers = c->n_layers;
    w->layers = mem_zeroed((size_t)c->n_layers, sizeof *w->layers);
    if (!w->layers) return error_out_of_memory(l->error, "layers", (size_t)c->n_layers * sizeof *w->layers);
    if (!tensor_names_list(c, &l->arch, l->set, dtype, w, &l->wanted, l->error) || (l->set && !check_all(l)))
        return false;
    keep_own_experts(l);
    return take_and_read(l);
}

static bool finish(Loader *l, bool fine) {
    arch_close(&l->arch);
    safetensors_close(l->set);
    mem_free(l->wanted.entries);
    if (!fine) weights_free(l->weights);
    return fine;
}

bool weights_load(const ModelConfig *config, const Device *device, Weights *weights, Error *error) {
    return weights_load_spread(config, device, &(Spread){.residency = RESIDENCY_RESIDENT}, weights, error);
}

bool weights_load_spread(const ModelConfig *config, const Device *device, const Spread *spread,
                         Weights *weights, Error *error) {
    *weights = (Weights){.device = device};
    if (spread->n_streamed > config->n_moe_layers)
        return error_set(error, ERROR_BAD_INPUT, "%s: expected at most %lld layers to stream: got %lld",
                         config->folder, (long long)config->n_moe_layers, (long long)spread->n_streamed);
    if (spread->n_streamed || spread_weights_travel(spread)) {
        weights->stream = weight_stream_new(device, config->n_moe_layers, spread, error);
        if (!weights->stream) return false;
    }
    Loader l = {.config = config,
                .weights = weights,
                .own = spread_any(spread) ? placement_experts(&spread->placement, spread->comm->rank)
                                          : (Range){0, config->n_experts},
                .in_host = spread->n_streamed > 0,
                .error = error};
    if (!arch_open(config->family, &l.arch, error)) {
        weights_free(weights);
        return false;
    }
    l.set = safetensors_open(config->folder, error);
    return finish(&l, l.set && load(&l, DTYPE_F32));
}

bool weights_shapes(const ModelConfig *config, DType dtype, const Device *device, Weights *weights,
                    Error *error) {
    check(!device->computes, "device %s would hold undefined weights", device->name);
    *weights = (Weights){.device = device};
    Loader l = {.config = config, .weights = weights, .own = {0, config->n_experts}, .error = error};
    return arch_open(config->family, &l.arch, error) && finish(&l, load(&l, dtype));
}

void weights_free(Weights *weights) {
    for (int64_t i = 0; i < weights->n_blocks; i++) weights->device->free(weights->blocks[i]);
    weight_stream_free(weights->stream);
    mem_free(weights->blocks);
    mem_free(weights->layers);
    *weights = (Weights){0};
}

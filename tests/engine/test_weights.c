/* Weights: every golden checkpoint, in both namings and in shards, byte for byte; every damaged one by
 * name. */
#include "tests/engine/tiny_model.h"
#include "engine/text.h"
#include "engine/weights.h"
#include <errno.h>

#define GOLDEN SOURCE_DIR "/tests/golden/"

typedef struct {
    ModelConfig config;
    Weights weights;
} Loaded;

/* As one of some ranks, whose tokens travel; rank NULL: alone. Loading sends nothing. */
static bool load_as(const char *folder, const Device *device, Comm *rank, Loaded *to, Error *error) {
    if (!model_config_read(folder, &to->config, error)) return false;
    Spread spread = {.comm = rank, .residency = RESIDENCY_RESIDENT};
    if (rank) spread.placement = (Placement){rank->size, to->config.n_experts, rank->size, false};
    if (rank ? weights_load_spread(&to->config, device, &spread, &to->weights, error)
             : weights_load(&to->config, device, &to->weights, error))
        return true;
    model_config_free(&to->config);
    return false;
}

static bool load(const char *folder, const Device *device, Loaded *to, Error *error) {
    return load_as(folder, device, NULL, to, error);
}

static void unload(Loaded *loaded) {
    weights_free(&loaded->weights);
    model_config_free(&loaded->config);
}

static const Device *cpu(void) { return cpu_device(); }

/* The tensor of the file equals the part of `whole` that begins at element `first`. */
static void expect_bytes(const TensorSet *set, const char *name, Tensor whole, int64_t first) {
    const TensorEntry *entry = safetensors_find(set, name);
    Error error = {0};
    if (!entry) fail_msg("no %s", name);
    assert_int_equal(entry->dtype, whole.dtype);
    char *bytes = malloc(entry->n_bytes);
    assert_true(safetensors_read(set, entry, 0, bytes, entry->n_bytes, &error));
    const char *at = (const char *)whole.data + (size_t)first * dtype_bytes(whole.dtype);
    if (memcmp(at, bytes, entry->n_bytes) != 0) fail_msg("%s differs", name);
    free(bytes);
}

static void expect_layer(const TensorSet *set, const Loaded *m, int64_t l,
                         const char *const expert_names[3]) {
    static const char *const plain[] = {"input_layernorm",  "post_attention_layernorm", "self_attn.q_proj",
                                        "self_attn.k_proj", "self_attn.v_proj",         "self_attn.o_proj",
                                        "self_attn.q_norm", "self_attn.k_norm"};
    const LayerWeights *w = &m->weights.layers[l];
    const Tensor tensors[] = {w->attention_norm, w->experts_norm, w->query,      w->key,
                              w->value,          w->output,       w->query_norm, w->key_norm};
    char name[128];
    for (int i = 0; i < 8; i++) {
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", (int)l, plain[i]);
        if (i < 6 || m->config.qk_norm != QK_NORM_NONE) expect_bytes(set, name, tensors[i], 0);
        assert_int_equal(tensor_present(tensors[i]), i < 6 || m->config.qk_norm != QK_NORM_NONE);
    }
    bool dense = m->config.layer_is_dense[l];
    assert_int_equal(tensor_present(w->router), !dense);
    int64_t D = m->config.hidden_size, F = dense ? m->config.dense_size : m->config.expert_size;
    for (int64_t e = 0; e < (dense ? 1 : m->config.n_experts); e++) {
        for (int k = 0; k < 3; k++) {
            int n = snprintf(name, sizeof name, "model.layers.%d.", (int)l);
            if (dense)
                snprintf(name + n, sizeof name - (size_t)n, "mlp.%s_proj.weight",
                         k == 0   ? "gate"
                         : k == 1 ? "up"
                                  : "down");
            else
                snprintf(name + n, sizeof name - (size_t)n, expert_names[k], (int)e);
            expect_bytes(set, name, k < 2 ? w->gate_up : w->down, k < 2 ? (e * 2 + k) * F * D : e * D * F);
        }
    }
}

static const char *const mixtral_names[3] = {"block_sparse_moe.experts.%d.w1.weight",
                                             "block_sparse_moe.experts.%d.w3.weight",
                                             "block_sparse_moe.experts.%d.w2.weight"};
static const char *const qwen_names[3] = {"mlp.experts.%d.gate_proj.weight", "mlp.experts.%d.up_proj.weight",
                                          "mlp.experts.%d.down_proj.weight"};
static const char *const golden[] = {"mixtral", "mixtral_window", "olmoe", "qwen3_moe",
                                     "qwen3_moe_dense_layer"};

static void test_golden_checkpoints_load(void **state) {
    (void)state;
    for (size_t i = 0; i < 5; i++) {
        char folder[512];
        snprintf(folder, sizeof folder, GOLDEN "%s", golden[i]);
        Loaded m = {0};
        Error error = {0};
        if (!load(folder, cpu(), &m, &error)) fail_msg("%s", error.text);
        snprintf(folder, sizeof folder, GOLDEN "%s/model.safetensors", golden[i]);
        TensorSet *set = safetensors_open(folder, &error);
        const char *const *names = i < 2 ? mixtral_names : qwen_names;
        for (int64_t l = 0; l < m.config.n_layers; l++) expect_layer(set, &m, l, names);
        expect_bytes(set, "model.embed_tokens.weight", m.weights.embedding, 0);
        if (m.config.tie_embeddings)
            assert_ptr_equal(m.weights.head.data, m.weights.embedding.data);
        else
            expect_bytes(set, "lm_head.weight", m.weights.head, 0);
        size_t n_bytes = 0;
        for (int64_t k = 0; k < safetensors_count(set); k++) n_bytes += safetensors_entry(set, k)->n_bytes;
        assert_int_equal(m.weights.n_bytes, n_bytes);
        int64_t n_total, n_active;
        model_config_count(&m.config, &n_total, &n_active);
        assert_int_equal((size_t)n_total * dtype_bytes(m.weights.embedding.dtype), n_bytes);
        assert_true(n_active < n_total);
        safetensors_close(set);
        unload(&m);
    }
}

/* ---- the same weights under other names and in other files ---- */
enum { MAX_TENSORS = 512 };

/* Reads a golden checkpoint's tensors; experts fused as transformers 5 saves them. */
static int64_t read_fused(const Loaded *m, const TensorSet *set, NamedTensor *to, char names[][128]) {
    Error error = {0};
    int64_t n = 0;
    for (int64_t i = 0; i < safetensors_count(set); i++) {
        const TensorEntry *entry = safetensors_entry(set, i);
        const char *rest = strstr(entry->name, "block_sparse_moe.gate");
        if (strstr(entry->name, ".experts.")) continue;
        assert_true(n < MAX_TENSORS);
        snprintf(names[n], 128, "%s", entry->name);
        if (rest) snprintf(names[n], 128, "%.*smlp.gate.weight", (int)(rest - entry->name), entry->name);
        to[n].tensor =
            (Tensor){malloc(entry->n_bytes), entry->dtype, entry->n_dims, {entry->shape[0], entry->shape[1]}};
        assert_true(safetensors_read(set, entry, 0, to[n].tensor.data, entry->n_bytes, &error));
        to[n].name = names[n];
        n++;
    }
    for (int64_t l = 0; l < m->config.n_layers; l++) {
        const Tensor fused[2] = {m->weights.layers[l].gate_up, m->weights.layers[l].down};
        for (int k = 0; k < 2; k++, n++) {
            snprintf(names[n], 128, "model.layers.%d.mlp.experts.%s", (int)l,
                     k ? "down_proj" : "gate_up_proj");
            to[n] = (NamedTensor){names[n], fused[k]};
            to[n].tensor.data = memcpy(malloc(tensor_bytes(fused[k])), fused[k].data, tensor_bytes(fused[k]));
        }
    }
    return n;
}

static void expect_same(const Loaded *a, const Loaded *b) {
    assert_int_equal(a->weights.n_bytes, b->weights.n_bytes);
    for (int64_t l = 0; l < a->config.n_layers; l++) {
        const LayerWeights *x = &a->weights.layers[l], *y = &b->weights.layers[l];
        assert_memory_equal(x->gate_up.data, y->gate_up.data, tensor_bytes(x->gate_up));
        assert_memory_equal(x->down.data, y->down.data, tensor_bytes(x->down));
        assert_memory_equal(x->router.data, y->router.data, tensor_bytes(x->router));
        assert_memory_equal(x->query.data, y->query.data, tensor_bytes(x->query));
    }
}

static Comm fake_rank(int rank, int size) {
    Comm comm = comm_alone(NULL);
    comm.rank = rank, comm.size = size;
    return comm;
}

static void expect_slice(Tensor part, Tensor whole, Range experts) {
    const size_t n_bytes = tensor_bytes(whole) / (size_t)whole.shape[0];
    assert_int_equal(part.n_dims, 3);
    assert_int_equal(part.shape[0], experts.n);
    assert_int_equal(part.shape[1], whole.shape[1]);
    assert_int_equal(tensor_bytes(part), (size_t)experts.n * n_bytes);
    assert_memory_equal(part.data, (char *)whole.data + (size_t)experts.first * n_bytes, tensor_bytes(part));
}

/* Each of some ranks has its own experts of every layer, and all of everything else. */
static void expect_ranges(const char *folder, const Loaded *whole) {
    for (int size = 2; size <= 4; size++)
        for (int rank = 0; rank < size; rank++) {
            Comm comm = fake_rank(rank, size);
            Loaded m = {0};
            Error error = {0};
            if (!load_as(folder, cpu(), &comm, &m, &error)) fail_msg("%s", error.text);
            const Range own =
                placement_experts(&(Placement){size, whole->config.n_experts, size, false}, rank);
            size_t less = 0;
            for (int64_t l = 0; l < whole->config.n_layers; l++) {
                const LayerWeights *x = &m.weights.layers[l], *y = &whole->weights.layers[l];
                const bool dense = whole->config.layer_is_dense[l];
                if (dense) {
                    assert_memory_equal(x->gate_up.data, y->gate_up.data, tensor_bytes(y->gate_up));
                    assert_memory_equal(x->down.data, y->down.data, tensor_bytes(y->down));
                    continue;
                }
                expect_slice(x->gate_up, y->gate_up, own);
                expect_slice(x->down, y->down, own);
                assert_memory_equal(x->router.data, y->router.data, tensor_bytes(y->router));
                less += tensor_bytes(y->gate_up) + tensor_bytes(y->down) - tensor_bytes(x->gate_up) -
                        tensor_bytes(x->down);
            }
            assert_true(less > 0);
            assert_int_equal(m.weights.n_bytes, whole->weights.n_bytes - less);
            unload(&m);
        }
}

static char *copy_config(const char *from, const char *to) {
    size_t n;
    Error error = {0};
    char *text = io_read_all(from, 1 << 20, &n, &error);
    scratch_write(to, text, n);
    return text;
}

static void test_fused_names_give_the_same_weights(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) {
        char folder[512], name[64], names[MAX_TENSORS][128];
        NamedTensor tensors[MAX_TENSORS];
        Loaded m = {0}, fused = {0};
        Error error = {0};
        snprintf(folder, sizeof folder, GOLDEN "%s", golden[i]);
        assert_true(load(folder, cpu(), &m, &error));
        TensorSet *set = safetensors_open(folder, &error);
        int64_t n = read_fused(&m, set, tensors, names);
        snprintf(name, sizeof name, "fused%d", i);
        scratch_make_folder(name);
        snprintf(folder, sizeof folder, GOLDEN "%s/config.json", golden[i]);
        snprintf(name, sizeof name, "fused%d/config.json", i);
        mem_free(copy_config(folder, name));
        snprintf(name, sizeof name, "fused%d/model.safetensors", i);
        assert_true(safetensors_write(scratch_path(name), tensors, n, NULL, 0, &error));
        snprintf(name, sizeof name, "fused%d", i);
        if (!load(scratch_path(name), cpu(), &fused, &error)) fail_msg("%s", error.text);
        expect_same(&m, &fused);
        expect_ranges(scratch_path(name), &m);
        snprintf(folder, sizeof folder, GOLDEN "%s", golden[i]);
        expect_ranges(folder, &m);
        for (int64_t k = 0; k < n; k++) free(tensors[k].tensor.data);
        safetensors_close(set);
        unload(&m);
        unload(&fused);
    }
}

static void write_index(const TinyModel *a, const TinyModel *b, const char *name) {
    Text text = {0};
    text_put_string(&text, "{\"metadata\":{\"total_size\":1},\"weight_map\":{");
    for (int k = 0; k < 2; k++)
        for (int64_t i = 0; i < (k ? b : a)->n; i++)
            text_format(&text, "%s\"%s\":\"model-%d.safetensors\"", k || i ? "," : "",
                        (k ? b : a)->tensors[i].name, k);
    text_put_string(&text, "}}");
    scratch_write(name, text.bytes, text.length);
    text_free(&text);
}

static void test_shards_give_the_same_weights(void **state) {
    (void)state;
    TinyModel whole, a, b = {.n = 0};
    Loaded one = {0}, two = {0};
    Error error = {0};
    tiny_make(&whole);
    if (!load(tiny_write(&whole, "one", tiny_config), cpu(), &one, &error)) fail_msg("%s", error.text);
    tiny_make(&a);
    while (a.n > 20) b.tensors[b.n++] = a.tensors[--a.n];
    scratch_make_folder("two");
    scratch_write_text("two/config.json", tiny_config);
    write_index(&a, &b, "two/model.safetensors.index.json");
    assert_true(safetensors_write(scratch_path("two/model-0.safetensors"), a.tensors, a.n, NULL, 0, &error));
    assert_true(safetensors_write(scratch_path("two/model-1.safetensors"), b.tensors, b.n, NULL, 0, &error));
    tiny_free(&a);
    tiny_free(&b);
    if (!load(scratch_path("two"), cpu(), &two, &error)) fail_msg("%s", error.text);
    expect_same(&one, &two);
    unload(&one);
    unload(&two);
}

/* ---- damage ---- */
static void expect_refusal(TinyModel *m, const char *config, ErrorCode code, const char *const *says) {
    Loaded loaded;
    Error error = {0};
    const char *folder = tiny_write(m, "damaged", config);
    if (load(folder, cpu(), &loaded, &error)) fail_msg("accepted, expected \"%s\"", says[0]);
    assert_clean_error(&error, code);
    for (; *says; says++) assert_contains(error.text, *says);
}

#define refuse(model, ...)                                                                                   \
    expect_refusal(model, tiny_config, ERROR_BAD_INPUT, (const char *const[]){__VA_ARGS__, NULL})

static void test_all_misfits_are_listed_by_name(void **state) {
    (void)state;
    TinyModel m;
    tiny_make(&m);
    tiny_remove(&m, "model.layers.1.self_attn.k_proj.weight");
    tiny_remove(&m, "model.layers.0.block_sparse_moe.experts.2.w3.weight");
    tiny_add(&m, "model.layers.2.input_layernorm.weight", 0, TINY_D);
    tiny_add(&m, "stray", 2, 2);
    tiny_find(&m, "lm_head.weight")->tensor =
        tensor_matrix(tiny_find(&m, "lm_head.weight")->tensor.data, DTYPE_F32, 8, 8);
    tiny_find(&m, "model.norm.weight")->tensor.n_dims = 2;
    tiny_find(&m, "model.norm.weight")->tensor.shape[1] = 1;
    tiny_find(&m, "model.layers.0.self_attn.q_proj.weight")->tensor.dtype = DTYPE_I32;
    refuse(&m, "damaged: expected the tensors of a mixtral model: got 2 missing: ",
           "model.layers.1.self_attn.k_proj.weight", "model.layers.0.block_sparse_moe.experts.2.w3.weight",
           "2 extra: ", "model.layers.2.input_layernorm.weight", "stray",
           "2 mis-shaped: ", "lm_head.weight (expected [16,8], got [8,8])",
           "model.norm.weight (expected [8], got [8,1])", "1 of the wrong dtype: ",
           "model.layers.0.self_attn.q_proj.weight (expected F32, BF16 or F16, got I32)");
}

static void test_long_lists_are_bounded(void **state) {
    (void)state;
    TinyModel m;
    tiny_make(&m);
    for (int e = 0; e < TINY_E; e++) {
        for (int w = 1; w <= 3; w++) {
            char name[96];
            snprintf(name, sizeof name, "model.layers.1.block_sparse_moe.experts.%d.w%d.weight", e, w);
            tiny_remove(&m, name);
        }
    }
    refuse(&m, "got 9 missing: ", "experts.0.w1.weight", " and 1 more");
}

static void test_experts_of_one_layer_share_a_dtype(void **state) {
    (void)state;
    TinyModel m;
    tiny_make(&m);
    tiny_find(&m, "model.layers.1.block_sparse_moe.experts.1.w3.weight")->tensor.dtype = DTYPE_BF16;
    refuse(&m, "1 of the wrong dtype: model.layers.1.block_sparse_moe.experts.1.w3.weight (expected f32 as "
               "in the other "
               "experts, got BF16)");
}

static void test_dtypes_may_differ_between_tensors(void **state) {
    (void)state;
    TinyModel m;
    Loaded loaded = {0};
    Error error = {0};
    tiny_make(&m);
    tiny_find(&m, "model.embed_tokens.weight")->tensor.dtype = DTYPE_BF16;
    tiny_find(&m, "model.layers.0.self_attn.q_proj.weight")->tensor.dtype = DTYPE_F16;
    memset(tiny_find(&m, "model.embed_tokens.weight")->tensor.data, 0, TINY_V * TINY_D * 2);
    memset(tiny_find(&m, "model.layers.0.self_attn.q_proj.weight")->tensor.data, 0, 8 * TINY_D * 2);
    if (!load(tiny_write(&m, "mixed", tiny_config), cpu(), &loaded, &error)) fail_msg("%s", error.text);
    assert_int_equal(loaded.weights.embedding.dtype, DTYPE_BF16);
    assert_int_equal(loaded.weights.layers[0].query.dtype, DTYPE_F16);
    assert_int_equal(loaded.weights.layers[1].query.dtype, DTYPE_F32);
    unload(&loaded);
}

static void spoil(TinyModel *m, const char *name, DType dtype, int64_t element, uint32_t bits) {
    Tensor *t = &tiny_find(m, name)->tensor;
    if (dtype != DTYPE_F32) memset(t->data, 0, tensor_bytes(*t));
    t->dtype = dtype;
    if (dtype == DTYPE_F32)
        memcpy((char *)t->data + 4 * element, &bits, 4);
    else
        memcpy((char *)t->data + 2 * element, &(uint16_t){(uint16_t)bits}, 2);
}

static void test_nonfinite_weights_are_named(void **state) {
    (void)state;
    static const struct {
        DType dtype;
        uint32_t bits;
    } values[] = {{DTYPE_F32, 0x7fc00000}, {DTYPE_F32, 0xff800000}, {DTYPE_F32, 0x7f800001},
                  {DTYPE_BF16, 0x7f80},    {DTYPE_BF16, 0xffc0},    {DTYPE_F16, 0x7c00},
                  {DTYPE_F16, 0xfe00}};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        TinyModel m;
        tiny_make(&m);
        spoil(&m, "model.embed_tokens.weight", values[i].dtype, 101, values[i].bits);
        refuse(&m, "model.safetensors: tensor model.embed_tokens.weight: expected finite weights: got NaN or "
                   "infinity at "
                   "element 101");
    }
    TinyModel m;
    tiny_make(&m);
    spoil(&m, "model.layers.1.block_sparse_moe.experts.2.w2.weight", DTYPE_F32, 47, 0x7fc00000);
    refuse(&m, "experts.2.w2.weight (layer 1, expert 2): expected finite weights");
    tiny_make(&m);
    spoil(&m, "model.layers.0.block_sparse_moe.gate.weight", DTYPE_F32, 0, 0x7fc00000);
    refuse(&m, "model.layers.0.block_sparse_moe.gate.weight (layer 0): expected finite weights");
}

/* Of three ranks the last has expert 2. What it alone reads concerns it alone; what is missing, all. */
static void test_a_rank_reads_its_own_experts(void **state) {
    (void)state;
    TinyModel m;
    tiny_make(&m);
    spoil(&m, "model.layers.1.block_sparse_moe.experts.2.w2.weight", DTYPE_F32, 47, 0x7fc00000);
    char *folder = strdup(tiny_write(&m, "own", tiny_config));
    for (int rank = 0; rank < 3; rank++) {
        Comm comm = fake_rank(rank, 3);
        Loaded loaded;
        Error error = {0};
        const bool fine = load_as(folder, cpu(), &comm, &loaded, &error);
        assert_int_equal(fine, rank < 2);
        if (fine) unload(&loaded);
        if (!fine) assert_contains(error.text, "experts.2.w2.weight (layer 1, expert 2): expected finite");
    }
    free(folder);
    tiny_make(&m);
    tiny_remove(&m, "model.layers.1.block_sparse_moe.experts.2.w2.weight");
    Comm comm = fake_rank(0, 3);
    Loaded loaded;
    Error error = {0};
    assert_false(load_as(tiny_write(&m, "own", tiny_config), cpu(), &comm, &loaded, &error));
    assert_contains(error.text, "1 missing: model.layers.1.block_sparse_moe.experts.2.w2.weight");
}

static void test_large_finite_weights_pass(void **state) {
    (void)state;
    static const uint32_t bits[] = {0x7f7fffff, 0xff7fffff, 1, 0x80000000, 0x00800000};
    TinyModel m;
    tiny_make(&m);
    for (int i = 0; i < 5; i++) spoil(&m, "lm_head.weight", DTYPE_F32, i, bits[i]);
    Loaded loaded;
    Error error = {0};
    if (!load(tiny_write(&m, "large", tiny_config), cpu(), &loaded, &error)) fail_msg("%s", error.text);
    unload(&loaded);
}

static void test_tied_embeddings(void **state) {
    (void)state;
    char config[sizeof tiny_config + 40];
    snprintf(config, sizeof config, "%.*s,\"tie_word_embeddings\":true}", (int)sizeof tiny_config - 2,
             tiny_config);
    for (int with_head = 0; with_head < 2; with_head++) {
        TinyModel m;
        Loaded loaded;
        Error error = {0};
        tiny_make(&m);
        if (!with_head) tiny_remove(&m, "lm_head.weight");
        tiny_add(&m, "model.layers.0.self_attn.rotary_emb.inv_freq", 0, 2);
        if (!load(tiny_write(&m, "tied", config), cpu(), &loaded, &error)) fail_msg("%s", error.text);
        assert_ptr_equal(loaded.weights.head.data, loaded.weights.embedding.data);
        unload(&loaded);
    }
    TinyModel m;
    tiny_make(&m);
    tiny_remove(&m, "lm_head.weight");
    tiny_add(&m, "lm_head.weight", TINY_V, TINY_D + 1);
    expect_refusal(&m, config, ERROR_BAD_INPUT,
                   (const char *const[]){"1 mis-shaped: lm_head.weight (expected [16,8], got [16,9])", NULL});
}

static void test_pickles_are_refused(void **state) {
    (void)state;
    static const char *const names[] = {"pickle/pytorch_model.bin", "pickle/pytorch_model.bin.index.json"};
    for (int i = 0; i < 2; i++) {
        scratch_make_folder("pickle");
        scratch_write_text("pickle/config.json", tiny_config);
        const char *path = scratch_write_text(names[i], "x");
        Loaded loaded;
        Error error = {0};
        assert_false(load(scratch_path("pickle"), cpu(), &loaded, &error));
        assert_clean_error(&error, ERROR_BAD_INPUT);
        assert_contains(error.text, "got pytorch_model.bin; convert it to safetensors");
        unlink(path);
    }
    Loaded loaded;
    Error error = {0};
    assert_false(load(scratch_path("pickle"), cpu(), &loaded, &error));
    assert_contains(error.text, "pickle/model.safetensors: expected a readable file");
}

/* ---- plans ---- */
static void test_cost_device_reads_headers_alone(void **state) {
    (void)state;
    TinyModel m;
    Loaded loaded, plan;
    Error error = {0};
    tiny_make(&m);
    spoil(&m, "lm_head.weight", DTYPE_F32, 0, 0x7fc00000);
    const char *folder = tiny_write(&m, "plan", tiny_config);
    assert_true(model_config_read(folder, &loaded.config, &error));
    io_fail_after(0, 0, false);
    assert_true(weights_load(&loaded.config, &cost_device, &loaded.weights, &error));
    int64_t n_calls = io_fail_after(0, 0, false);
    assert_true(n_calls < 12);
    assert_true(model_config_read(folder, &plan.config, &error));
    assert_true(weights_shapes(&plan.config, DTYPE_F32, &cost_device, &plan.weights, &error));
    assert_int_equal(plan.weights.n_bytes, loaded.weights.n_bytes);
    assert_int_equal(plan.weights.layers[1].gate_up.shape[1], 2 * TINY_F);
    assert_true(tensor_present(plan.weights.layers[1].gate_up) && tensor_present(plan.weights.head));
    unload(&plan);
    assert_true(model_config_read(folder, &plan.config, &error));
    assert_true(weights_shapes(&plan.config, DTYPE_BF16, &cost_device, &plan.weights, &error));
    assert_int_equal(2 * plan.weights.n_bytes, loaded.weights.n_bytes);
    unload(&plan);
    unload(&loaded);
}

/* ---- faults ---- */
static bool load_scenario(void *context, Error *error) {
    Loaded loaded;
    bool fine = load(context, cpu(), &loaded, error);
    if (fine) unload(&loaded);
    return fine;
}

static bool shapes_scenario(void *context, Error *error) {
    Loaded loaded;
    if (!model_config_read(context, &loaded.config, error)) return false;
    bool fine = weights_shapes(&loaded.config, DTYPE_F32, &cost_device, &loaded.weights, error);
    if (fine) weights_free(&loaded.weights);
    model_config_free(&loaded.config);
    return fine;
}

static int n_lent_until_failure;
static void *failing_alloc(size_t n_bytes) {
    return n_lent_until_failure-- > 0 ? cpu_device()->alloc(n_bytes) : NULL;
}

static void test_each_fault_is_a_clean_error(void **state) {
    (void)state;
    TinyModel m;
    char folder[512];
    tiny_make(&m);
    snprintf(folder, sizeof folder, "%s", tiny_write(&m, "faults", tiny_config));
    assert_true(fail_each_allocation(load_scenario, folder) > 500);
    assert_true(fail_each_allocation(shapes_scenario, folder) > 100);
    fail_each_file_call(load_scenario, folder, EIO);
    fail_each_file_call(load_scenario, folder, EMFILE);
    Device failing = *cpu_device();
    failing.alloc = failing_alloc;
    for (int k = 0;; k++) {
        Loaded loaded;
        Error error = {0};
        n_lent_until_failure = k;
        if (load(folder, &failing, &loaded, &error)) {
            unload(&loaded);
            assert_true(k > 20);
            break;
        }
        assert_clean_error(&error, ERROR_UNAVAILABLE);
        assert_contains(error.text, "bytes of memory on device");
        assert_true(k < 1000);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_checkpoints_load),
        cmocka_unit_test(test_fused_names_give_the_same_weights),
        cmocka_unit_test(test_shards_give_the_same_weights),
        cmocka_unit_test(test_all_misfits_are_listed_by_name),
        cmocka_unit_test(test_long_lists_are_bounded),
        cmocka_unit_test(test_experts_of_one_layer_share_a_dtype),
        cmocka_unit_test(test_dtypes_may_differ_between_tensors),
        cmocka_unit_test(test_nonfinite_weights_are_named),
        cmocka_unit_test(test_a_rank_reads_its_own_experts),
        cmocka_unit_test(test_large_finite_weights_pass),
        cmocka_unit_test(test_tied_embeddings),
        cmocka_unit_test(test_pickles_are_refused),
        cmocka_unit_test(test_cost_device_reads_headers_alone),
        cmocka_unit_test(test_each_fault_is_a_clean_error),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

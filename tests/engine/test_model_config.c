/* ModelConfig: released configs give the published parameter totals; rotary scaling by reference values;
 * each value that there is no maths for is refused with file, key, expected and got. */
#include "tests/engine/scratch.h"
#include "engine/model_config.h"
#include "engine/weights.h"
#include <errno.h>
#include <math.h>

static const char mixtral_8x7b[] =
    "{\"architectures\":[\"MixtralForCausalLM\"],\"attention_dropout\":0.0,\"bos_token_id\":1,\"eos_token_"
    "id\":2,"
    "\"hidden_act\":\"silu\",\"hidden_size\":4096,\"initializer_range\":0.02,\"intermediate_size\":14336,"
    "\"max_position_embeddings\":32768,\"model_type\":\"mixtral\",\"num_attention_heads\":32,"
    "\"num_experts_per_tok\":2,\"num_hidden_layers\":32,\"num_key_value_heads\":8,\"num_local_experts\":8,"
    "\"output_router_logits\":false,\"rms_norm_eps\":1e-05,\"rope_theta\":1000000.0,\"router_aux_loss_coef\":"
    "0.02,"
    "\"sliding_window\":null,\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\","
    "\"transformers_version\":\"4.36.0.dev0\",\"use_cache\":true,\"vocab_size\":32000}";
static const char qwen3_30b[] =
    "{\"architectures\":[\"Qwen3MoeForCausalLM\"],\"attention_bias\":false,\"attention_dropout\":0.0,"
    "\"bos_token_id\":151643,\"decoder_sparse_step\":1,\"eos_token_id\":151645,\"head_dim\":128,"
    "\"hidden_act\":\"silu\",\"hidden_size\":2048,\"initializer_range\":0.02,\"intermediate_size\":6144,"
    "\"max_position_embeddings\":40960,\"max_window_layers\":48,\"mlp_only_layers\":[],\"model_type\":"
    "\"qwen3_moe\","
    "\"moe_intermediate_size\":768,\"norm_topk_prob\":true,\"num_attention_heads\":32,\"num_experts\":128,"
    "\"num_experts_per_tok\":8,\"num_hidden_layers\":48,\"num_key_value_heads\":4,\"output_router_logits\":"
    "false,"
    "\"rms_norm_eps\":1e-06,\"rope_scaling\":null,\"rope_theta\":1000000.0,\"router_aux_loss_coef\":0.001,"
    "\"sliding_window\":null,\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\",\"use_cache\":true,"
    "\"use_sliding_window\":false,\"vocab_size\":151936}";
static const char olmoe_7b[] =
    "{\"architectures\":[\"OlmoeForCausalLM\"],\"attention_bias\":false,\"attention_dropout\":0.0,\"clip_"
    "qkv\":null,"
    "\"eos_token_id\":50279,\"hidden_act\":\"silu\",\"hidden_size\":2048,\"initializer_range\":0.02,"
    "\"intermediate_size\":1024,\"max_position_embeddings\":4096,\"model_type\":\"olmoe\",\"norm_topk_prob\":"
    "false,"
    "\"num_attention_heads\":16,\"num_experts\":64,\"num_experts_per_tok\":8,\"num_hidden_layers\":16,"
    "\"num_key_value_heads\":16,\"output_router_logits\":false,\"pad_token_id\":1,\"rms_norm_eps\":1e-05,"
    "\"rope_scaling\":null,\"rope_theta\":10000.0,\"router_aux_loss_coef\":0.01,\"tie_word_embeddings\":"
    "false,"
    "\"torch_dtype\":\"bfloat16\",\"use_cache\":true,\"vocab_size\":50304}";

static bool parse(const char *text, ModelConfig *config, Error *error) {
    return model_config_parse(text, strlen(text), "config.json", config, error);
}

/* A config with "key": replaced or added as `json`, NULL to take it away; caller frees. */
static char *with(const char *text, const char *key, const char *json) {
    char quoted[64], *made = calloc(strlen(text) + 1000, 1);
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *at = strstr(text, quoted);
    if (!at) {
        sprintf(made, "%.*s,%s%s}", (int)strlen(text) - 1, text, quoted, json);
        return made;
    }
    const char *end = at + strlen(quoted);
    for (int depth = 0; depth || (*end != ',' && *end != '}'); end++)
        depth += (*end == '[' || *end == '{') - (*end == ']' || *end == '}');
    if (json)
        sprintf(made, "%.*s%s%s%s", (int)(at - text), text, quoted, json, end);
    else
        sprintf(made, "%.*s%s", (int)(at - text), text, *end == ',' ? end + 1 : "\"last\":0}");
    return made;
}

static void refuse(const char *text, const char *key, const char *json, const char *says) {
    char *changed = with(text, key, json);
    ModelConfig config;
    Error error = {0};
    if (parse(changed, &config, &error)) fail_msg("accepted %s %s", key, json);
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, says);
    free(changed);
}

static ModelConfig accept(const char *text, const char *key, const char *json) {
    char *changed = with(text, key, json);
    ModelConfig config;
    Error error = {0};
    if (!parse(changed, &config, &error)) fail_msg("%s %s: %s", key, json ? json : "absent", error.text);
    free(changed);
    return config;
}

static void test_released_totals(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int64_t n_total;
        double active_billions; /* as the model cards say */
    } models[] = {
        {mixtral_8x7b, 46702792704, 12.9}, {qwen3_30b, 30532122624, 3.3}, {olmoe_7b, 6919161856, 1.3}};
    for (int i = 0; i < 3; i++) {
        ModelConfig config;
        Weights weights;
        Error error = {0};
        int64_t n_total, n_active;
        if (!parse(models[i].text, &config, &error)) fail_msg("%s", error.text);
        model_config_count(&config, &n_total, &n_active);
        assert_true(n_total == models[i].n_total);
        assert_true(fabs((double)n_active / 1e9 - models[i].active_billions) < 0.06);
        assert_true(weights_shapes(&config, DTYPE_BF16, &cost_device, &weights, &error));
        assert_true(weights.n_bytes == 2 * (size_t)n_total);
        weights_free(&weights);
        model_config_free(&config);
    }
}

static void test_fields(void **state) {
    (void)state;
    ModelConfig c = accept(qwen3_30b, "unknown_key", "7");
    assert_string_equal(c.family, "qwen3_moe");
    assert_string_equal(c.chat_template, "qwen3");
    assert_string_equal(c.dtype, "bfloat16");
    assert_true(c.n_layers == 48 && c.hidden_size == 2048 && c.n_heads == 32 && c.n_kv_heads == 4 &&
                c.head_size == 128);
    assert_true(c.value_head_size == 128 && c.n_experts == 128 && c.n_experts_per_token == 8 &&
                c.expert_size == 768);
    assert_true(c.dense_size == 6144 && c.n_moe_layers == 48 && !c.tie_embeddings && !c.attention_bias);
    assert_true(c.qk_norm == QK_NORM_HEAD && c.router.order == ROUTER_SOFTMAX_TOPK && c.router.renormalize);
    assert_true(c.router.scale == 1 && c.activation.limit == 0 && c.rope_kind == ROPE_HALVES &&
                c.rope_scale == 1);
    assert_true(c.norm_eps == 1e-6f && c.attention_scale == (float)(1 / sqrt(128.0)) && c.n_rope == 64);
    assert_true(c.bos_token == 151643 && c.n_eos_tokens == 1 && c.eos_tokens[0] == 151645);
    for (int64_t l = 0; l < 48; l++) assert_true(!c.layer_window[l] && !c.layer_is_dense[l]);
    model_config_free(&c);
    c = accept(mixtral_8x7b, "head_dim", "null");
    assert_true(c.head_size == 128 && c.qk_norm == QK_NORM_NONE && c.router.renormalize &&
                c.norm_eps == 1e-5f);
    model_config_free(&c);
    c = accept(olmoe_7b, "num_key_value_heads", "null");
    assert_true(c.n_kv_heads == 16 && c.qk_norm == QK_NORM_PROJECTION && !c.router.renormalize &&
                c.bos_token == -1);
    model_config_free(&c);
}

static void test_defaults_of_the_family(void **state) {
    (void)state;
    ModelConfig c = accept(qwen3_30b, "norm_topk_prob", NULL);
    assert_false(c.router.renormalize);
    model_config_free(&c);
    c = accept(mixtral_8x7b, "rms_norm_eps", NULL);
    assert_true(c.norm_eps == 1e-5f);
    model_config_free(&c);
    ModelConfig with_theta = accept(mixtral_8x7b, "rope_theta", "1e6");
    c = accept(mixtral_8x7b, "rope_theta", NULL);
    for (int64_t i = 0; i < c.n_rope; i++)
        assert_true(c.rope_frequencies[i] == with_theta.rope_frequencies[i]);
    model_config_free(&c);
    model_config_free(&with_theta);
    c = accept(olmoe_7b, "rope_theta", NULL);
    assert_true(c.rope_frequencies[1] == (float)pow(10000, -2.0 / 128));
    model_config_free(&c);
}

static void test_layers(void **state) {
    (void)state;
    ModelConfig c = accept(qwen3_30b, "mlp_only_layers", "[0,47]");
    assert_true(c.layer_is_dense[0] && c.layer_is_dense[47] && !c.layer_is_dense[1] && c.n_moe_layers == 46);
    model_config_free(&c);
    c = accept(qwen3_30b, "decoder_sparse_step", "3");
    for (int64_t l = 0; l < 48; l++) assert_int_equal(c.layer_is_dense[l], (l + 1) % 3 != 0);
    assert_int_equal(c.n_moe_layers, 16);
    model_config_free(&c);
    char *windowed = with(qwen3_30b, "use_sliding_window", "true"),
         *sized = with(windowed, "sliding_window", "512");
    c = accept(sized, "max_window_layers", "40");
    for (int64_t l = 0; l < 48; l++) assert_int_equal(c.layer_window[l], l >= 40 ? 512 : 0);
    model_config_free(&c);
    c = accept(windowed, "max_window_layers", "0");
    assert_int_equal(c.layer_window[0], 4096);
    model_config_free(&c);
    free(windowed);
    free(sized);
    c = accept(qwen3_30b, "sliding_window", "512");
    assert_int_equal(c.layer_window[0], 0);
    model_config_free(&c);
    c = accept(mixtral_8x7b, "sliding_window", "4096");
    for (int64_t l = 0; l < 32; l++) assert_int_equal(c.layer_window[l], 4096);
    model_config_free(&c);
    char *small = with(mixtral_8x7b, "num_hidden_layers", "2");
    char *types = with(small, "layer_types", "[\"full_attention\",\"sliding_attention\"]");
    c = accept(types, "sliding_window", "8");
    assert_true(c.layer_window[0] == 0 && c.layer_window[1] == 8);
    model_config_free(&c);
    free(small);
    free(types);
}

/* ---- rotary embeddings: values by an independent program in double precision ---- */
typedef struct {
    int i;
    double value;
} Frequency;

static void expect_frequencies(const ModelConfig *c, const Frequency *expected, int n) {
    for (int k = 0; k < n; k++)
        if (fabs((double)c->rope_frequencies[expected[k].i] / expected[k].value - 1) > 1e-7)
            fail_msg("[%d]: expected %.9g: got %.9g", expected[k].i, expected[k].value,
                     (double)c->rope_frequencies[expected[k].i]);
}

static void test_rope_kinds(void **state) {
    (void)state;
    static const Frequency llama3[] = {{0, 1.0},
                                       {20, 0.016560440080994446},
                                       {28, 0.003211445994752591},
                                       {30, 0.0013718935677611381},
                                       {33, 0.00031269375038406517},
                                       {36, 7.78465527393245e-05},
                                       {40, 3.428102195952591e-05},
                                       {63, 3.068925988914511e-07}};
    static const Frequency yarn[] = {{0, 1.0},
                                     {22, 0.008659643233600654},
                                     {23, 0.006978305848598663},
                                     {30, 0.001064360981247002},
                                     {40, 4.445698525097307e-05},
                                     {50, 5.133812566142866e-06},
                                     {63, 3.102344401879299e-07}};
    static const Frequency gpt_oss[] = {{0, 1.0},
                                        {8, 0.050813274815461475},
                                        {9, 0.03170569618466377},
                                        {12, 0.006794959489732219},
                                        {17, 0.0001293187012450632},
                                        {20, 1.818833668168956e-05},
                                        {31, 3.0235114281192144e-07}};
    /* both spellings of the same thing */
    ModelConfig c =
        accept(olmoe_7b, "rope_parameters",
               "{\"rope_type\":\"llama3\",\"rope_theta\":500000.0,\"factor\":8.0,\"low_freq_factor\":1.0,"
               "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}");
    expect_frequencies(&c, llama3, 8);
    assert_true(c.rope_scale == 1);
    model_config_free(&c);
    char *theta = with(olmoe_7b, "rope_theta", "500000");
    c = accept(theta, "rope_scaling",
               "{\"type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
               "\"original_max_position_embeddings\":8192}");
    expect_frequencies(&c, llama3, 8);
    model_config_free(&c);
    free(theta);
    char *longer = with(qwen3_30b, "max_position_embeddings", "131072");
    c = accept(longer, "rope_scaling",
               "{\"rope_type\":\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":32768}");
    expect_frequencies(&c, yarn, 7);
    assert_true(fabs((double)c.rope_scale - 1.138629436111989) < 1e-7);
    model_config_free(&c);
    char *head = with(longer, "head_dim", "64");
    c = accept(
        head, "rope_parameters",
        "{\"rope_type\":\"yarn\",\"rope_theta\":150000,\"factor\":32.0,\"beta_fast\":32.0,\"beta_slow\":1.0,"
        "\"truncate\":false,\"original_max_position_embeddings\":4096}");
    expect_frequencies(&c, gpt_oss, 7);
    assert_true(fabs((double)c.rope_scale - 1.3465735902799727) < 1e-7);
    model_config_free(&c);
    free(longer);
    free(head);
    c = accept(mixtral_8x7b, "rope_scaling", "{\"type\":\"linear\",\"factor\":4}");
    for (int64_t i = 0; i < 64; i++)
        assert_true(c.rope_frequencies[i] == (float)(pow(1e6, -2.0 * (double)i / 128) / 4));
    model_config_free(&c);
}

static void test_yarn_attention_factor(void **state) {
    (void)state;
    static const struct {
        const char *more;
        double expected;
    } cases[] = {{"\"attention_factor\":0.5", 0.5},
                 {"\"mscale\":0.707,\"mscale_all_dim\":0.707", 1},
                 {"\"mscale\":1.0,\"mscale_all_dim\":0.707", (0.1 * 3.6888794541139363 + 1) / 1.2608037774},
                 {"\"mscale\":0.707", 0.1 * 3.6888794541139363 + 1}};
    for (int i = 0; i < 4; i++) {
        char json[200];
        snprintf(json, sizeof json,
                 "{\"type\":\"yarn\",\"factor\":40,\"original_max_position_embeddings\":1024,%s}",
                 cases[i].more);
        ModelConfig c = accept(qwen3_30b, "rope_scaling", json);
        assert_true(fabs((double)c.rope_scale - cases[i].expected) < 1e-6);
        model_config_free(&c);
    }
}

static void test_rope_refusals(void **state) {
    (void)state;
    refuse(qwen3_30b, "rope_scaling", "{\"type\":\"dynamic\",\"factor\":2}",
           "config.json: rope_scaling: expected rope type default, linear, llama3 or yarn: got \"dynamic\"");
    refuse(qwen3_30b, "rope_scaling", "{\"rope_type\":\"longrope\"}", "got \"longrope\"");
    refuse(qwen3_30b, "rope_scaling", "{\"rope_type\":\"mrope\"}", "got \"mrope\"");
    refuse(qwen3_30b, "rope_scaling", "{\"rope_type\":\"default\",\"mrope_section\":[1]}",
           "rope_scaling.mrope_section");
    refuse(qwen3_30b, "rope_scaling", "{\"type\":\"linear\"}",
           "rope_scaling.factor: expected a number: got nothing");
    refuse(qwen3_30b, "rope_scaling", "{\"type\":\"linear\",\"factor\":-1}",
           "expected a positive number: got -1");
    refuse(qwen3_30b, "rope_scaling", "{\"type\":\"linear\",\"factor\":1e-300}", "rotary frequencies");
    refuse(qwen3_30b, "rope_scaling", "[1]", "rope_scaling: expected an object or null: got an array");
    refuse(qwen3_30b, "rope_theta", "0", "rope_theta: expected a number above 1: got 0");
    refuse(qwen3_30b, "partial_rotary_factor", "0.5", "partial_rotary_factor: expected one full rotation");
    refuse(qwen3_30b, "rope_parameters", "{\"full_attention\":{\"rope_theta\":1e6}}",
           "rope_parameters.full_attention: expected one full rotation for all layers");
}

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *key, *json, *says;
    } cases[] = {
        {"model_type", "\"llama\"",
         "config.json: model_type: expected a supported family (mixtral, olmoe, qwen3_moe): got \"llama\""},
        {"model_type", "\"../arch/olmoe\"", "expected a supported family"},
        {"model_type", "7", "config.json: model_type: expected a string: got 7"},
        {"architectures", "[\"Qwen3MoeForSequenceClassification\"]",
         "architectures: expected Qwen3MoeForCausalLM: got \"Qwen3MoeForSeq"},
        {"hidden_act", "\"gelu\"",
         "hidden_act: expected \"silu\", the only value that there is maths for: got \"gelu\""},
        {"quantization_config", "{\"quant_method\":\"fp8\"}", "quantization_config: expected none"},
        {"num_hidden_layers", "0", "num_hidden_layers: expected an integer from 1 to 1024: got 0"},
        {"num_hidden_layers", "1e9", "num_hidden_layers: expected an integer from 1 to 1024"},
        {"num_hidden_layers", "2.5", "num_hidden_layers: expected an integer"},
        {"hidden_size", "null", "hidden_size: expected a number: got null"},
        {"hidden_size", "-8", "hidden_size: expected an integer from 1 to"},
        {"vocab_size", "\"x\"", "vocab_size: expected a number: got \"x\""},
        {"num_attention_heads", "30", "num_key_value_heads: expected a divisor of 30 heads: got 4"},
        {"head_dim", "7", "head_dim: expected an even head size of 2 to 4096: got 7"},
        {"num_experts", "1025", "num_experts: expected an integer from 1 to 1024: got 1025"},
        {"num_experts_per_tok", "129", "num_experts_per_tok: expected an integer from 1 to 128: got 129"},
        {"rms_norm_eps", "1e-86", "rms_norm_eps: expected a number between 0 and 1: got 1e-86"},
        {"rms_norm_eps", "0", "rms_norm_eps: expected a number between 0 and 1: got 0"},
        {"norm_topk_prob", "1", "norm_topk_prob: expected true or false: got 1"},
        {"tie_word_embeddings", "\"no\"", "tie_word_embeddings: expected true or false: got \"no\""},
        {"mlp_only_layers", "[48]", "mlp_only_layers[0]: expected an integer from 0 to 47: got 48"},
        {"mlp_only_layers", "7", "mlp_only_layers: expected an array of layers: got a number"},
        {"decoder_sparse_step", "100", "expected at least one layer with experts: got none"},
        {"eos_token_id", "[1,\"x\"]", "eos_token_id[1]: expected a number: got \"x\""},
        {"eos_token_id", "-1", "eos_token_id: expected an integer from 0"},
        {"moe_intermediate_size", "null", "moe_intermediate_size: expected a number: got null"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuse(qwen3_30b, cases[i].key, cases[i].json, cases[i].says);
    refuse(olmoe_7b, "clip_qkv", "8.0",
           "clip_qkv: expected null, the only value that there is maths for: got 8");
    refuse(mixtral_8x7b, "attention_bias", "true", "attention_bias: expected false");
    refuse(mixtral_8x7b, "sliding_window", "0", "sliding_window: expected an integer from 1");
    char *windowed = with(mixtral_8x7b, "sliding_window", "8");
    refuse(windowed, "layer_types", "[\"full_attention\"]",
           "layer_types: expected one entry per layer, 32: got 1");
    free(windowed);
    char *sparse = with(qwen3_30b, "decoder_sparse_step", "2");
    refuse(sparse, "intermediate_size", NULL,
           "config.json: expected intermediate_size, the size of dense layers");
    free(sparse);
}

static void test_absurd_sizes_do_not_overflow(void **state) {
    (void)state;
    char *wide = with(qwen3_30b, "hidden_size", "4194304"),
         *wider = with(wide, "moe_intermediate_size", "4194304");
    refuse(wider, "num_experts", "1024", "config.json: expected at most 1e15 parameters: got");
    free(wide);
    free(wider);
    char *deep = with(qwen3_30b, "num_hidden_layers", "1024");
    refuse(deep, "num_experts", "1000", "config.json: expected at most 131072 experts in all: got 1024000");
    free(deep);
}

static void test_other_texts_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"[]", "config.json: expected an object: got an array"},
        {"{}", "config.json: model_type: expected a string: got nothing"},
        {"{\"model_type\":\"mixtral\"", "config.json:1:24: expected JSON: got the end of the text too early"},
        {"{\"model_type\":\"mixtral\",\"model_type\":\"olmoe\"}", "got \"model_type\" twice"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ModelConfig config;
        Error error = {0};
        assert_false(parse(cases[i].text, &config, &error));
        assert_clean_error(&error, ERROR_BAD_INPUT);
        assert_contains(error.text, cases[i].says);
    }
}

static void test_unsupported_golden_families(void **state) {
    (void)state;
    static const char *const families[] = {"deepseek_v2", "gpt_oss", "gpt_oss_mxfp4", "phimoe", "qwen2_moe"};
    for (int i = 0; i < 5; i++) {
        ModelConfig config;
        Error error = {0};
        char folder[512], says[200];
        snprintf(folder, sizeof folder, SOURCE_DIR "/tests/golden/refused/%s", families[i]);
        assert_false(model_config_read(folder, &config, &error));
        assert_clean_error(&error, ERROR_BAD_INPUT);
        snprintf(
            says, sizeof says,
            "config.json: model_type: expected a supported family (mixtral, olmoe, qwen3_moe): got \"%s\"",
            i == 2 ? "gpt_oss" : families[i]);
        assert_contains(error.text, says);
    }
}

static void test_generation_config_names_the_ends(void **state) {
    (void)state;
    ModelConfig config;
    Error error = {0};
    scratch_make_folder("m");
    scratch_write_text("m/config.json", qwen3_30b);
    assert_true(model_config_read(scratch_path("m"), &config, &error));
    assert_true(config.n_eos_tokens == 1 && !strcmp(config.folder, scratch_path("m")));
    model_config_free(&config);
    scratch_write_text("m/generation_config.json", "{\"eos_token_id\":[151645,151643],\"temperature\":0.6}");
    assert_true(model_config_read(scratch_path("m"), &config, &error));
    assert_true(config.n_eos_tokens == 2 && config.eos_tokens[0] == 151645 && config.eos_tokens[1] == 151643);
    model_config_free(&config);
    scratch_write_text("m/generation_config.json", "{\"eos_token_id\":{}}");
    assert_false(model_config_read(scratch_path("m"), &config, &error));
    assert_contains(error.text, "m/generation_config.json: eos_token_id: expected a number: got an object");
    unlink(scratch_path("m/generation_config.json"));
    error = (Error){0};
    assert_false(model_config_read(scratch_path("nowhere"), &config, &error));
    assert_contains(error.text, "nowhere/config.json: expected a readable file: got \"No such file");
}

static bool parse_scenario(void *context, Error *error) {
    ModelConfig config;
    if (!parse(context, &config, error)) return false;
    model_config_free(&config);
    return true;
}

static bool read_scenario(void *context, Error *error) {
    ModelConfig config;
    if (!model_config_read(context, &config, error)) return false;
    model_config_free(&config);
    return true;
}

static void test_each_fault_is_a_clean_error(void **state) {
    (void)state;
    char *text = with(qwen3_30b, "rope_scaling", "{\"type\":\"yarn\",\"factor\":4}"), folder[512];
    assert_true(fail_each_allocation(parse_scenario, text) > 200);
    free(text);
    scratch_write_text("m/config.json", qwen3_30b);
    scratch_write_text("m/generation_config.json", "{\"eos_token_id\":[151645,151643]}");
    snprintf(folder, sizeof folder, "%s", scratch_path("m"));
    fail_each_allocation(read_scenario, folder);
    fail_each_file_call(read_scenario, folder, EIO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_released_totals),
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_defaults_of_the_family),
        cmocka_unit_test(test_layers),
        cmocka_unit_test(test_rope_kinds),
        cmocka_unit_test(test_yarn_attention_factor),
        cmocka_unit_test(test_rope_refusals),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_absurd_sizes_do_not_overflow),
        cmocka_unit_test(test_other_texts_are_refused),
        cmocka_unit_test(test_unsupported_golden_families),
        cmocka_unit_test(test_generation_config_names_the_ends),
        cmocka_unit_test(test_each_fault_is_a_clean_error),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

/* Prompt files and their encoding with the demo model's tokenizer: what is read, refused, truncated and
 * counted. */
#include "../../analysis/prompts.h"
#include "../engine/scratch.h"
#include <errno.h>

#define DEMO SOURCE_DIR "/configs/demo/model"

static PromptOptions options_for(const char *path) {
    return (PromptOptions){.name = "p", .path = path, .system = "", .target_end = true};
}

static bool parse(const char *path, const char *text, PromptFile *file, Error *error) {
    PromptOptions options = options_for(path);
    return prompts_parse(&options, text, strlen(text), file, error);
}

static void json_lines_become_entries(void **state) {
    (void)state;
    PromptFile file;
    Error error = {0};
    if (!parse("x.jsonl",
               "{\"prompt\": \"One\", \"id\": \"a\", \"topic\": 3}\r\n"
               "\n"
               "{\"messages\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", "
               "\"content\": \"Two\"}],"
               " \"target\": \"T\", \"id\": 7}\n"
               "{\"prompt\": \"Three\", \"target\": null}",
               &file, &error))
        fail_msg("%s", error.text);
    assert_int_equal(file.n, 3);
    assert_string_equal(file.entries[0].id, "a");
    assert_null(file.entries[0].target);
    assert_int_equal(file.entries[1].index, 1);
    assert_int_equal(file.entries[1].line, 3);
    assert_int_equal(file.entries[1].n_messages, 2);
    assert_int_equal(file.entries[1].messages[0].role, ROLE_SYSTEM);
    assert_string_equal(file.entries[1].messages[1].content, "Two");
    assert_string_equal(file.entries[1].target, "T");
    assert_string_equal(file.entries[1].id, "7");
    assert_string_equal(file.entries[2].id, "2");
    assert_int_equal(strlen(file.hash), 64);
    prompts_free(&file);
}

static void tables_become_entries(void **state) {
    (void)state;
    PromptFile file;
    Error error = {0};
    PromptOptions options = options_for("x.csv");
    static const char text[] = "id,prompt,target\na,\"One,\ntwo\",\nb,Three,T\nc,Four,\n";
    options.first = 1;
    options.limit = 1;
    if (!prompts_parse(&options, text, strlen(text), &file, &error)) fail_msg("%s", error.text);
    assert_int_equal(file.n, 1);
    assert_string_equal(file.entries[0].id, "b");
    assert_string_equal(file.entries[0].target, "T");
    assert_int_equal(file.entries[0].index, 1);
    assert_int_equal(file.entries[0].line, 4);
    prompts_free(&file);
    options.first = options.limit = 0;
    assert_true(prompts_parse(&options, text, strlen(text), &file, &error));
    assert_string_equal(file.entries[0].messages[0].content, "One,\ntwo");
    assert_null(file.entries[0].target);
    prompts_free(&file);
}

static void bad_files_are_refused_with_their_line(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        {"x.jsonl", "", "x.jsonl: expected at least one prompt: got none"},
        {"x.jsonl", "{\"prompt\": \"a\"}\n[1]", "x.jsonl:2: expected an object: got an array"},
        {"x.jsonl", "{\"prompt\": \"a\"} x", "x.jsonl:1:"},
        {"x.jsonl", "{\"prompt\": \"a\", \"prompt\": \"b\"}", "x.jsonl:1"},
        {"x.jsonl", "{\"prompt\": 5}", "x.jsonl:1: prompt: expected a string: got 5"},
        {"x.jsonl", "{\"prompt\": \"a\\u0000b\"}", "x.jsonl:1"},
        {"x.jsonl", "{\"prompt\": \"a\xff\"}", "x.jsonl:1"},
        {"x.jsonl", "{\"prompts\": \"a\"}", "got \"prompts\" (did you mean \"prompt\"?)"},
        {"x.jsonl", "{\"prompt\": \"a\", \"targt\": \"b\"}",
         "x.jsonl:1: targt: expected a known column: got \"targt\""},
        {"x.jsonl", "{\"text\": \"a\"}", "x.jsonl:1: expected prompt or messages: got neither"},
        {"x.jsonl", "{\"prompt\": \"a\", \"messages\": []}", "expected prompt or messages: got both"},
        {"x.jsonl", "{\"messages\": []}", "messages: expected an array of 1 to"},
        {"x.jsonl", "{\"messages\": [{\"role\": \"bot\", \"content\": \"a\"}]}",
         "messages[0].role: expected system, user or assistant: got \"bot\""},
        {"x.jsonl", "{\"messages\": [{\"role\": \"user\"}]}",
         "messages[0].content: expected a string: got nothing"},
        {"x.csv", "text\na\n", "prompt"},
        {"x.csv", "prompt,messages\na,b\n", "messages: expected in JSON lines only: got CSV"},
        {"x.csv", "prompt,tarrget\na,b\n", "(did you mean \"target\"?)"},
        {"x.csv", "prompt\n\"a\n", "x.csv:2"},
        {"x.txt", "a\n", "x.txt: expected a name that ends in .jsonl or .csv, or \"format\" in the job"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        PromptFile file;
        Error error = {0};
        assert_false(parse(cases[i][0], cases[i][1], &file, &error));
        assert_clean_error(&error, ERROR_BAD_INPUT);
        assert_contains(error.text, cases[i][2]);
        prompts_free(&file);
    }
}

static void common_prompts_are_found(void **state) {
    (void)state;
    PromptFile a, b;
    Error error = {0};
    assert_true(parse("x.jsonl",
                      "{\"prompt\": \"1\"}\n{\"prompt\": \"2\", \"target\": \"s\"}\n{\"prompt\": \"3\"}", &a,
                      &error));
    assert_true(parse("x.jsonl", "{\"prompt\": \"3\", \"id\": 9}\n{\"prompt\": \"2\", \"target\": \"t\"}", &b,
                      &error));
    int64_t first = -1;
    assert_int_equal(prompts_count_common(&a, &b, false, &first), 2);
    assert_int_equal(first, 1);
    assert_int_equal(prompts_count_common(&a, &b, true, &first), 1);
    assert_int_equal(first, 2);
    prompts_free(&a);
    prompts_free(&b);
}

/* ---- encoding ---- */
typedef struct {
    ModelConfig config;
    ModelOptions options;
    PromptEncoder encoder;
} Demo;

static void open_demo(Demo *demo, const char *chat_template, bool parse_special) {
    Error error = {0};
    demo->options = (ModelOptions){.name = "demo",
                                   .path = DEMO,
                                   .chat_template = chat_template,
                                   .date = "",
                                   .parse_special_in_content = parse_special,
                                   .generation_prompt = true};
    if (!model_config_read(DEMO, &demo->config, &error)) fail_msg("%s", error.text);
    if (!prompt_encoder_open(&demo->options, &demo->config, &demo->encoder, &error))
        fail_msg("%s", error.text);
}

static void close_demo(Demo *demo) {
    prompt_encoder_close(&demo->encoder);
    model_config_free(&demo->config);
}

static bool encode(const Demo *demo, PromptOptions options, EncodeNeeds needs, const char *text,
                   PromptGroup *group, Error *error) {
    static PromptOptions kept;
    kept = options;
    PromptFile file;
    if (!prompts_parse(&kept, text, strlen(text), &file, error)) fail_msg("%s", error->text);
    return prompts_encode(&demo->encoder, &kept, needs, &file, group, error);
}

static int64_t encode_plain(const Demo *demo, const char *text, int32_t *ids, int64_t capacity) {
    TokenList list = {0};
    Error error = {0};
    assert_true(
        tokenizer_encode(demo->encoder.tokenizer, text, strlen(text), (EncodeOptions){0}, &list, &error));
    int64_t n = list.n;
    assert_true(n <= capacity);
    memcpy(ids, list.ids, (size_t)n * sizeof *ids);
    token_list_free(&list);
    return n;
}

static void a_prompt_is_rendered_with_its_template(void **state) {
    (void)state;
    Demo demo;
    PromptGroup group;
    Error error = {0};
    int32_t want[100], reply[100];
    open_demo(&demo, "phi35moe", true);
    if (!encode(&demo, options_for("x.jsonl"), (EncodeNeeds){.target = true},
                "{\"prompt\": \"How do I wake the moss?\", \"target\": \"Gladly.\"}", &group, &error))
        fail_msg("%s", error.text);
    const EncodedPrompt *p = &group.prompts[0];
    int64_t n = encode_plain(&demo, "<|user|>\nHow do I wake the moss?<|end|>\n<|assistant|>\n", want, 100);
    assert_int_equal(p->n_prompt, n);
    assert_memory_equal(p->tokens, want, (size_t)n * sizeof *want);
    assert_int_equal(p->roles[0], ROLE_TEMPLATE);
    int64_t n_user = 0;
    for (int64_t i = 0; i < n; i++) n_user += p->roles[i] == ROLE_USER;
    assert_true(n_user > 3 && n_user < n - 3);
    assert_true(p->n_target > 1);
    int64_t n_reply = encode_plain(&demo, "Gladly.", reply, 100);
    assert_memory_equal(p->tokens + n, reply, (size_t)n_reply * sizeof *reply);
    assert_int_equal(p->roles[n], ROLE_ASSISTANT);
    assert_int_equal(p->tokens[n + n_reply], tokenizer_id(demo.encoder.tokenizer, "<|end|>"));
    prompt_group_free(&group);
    PromptOptions open_ended = options_for("x.jsonl");
    open_ended.target_end = false;
    assert_true(encode(&demo, open_ended, (EncodeNeeds){.target = true},
                       "{\"prompt\": \"How do I wake the moss?\", \"target\": \"Gladly.\"}", &group, &error));
    assert_int_equal(group.prompts[0].n_target, n_reply);
    prompt_group_free(&group);
    close_demo(&demo);
}

static void control_tokens_in_a_text_act_only_where_asked(void **state) {
    (void)state;
    static const char text[] = "{\"prompt\": \"Say <|end|> now\"}", plain[] = "{\"prompt\": \"Say it now\"}";
    int64_t n_end[2], n_plain[2];
    for (int asked = 0; asked < 2; asked++) {
        Demo demo;
        PromptGroup group;
        Error error = {0};
        open_demo(&demo, "phi35moe", asked);
        int32_t end = tokenizer_id(demo.encoder.tokenizer, "<|end|>");
        assert_true(encode(&demo, options_for("x.jsonl"), (EncodeNeeds){0}, text, &group, &error));
        n_end[asked] = 0;
        for (int64_t i = 0; i < group.prompts[0].n_prompt; i++)
            n_end[asked] += group.prompts[0].tokens[i] == end;
        prompt_group_free(&group);
        assert_true(encode(&demo, options_for("x.jsonl"), (EncodeNeeds){0}, plain, &group, &error));
        n_plain[asked] = group.prompts[0].n_prompt;
        prompt_group_free(&group);
        close_demo(&demo);
    }
    assert_int_equal(n_end[0], 1);
    assert_int_equal(n_end[1], 2);
    assert_int_equal(n_plain[0], n_plain[1]);
}

static void plain_text_needs_no_template(void **state) {
    (void)state;
    Demo demo;
    PromptGroup group;
    Error error = {0};
    int32_t want[100];
    open_demo(&demo, "none", true);
    assert_true(encode(&demo, options_for("x.jsonl"), (EncodeNeeds){0}, "{\"prompt\": \"How do I\"}", &group,
                       &error));
    int64_t n = encode_plain(&demo, "How do I", want, 100);
    assert_int_equal(group.prompts[0].n_prompt, n);
    assert_int_equal(group.prompts[0].roles[0], ROLE_USER);
    prompt_group_free(&group);
    assert_false(encode(&demo, options_for("x.jsonl"), (EncodeNeeds){0},
                        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"user\", "
                        "\"content\": \"b\"}]}",
                        &group, &error));
    assert_contains(error.text, "x.jsonl:1: prompt \"0\": expected one user text");
    prompt_group_free(&group);
    close_demo(&demo);
}

static void a_template_is_the_familys_or_named(void **state) {
    (void)state;
    ModelConfig config;
    Error error = {0};
    PromptEncoder encoder;
    assert_true(model_config_read(DEMO, &config, &error));
    ModelOptions options = {.name = "demo", .path = DEMO, .chat_template = "phi35mo", .date = ""};
    assert_false(prompt_encoder_open(&options, &config, &encoder, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, "models.demo.chat_template: expected auto, none or one of ");
    assert_contains(error.text, "(did you mean \"phi35moe\"?)");
    error = (Error){0};
    options.chat_template = "auto";
    char *own = config.chat_template;
    config.chat_template = NULL;
    assert_false(prompt_encoder_open(&options, &config, &encoder, &error));
    assert_contains(error.text, "family mixtral has no usual one");
    config.chat_template = own;
    error = (Error){0};
    options.chat_template = "none";
    config.vocab_size = 700;
    assert_false(prompt_encoder_open(&options, &config, &encoder, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(
        error.text,
        "expected a tokenizer of at most 700 tokens, as the model's vocab_size says: got one of 768");
    model_config_free(&config);
}

static void long_and_empty_prompts_are_treated_as_asked(void **state) {
    (void)state;
    static const char text[] =
        "{\"prompt\": \"How do I wake the moss libraries at noon?\", \"id\": \"long\"}\n"
        "{\"prompt\": \"\", \"id\": \"none\"}\n{\"prompt\": \"Hi\", \"id\": \"short\"}";
    Demo demo;
    PromptGroup group, whole;
    Error error = {0};
    PromptOptions options = options_for("x.jsonl");
    open_demo(&demo, "none", true);
    assert_false(encode(&demo, options, (EncodeNeeds){0}, text, &group, &error));
    assert_contains(error.text,
                    "x.jsonl:2: prompt \"none\": expected a text (empty: refuse): got an empty prompt");
    prompt_group_free(&group);
    error = (Error){0};
    options.empty = EMPTY_SKIP;
    assert_true(encode(&demo, options, (EncodeNeeds){0}, text, &whole, &error));
    assert_int_equal(whole.n, 2);
    assert_int_equal(whole.n_left_out, 1);
    assert_int_equal(whole.n_truncated, 0);
    int64_t n = whole.prompts[0].n_prompt;
    assert_true(n > 6);
    options.max_tokens = 6;
    assert_false(encode(&demo, options, (EncodeNeeds){0}, text, &group, &error));
    assert_contains(error.text,
                    "x.jsonl:1: prompt \"long\": expected at most 6 tokens (over_long: refuse): got ");
    prompt_group_free(&group);
    error = (Error){0};
    for (int left = 0; left < 2; left++) {
        options.over_long = left ? OVER_LONG_TRUNCATE_LEFT : OVER_LONG_TRUNCATE_RIGHT;
        assert_true(encode(&demo, options, (EncodeNeeds){.n_reserved = 1}, text, &group, &error));
        assert_int_equal(group.n_truncated, 1);
        assert_true(group.prompts[0].truncated && !group.prompts[1].truncated);
        assert_int_equal(group.prompts[0].n_prompt, 5);
        assert_memory_equal(group.prompts[0].tokens, whole.prompts[0].tokens + (left ? n - 5 : 0),
                            5 * sizeof(int32_t));
        prompt_group_free(&group);
    }
    options.over_long = OVER_LONG_SKIP;
    assert_true(encode(&demo, options, (EncodeNeeds){0}, text, &group, &error));
    assert_int_equal(group.n, 1);
    assert_int_equal(group.n_left_out, 2);
    assert_string_equal(group.prompts[0].entry->id, "short");
    prompt_group_free(&group);
    assert_false(encode(&demo, options, (EncodeNeeds){.target = true}, text, &group, &error));
    assert_contains(error.text, "expected a target, since the step is about targets: got none");
    prompt_group_free(&group);
    error = (Error){0};
    assert_false(encode(&demo, options, (EncodeNeeds){.n_prompt_least = 50}, text, &group, &error));
    assert_contains(error.text, "x.jsonl: expected at least one prompt that is not left out: got none of 3");
    prompt_group_free(&group);
    prompt_group_free(&whole);
    close_demo(&demo);
}

/* ---- faults ---- */
typedef struct {
    const Demo *demo;
    const char *path;
} Fault;

static bool read_and_encode(void *context, Error *error) {
    const Fault *fault = context;
    PromptOptions options = options_for(fault->path);
    PromptFile file;
    PromptGroup group = {0};
    bool ok =
        prompts_read(&options, &file, error) &&
        prompts_encode(&fault->demo->encoder, &options, (EncodeNeeds){.target = true}, &file, &group, error);
    prompts_free(&file);
    prompt_group_free(&group);
    return ok;
}

static void memory_and_disk_may_fail_anywhere(void **state) {
    (void)state;
    Demo demo;
    open_demo(&demo, "phi35moe", false);
    Fault fault = {
        &demo,
        scratch_write_text("faults.jsonl",
                           "{\"prompt\": \"a <|end|>\", \"target\": \"b\"}\n"
                           "{\"messages\": [{\"role\": \"user\", \"content\": \"c\"}], \"target\": \"d\"}")};
    int64_t n_failed = 0;
    for (int64_t k = 1; k <= 160; k++) { /* the tokenizer can do without its cache: success is fine too */
        Error error = {0};
        mem_fail_after(k, true);
        bool ok = read_and_encode(&fault, &error);
        mem_fail_after(0, false);
        if (!ok) assert_clean_error(&error, ERROR_UNAVAILABLE);
        n_failed += !ok;
    }
    assert_true(n_failed > 40);
    assert_true(fail_each_file_call(read_and_encode, &fault, EIO) > 4);
    close_demo(&demo);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_lines_become_entries),
        cmocka_unit_test(tables_become_entries),
        cmocka_unit_test(bad_files_are_refused_with_their_line),
        cmocka_unit_test(common_prompts_are_found),
        cmocka_unit_test(a_prompt_is_rendered_with_its_template),
        cmocka_unit_test(control_tokens_in_a_text_act_only_where_asked),
        cmocka_unit_test(plain_text_needs_no_template),
        cmocka_unit_test(a_template_is_the_familys_or_named),
        cmocka_unit_test(long_and_empty_prompts_are_treated_as_asked),
        cmocka_unit_test(memory_and_disk_may_fail_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

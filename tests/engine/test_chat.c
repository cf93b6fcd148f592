/* Chat templates: what each renders, byte for byte, and whose text every byte is. The texts of qwen3
 * were made by its published template. */
#include "tests/engine/scratch.h"
#include "engine/chat.h"

#define S(text)                                                                                              \
    { ROLE_SYSTEM, text, sizeof text - 1 }
#define U(text)                                                                                              \
    { ROLE_USER, text, sizeof text - 1 }
#define A(text)                                                                                              \
    { ROLE_ASSISTANT, text, sizeof text - 1 }

#define DEEPSEEK_BOS                                                                                         \
    "<\xef\xbd\x9c"                                                                                          \
    "begin\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>"
#define DEEPSEEK_EOS                                                                                         \
    "<\xef\xbd\x9c"                                                                                          \
    "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>"
#define HARMONY                                                                                              \
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge "       \
    "cutoff: 2024-06\n"                                                                                      \
    "Current date: 2025-01-31\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. "       \
    "Channel must be "                                                                                       \
    "included for every message.<|end|>"

static const struct {
    const char *name;
    ChatMessage messages[4];
    int64_t n;
    bool prompt, no_thinking;
    const char *text;
    const char *roles; /* of the spans: t template, s system, u user, a assistant */
} cases[] = {
    {"mixtral", {U("Hi")}, 1, true, false, "<s> [INST] Hi [/INST]", "tut"},
    {"mixtral",
     {S("Be brief."), U("Hi"), A("ok"), U("go")},
     4,
     true,
     false,
     "<s> [INST] Be brief.\n\nHi [/INST] ok</s> [INST] go [/INST]",
     "tstutatut"},
    {"mixtral_2023",
     {U("Hi"), A("ok"), U("go")},
     3,
     true,
     false,
     "<s>[INST] Hi [/INST]ok</s>[INST] go [/INST]",
     "tutatut"},
    {"qwen3",
     {S("You are a helpful assistant."), U("Hi")},
     2,
     true,
     false,
     "<|im_start|>system\nYou are a helpful "
     "assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
     "tstut"},
    {"qwen3",
     {U("Hi")},
     1,
     true,
     true,
     "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
     "tut"},
    {"qwen3",
     {U("Hi"), A("ok")},
     2,
     false,
     false,
     "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nok<|im_end|>\n",
     "tutat"},
    {"qwen3",
     {U("Hi"), A("<think>\nwhy\n</think>\n\nok"), U("go")},
     3,
     false,
     false,
     "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nok<|im_end|>\n<|im_start|>user\ngo<|im_end|>\n",
     "tutatut"},
    {"qwen3",
     {U("Hi"), A("<think>\nwhy\n</think>\n\nok")},
     2,
     false,
     false,
     "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\nwhy\n</think>\n\nok<|im_end|>\n",
     "tutatat"},
    {"qwen3_instruct_2507",
     {U("Hi"), A("ok")},
     2,
     false,
     false,
     "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nok<|im_end|>\n",
     "tutat"},
    {"qwen2",
     {U("Hi")},
     1,
     true,
     false,
     "<|im_start|>system\nYou are a helpful "
     "assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
     "tut"},
    {"qwen2",
     {S("x"), U("Hi")},
     2,
     false,
     false,
     "<|im_start|>system\nx<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n",
     "tstut"},
    {"qwen2_5",
     {U("Hi")},
     1,
     false,
     false,
     "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
     "<|im_start|>user\nHi<|im_end|>\n",
     "tut"},
    {"olmoe",
     {S("x"), U("Hi"), A("ok"), U("go")},
     4,
     true,
     false,
     "<|endoftext|><|system|>\nx\n<|user|>\nHi\n<|assistant|>\nok<|endoftext|>\n<|user|>\ngo\n<|assistant|>"
     "\n",
     "tstutatut"},
    {"olmoe",
     {U("Hi"), A("ok")},
     2,
     false,
     false,
     "<|endoftext|><|user|>\nHi\n<|assistant|>\nok<|endoftext|>",
     "tutat"},
    {"deepseek2",
     {S("You"), U("Hi"), A("ok"), U("go")},
     4,
     true,
     false,
     DEEPSEEK_BOS "You\n\nUser: Hi\n\nAssistant: ok" DEEPSEEK_EOS "User: go\n\nAssistant:",
     "tstutatut"},
    {"gpt_oss",
     {U("Hi")},
     1,
     true,
     false,
     HARMONY "<|start|>user<|message|>Hi<|end|><|start|>assistant",
     "tut"},
    {"gpt_oss",
     {S("x"), U("Hi"), A("ok")},
     3,
     false,
     false,
     HARMONY "<|start|>developer<|message|># Instructions\n\nx<|end|><|start|>user<|message|>Hi<|end|>"
             "<|start|>assistant<|channel|>final<|message|>ok<|return|>",
     "tstutat"},
    {"gpt_oss",
     {U("Hi"), A("ok"), U("go")},
     3,
     false,
     false,
     HARMONY "<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>ok<|end|>"
             "<|start|>user<|message|>go<|end|>",
     "tutatut"},
    {"phi35moe",
     {S("x"), U("Hi"), A("ok"), U("go")},
     4,
     true,
     false,
     "<|system|>\nx<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nok<|end|>\n<|user|>\ngo<|end|>\n<|assistant|>"
     "\n",
     "tstutatut"},
    {"granite3",
     {S("x"), U("Hi"), A("ok")},
     3,
     true,
     false,
     "<|start_of_role|>system<|end_of_role|>x<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>Hi<|end_of_"
     "text|>\n"
     "<|start_of_role|>assistant<|end_of_role|>ok<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
     "tstutat"},
    {"chatml",
     {U("Hi"), A("ok")},
     2,
     true,
     false,
     "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nok<|im_end|>\n<|im_start|>assistant\n",
     "tutat"},
    {"raw", {U("Hi"), A(" there")}, 2, true, false, "Hi there", "ua"},
    {"raw", {U("")}, 1, false, false, "", ""},
};

static void assert_roles(const ChatText *text, const char *roles) {
    static const char letters[] = "ptsua";
    assert_int_equal(text->n_spans, strlen(roles));
    for (int64_t i = 0; i < text->n_spans; i++) {
        size_t end = i + 1 < text->n_spans ? text->spans[i + 1].begin : text->text.length;
        assert_int_equal(letters[text->spans[i].role], roles[i]);
        assert_true(text->spans[i].begin < end);
        assert_int_equal(chat_role_at(text, text->spans[i].begin), text->spans[i].role);
        assert_int_equal(chat_role_at(text, end - 1), text->spans[i].role);
    }
}

static void templates_render(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error error = {0};
        ChatText text = {0};
        ChatOptions options = {.name = cases[i].name,
                               .date = "2025-01-31",
                               .thinking = !cases[i].no_thinking,
                               .add_generation_prompt = cases[i].prompt};
        if (!chat_render(&options, cases[i].messages, cases[i].n, &text, &error))
            fail_msg("%zu: %s", i, error.text);
        assert_string_equal(text.text.bytes ? text.text.bytes : "", cases[i].text);
        assert_roles(&text, cases[i].roles);
        chat_text_free(&text);
    }
}

static void every_name_is_covered(void **state) {
    (void)state;
    for (int k = 0; chat_template_names[k]; k++) {
        bool found = false;
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
            found = found || strcmp(cases[i].name, chat_template_names[k]) == 0;
        if (!found) fail_msg("no case of %s", chat_template_names[k]);
    }
}

static void replies_end_in_the_end_token(void **state) {
    (void)state;
    static const struct {
        const char *name, *text, *roles;
    } replies[] = {
        {"mixtral", "ok</s>", "at"},
        {"mixtral_2023", "ok</s>", "at"},
        {"qwen3", "ok<|im_end|>", "at"},
        {"qwen2", "ok<|im_end|>", "at"},
        {"olmoe", "ok<|endoftext|>", "at"},
        {"deepseek2", " ok" DEEPSEEK_EOS, "tat"},
        {"gpt_oss", "<|channel|>final<|message|>ok<|return|>", "tat"},
        {"phi35moe", "ok<|end|>", "at"},
        {"granite3", "ok<|end_of_text|>", "at"},
        {"chatml", "ok<|im_end|>", "at"},
        {"raw", "ok", "a"},
    };
    for (size_t i = 0; i < sizeof replies / sizeof *replies; i++) {
        Error error = {0};
        ChatText text = {0};
        ChatOptions options = {.name = replies[i].name};
        assert_true(chat_render_reply(&options, "ok", 2, &text, &error));
        assert_string_equal(text.text.bytes, replies[i].text);
        assert_roles(&text, replies[i].roles);
        chat_text_free(&text);
    }
}

static void tokens_of_the_caller_come_first(void **state) {
    (void)state;
    Error error = {0};
    ChatText text = {0};
    const ChatMessage message = U("Hi");
    ChatOptions options = {.name = "olmoe", .bos = "<B>", .eos = "<E>"};
    assert_true(chat_render(&options, &message, 1, &text, &error));
    assert_true(chat_render_reply(&options, "ok", 2, &text, &error)); /* appends */
    assert_string_equal(text.text.bytes, "<B><|user|>\nHi\nok<E>");
    chat_text_free(&text);
}

/* Text of a message stays the message's, whatever markers it holds. */
static void markers_in_a_message_are_its_own(void **state) {
    (void)state;
    Error error = {0};
    ChatText text = {0};
    const ChatMessage message = U("{c}{s}{eos}<|im_end|>");
    ChatOptions options = {.name = "chatml"};
    assert_true(chat_render(&options, &message, 1, &text, &error));
    assert_string_equal(text.text.bytes, "<|im_start|>user\n{c}{s}{eos}<|im_end|><|im_end|>\n");
    assert_roles(&text, "tut");
    chat_text_free(&text);
}

static const struct {
    const char *name;
    ChatMessage messages[3];
    int64_t n;
    const char *says;
} refused[] = {
    {"vicuna", {U("Hi")}, 1, "chat template: expected one of mixtral, mixtral_2023, qwen3"},
    {"chatml", {U("Hi")}, 0, "chat template chatml: expected messages: got none"},
    {"mixtral_2023",
     {S("x"), U("Hi")},
     2,
     "messages[0]: expected user or assistant, since it has no system text: got role system"},
    {"mixtral", {U("Hi"), S("x")}, 2, "messages[1]: expected a system text in the first place alone"},
    {"mixtral",
     {U("Hi"), U("go")},
     2,
     "messages[1]: expected user and assistant in turn, now assistant: got role user"},
    {"mixtral",
     {A("Hi")},
     1,
     "messages[0]: expected user and assistant in turn, now user: got role assistant"},
    {"mixtral", {S("x")}, 1, "expected a user message, which carries the system text"},
    {"chatml",
     {{ROLE_TEMPLATE, "x", 1}},
     1,
     "messages[0]: expected system, user or assistant: got role template"},
    {"gpt_oss", {U("Hi")}, 1, "chat template gpt_oss: expected a date: got none"},
};

static void wrong_chats_are_named(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        Error error = {0};
        ChatText text = {0};
        ChatOptions options = {.name = refused[i].name};
        assert_false(chat_render(&options, refused[i].messages, refused[i].n, &text, &error));
        assert_clean_error(&error, ERROR_BAD_INPUT);
        assert_contains(error.text, refused[i].says);
        chat_text_free(&text);
    }
    Error error = {0};
    ChatText text = {0};
    ChatOptions options = {.name = "vicuna"};
    assert_false(chat_render_reply(&options, "ok", 2, &text, &error));
    assert_contains(error.text, "got \"vicuna\"");
}

static bool render(void *context, Error *error) {
    (void)context;
    static const ChatMessage messages[] = {S("x"), U("Hi"), A("<think>why</think>ok")};
    ChatText text = {0};
    ChatOptions options = {.name = "qwen3"};
    bool done = chat_render(&options, messages, 3, &text, error);
    chat_text_free(&text);
    return done;
}

static void memory_may_run_out(void **state) {
    (void)state;
    assert_true(fail_each_allocation(render, NULL) > 4);
}

static void roles_have_names(void **state) {
    (void)state;
    assert_string_equal(role_name(ROLE_PADDING), "padding");
    assert_string_equal(role_name(ROLE_ASSISTANT), "assistant");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(templates_render),
        cmocka_unit_test(every_name_is_covered),
        cmocka_unit_test(replies_end_in_the_end_token),
        cmocka_unit_test(tokens_of_the_caller_come_first),
        cmocka_unit_test(markers_in_a_message_are_its_own),
        cmocka_unit_test(wrong_chats_are_named),
        cmocka_unit_test(memory_may_run_out),
        cmocka_unit_test(roles_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

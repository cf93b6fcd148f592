/* The tokenizer against vectors of the Hugging Face library: two small tokenizers of our own, pieces of
 * pre-tokenizers, and, where GATETAPE_TOKENIZERS names a folder of them, four published ones. Then what
 * no vector shows: starts, BOS rules, broken files and texts with their messages, long words, threads,
 * memory that runs out. */
#include "tests/engine/scratch.h"
#include "engine/tokenizer.h"
#include "engine/tokenizer_parts.h"
#include "engine/tokenizer_unicode.h"
#include "tests/engine/vectors.h"
#include <pthread.h>
#include <time.h>
#include <utf8proc.h>

#define DATA SOURCE_DIR "/tests/data/tokenizers/"

static Tokenizer *open_small(const char *name) {
    Error error = {0};
    char path[1000];
    snprintf(path, sizeof path, DATA "%s", name);
    Tokenizer *tokenizer = tokenizer_open(path, &error);
    if (!tokenizer) fail_msg("%s", error.text);
    return tokenizer;
}

static char *read_text(const char *path) {
    Error error = {0};
    size_t n;
    char *text = io_read_all(path, 1 << 30, &n, &error);
    if (!text) fail_msg("%s", error.text);
    return text;
}

static TokenList encode(const Tokenizer *tokenizer, const char *text, size_t length, EncodeOptions options) {
    Error error = {0};
    TokenList list = {0};
    if (!tokenizer_encode(tokenizer, text, length, options, &list, &error)) fail_msg("%s", error.text);
    return list;
}

static void assert_ids(const TokenList *list, const int32_t *ids, int64_t n) {
    assert_int_equal(list->n, n);
    assert_memory_equal(list->ids, ids, (size_t)n * sizeof *ids);
}

/* ---- vectors ---- */
typedef struct {
    const Tokenizer *tokenizer;
    const char *prefix; /* of the sections to look at */
    long n_checked, n_different;
} Comparison;

static void check_vector(const Vector *vector, void *context) {
    Comparison *comparison = context;
    Error error = {0};
    if (strcmp(vector->section, comparison->prefix) != 0) return;
    EncodeOptions options = {.add_special =
                                 !strstr(vector->section, "plain") && !strstr(vector->section, "added") &&
                                 (!strstr(vector->section, "chat") || strstr(vector->section, "double"))};
    TokenList list = {0};
    Text decoded = {0};
    comparison->n_checked++;
    bool done = tokenizer_encode(comparison->tokenizer, vector->text.bytes, vector->text.length, options,
                                 &list, &error) &&
                tokenizer_decode(comparison->tokenizer, vector->ids, vector->n_ids, true, &decoded, &error);
    bool same = done && list.n == vector->n_ids && decoded.length == vector->decoded.length &&
                (!list.n || memcmp(list.ids, vector->ids, (size_t)list.n * sizeof *list.ids) == 0) &&
                (!decoded.length || memcmp(decoded.bytes, vector->decoded.bytes, decoded.length) == 0);
    for (int64_t i = 1; same && i < list.n; i++) same = list.starts[i] >= list.starts[i - 1];
    if (!same) {
        comparison->n_different++;
        print_message("line %ld (%s): %s\n", vector->line, vector->section,
                      done ? "ids or text differ" : error.text);
    }
    token_list_free(&list);
    text_free(&decoded);
}

static void compare(const Tokenizer *tokenizer, const char *file, const char *section, long n_expected) {
    char path[1000];
    snprintf(path, sizeof path, DATA "%s", file);
    Comparison comparison = {.tokenizer = tokenizer, .prefix = section};
    vectors_each(path, check_vector, &comparison);
    assert_int_equal(comparison.n_checked, n_expected);
    assert_int_equal(comparison.n_different, 0);
}

static void small_tokenizers_agree(void **state) {
    (void)state;
    Tokenizer *tokenizer = open_small("byte_level");
    assert_int_equal(tokenizer_size(tokenizer), 645);
    compare(tokenizer, "byte_level.txt", "byte_level", 134);
    tokenizer_free(tokenizer);
    tokenizer = open_small("byte_fallback");
    compare(tokenizer, "byte_fallback.txt", "byte_fallback", 134);
    tokenizer_free(tokenizer);
}

/* ---- published tokenizers ---- */
/* GATETAPE_TOKENIZERS/NAME/tokenizer.json, unpacked where need be; NULL where the folder is not there. */
static char *published_json(const char *name) {
    const char *folder = getenv("GATETAPE_TOKENIZERS");
    char path[1200], command[2600];
    if (!folder) return NULL;
    snprintf(path, sizeof path, "%s/%s/tokenizer.json", folder, name);
    if (io_exists(path)) return read_text(path);
    snprintf(path, sizeof path, "%s/%s/tokenizer.json.xz", folder, name);
    snprintf(command, sizeof command, "xz -dc '%s' > '%s'", path, scratch_path("unpacked.json"));
    if (!io_exists(path) || system(command) != 0) fail_msg("expected %s", path);
    return read_text(scratch_path("unpacked.json"));
}

/* A copy in which the text `from`, present once at least, is `to` at its first place. */
static char *with_change(const char *json, const char *from, const char *to) {
    const char *at = strstr(json, from);
    if (!at) fail_msg("expected %s in the file", from);
    Text text = {0};
    text_put(&text, json, (size_t)(at - json));
    text_put_string(&text, to);
    text_put_string(&text, at + strlen(from));
    return text.bytes;
}

/* A copy with another value of a member whose value is an object (or null). */
static char *with_member(const char *json, const char *key, const char *value) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *at = strstr(json, quoted), *end;
    if (!at) fail_msg("expected %s in the file", quoted);
    at += strlen(quoted);
    while (*at == ' ') at++;
    int depth = 0;
    for (end = at; depth || (*end != ',' && *end != '}'); end++)
        depth += (*end == '{' || *end == '[') - (*end == '}' || *end == ']');
    Text text = {0};
    text_put(&text, json, (size_t)(at - json));
    text_put_string(&text, value);
    text_put_string(&text, end);
    return text.bytes;
}

static Tokenizer *from_text(char *json) {
    Error error = {0};
    Tokenizer *tokenizer = tokenizer_from_json(json, strlen(json), "test", &error);
    if (!tokenizer) fail_msg("%s", error.text);
    mem_free(json);
    return tokenizer;
}

#define REAL "real_vectors.txt"

static const char added_tokens[] =
    "\"added_tokens\": ["
    "{\"id\":32000,\"content\":\"<|user|>\",\"rstrip\":true,\"special\":true,\"normalized\":false},"
    "{\"id\":32001,\"content\":\"<tag>\",\"normalized\":true,\"special\":false},"
    "{\"id\":32002,\"content\":\"<|left|>\",\"lstrip\":true,\"special\":true,\"normalized\":false},"
    "{\"id\":32003,\"content\":\"<|userx|>\",\"special\":true,\"normalized\":false},"
    "{\"id\":32004,\"content\":\"wrd\",\"single_word\":true,\"normalized\":false},";

static void mixtral_agrees(void **state) {
    (void)state;
    char *json = published_json("mixtral");
    if (!json) {
        print_message("skipped: GATETAPE_TOKENIZERS is not set\n");
        skip();
    }
    Tokenizer *tokenizer = from_text(mem_copy_text(json, strlen(json)));
    compare(tokenizer, REAL, "mistral_legacy", 28);
    compare(tokenizer, REAL, "mistral_legacy_plain", 5);
    compare(tokenizer, REAL, "chat_mixtral", 4);
    compare(tokenizer, REAL, "chat_mixtral_double_bos", 1);
    tokenizer_free(tokenizer);

    char *null = with_member(json, "normalizer", "null");
    tokenizer = from_text(with_member(null, "pre_tokenizer",
                                      "{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\","
                                      "\"prepend_scheme\":\"first\",\"split\":false}"));
    mem_free(null);
    compare(tokenizer, REAL, "mistral_metaspace_first", 28);
    compare(tokenizer, REAL, "mistral_metaspace_first_plain", 5);
    tokenizer_free(tokenizer);

    const char *list = strstr(json, "\"added_tokens\"");
    char opening[64];
    snprintf(opening, sizeof opening, "%.*s", (int)(strchr(list, '[') + 1 - list), list);
    tokenizer = from_text(with_change(json, opening, added_tokens));
    compare(tokenizer, REAL, "mistral_added_tokens", 16);
    tokenizer_free(tokenizer);
    mem_free(json);
}

static void published_agrees(const char *name, const char *section, const char *chat, long n_chat) {
    char *json = published_json(name);
    if (!json) {
        print_message("skipped: GATETAPE_TOKENIZERS is not set\n");
        skip();
    }
    Tokenizer *tokenizer = from_text(json);
    compare(tokenizer, REAL, section, 28);
    compare(tokenizer, REAL, chat, n_chat);
    tokenizer_free(tokenizer);
}

static void qwen3_agrees(void **state) {
    (void)state;
    published_agrees("qwen3", "qwen3", "chat_qwen3", 2);
}

static void gpt_oss_agrees(void **state) {
    (void)state;
    published_agrees("gptoss", "gptoss", "chat_gptoss", 2);
}

static void deepseek_agrees(void **state) {
    (void)state;
    published_agrees("deepseek_v3", "deepseek_v3", "chat_deepseek", 1);
}

/* ---- pieces ---- */
static const struct {
    const char *section, *pre_tokenizer;
} splits[] = {
    {"pieces_gpt2", "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"},
    {"pieces_prefix_space", "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}"},
#define AT_HYPHEN(behavior, invert)                                                                          \
    "{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"" behavior "\",\"invert\":" invert "}"
    {"pieces_split_Removed", AT_HYPHEN("Removed", "false")},
    {"pieces_split_Removed_invert", AT_HYPHEN("Removed", "true")},
    {"pieces_split_Isolated", AT_HYPHEN("Isolated", "false")},
    {"pieces_split_Isolated_invert", AT_HYPHEN("Isolated", "true")},
    {"pieces_split_MergedWithPrevious", AT_HYPHEN("MergedWithPrevious", "false")},
    {"pieces_split_MergedWithPrevious_invert", AT_HYPHEN("MergedWithPrevious", "true")},
    {"pieces_split_MergedWithNext", AT_HYPHEN("MergedWithNext", "false")},
    {"pieces_split_MergedWithNext_invert", AT_HYPHEN("MergedWithNext", "true")},
    {"pieces_split_Contiguous", AT_HYPHEN("Contiguous", "false")},
    {"pieces_split_Contiguous_invert", AT_HYPHEN("Contiguous", "true")},
    {"pieces_digits_individual", "{\"type\":\"Digits\",\"individual_digits\":true}"},
    {"pieces_digits_runs", "{\"type\":\"Digits\",\"individual_digits\":false}"},
    {"pieces_dollar", "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\s+$\"},\"behavior\":\"Isolated\"}"},
};
enum { N_SPLIT_CASES = sizeof splits / sizeof *splits };

static void check_pieces(const Vector *vector, void *context) {
    long *n_checked = context;
    size_t k = 0;
    if (!vector->has_pieces) return;
    while (k < N_SPLIT_CASES && strcmp(splits[k].section, vector->section) != 0) k++;
    if (k == N_SPLIT_CASES) fail_msg("section %s has no pre-tokenizer here", vector->section);
    char json[400];
    Error error = {0};
    snprintf(json, sizeof json, "{\"pre_tokenizer\":%s}", splits[k].pre_tokenizer);
    JsonDocument *document = json_parse(json, strlen(json), "test", &error);
    Json root = json_root(document);
    Tokenizer *tokenizer = mem_zeroed(1, sizeof *tokenizer);
    if (!tokenizer_read_pre_tokenizers(tokenizer, &root, &error)) fail_msg("%s", error.text);
    json_free(document);
    /* the vectors show pieces before ByteLevel's characters */
    if (tokenizer->piece_steps[tokenizer->n_piece_steps - 1].kind == PIECES_BYTE_MAP)
        tokenizer->n_piece_steps--;
    StageSpace space = {0};
    Stretch text = {.bytes = vector->text.bytes, .n = vector->text.length};
    assert_true(split_text(tokenizer->piece_steps, tokenizer->n_piece_steps, &space, &text, &error));
    assert_int_equal(space.pieces.n, vector->n_pieces);
    for (size_t i = 0; i < space.pieces.n; i++) {
        Span piece = space.pieces.items[i];
        assert_int_equal(piece.end - piece.begin, vector->pieces[i].length);
        assert_memory_equal(text.bytes + piece.begin, vector->pieces[i].bytes, vector->pieces[i].length);
    }
    stage_space_free(&space);
    tokenizer_free(tokenizer);
    ++*n_checked;
}

static void pieces_agree(void **state) {
    (void)state;
    long n_checked = 0;
    vectors_each(DATA REAL, check_pieces, &n_checked);
    assert_int_equal(n_checked, 28 + 6 + 10 + 2 + 2);
}

static void byte_level_characters_are_one_to_one(void **state) {
    (void)state;
    bool seen[324] = {false};
    for (int byte = 0; byte < 256; byte++) {
        int32_t code = byte_level_character((unsigned char)byte);
        assert_true(code >= 0 && code < 324 && !seen[code]);
        seen[code] = true;
        assert_int_equal(byte_level_byte(code), byte);
    }
    assert_int_equal(byte_level_character(' '), 0x120);
    assert_int_equal(byte_level_character('\n'), 0x10a);
    assert_int_equal(byte_level_byte(' '), -1);
    assert_int_equal(byte_level_byte(324), -1);
}

/* Made in stretches, a normal form is that of the whole text: random neighbours of all kinds, marks and
 * Hangul often. */
static void normal_forms_are_those_of_whole_texts(void **state) {
    (void)state;
    static const int32_t often[] = {'e',    0x300, 0x323, 0x345, 0x1100, 0x1161, 0x11a8,
                                    0xac00, 0x915, 0x93c, 0x9c7, 0x9be,  0x212b};
    uint64_t random = 1;
    StageSpace space = {0};
    for (int i = 0; i < 200000; i++) {
        char bytes[40];
        size_t n = 0;
        while (n < 24) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            uint32_t draw = (uint32_t)(random >> 33);
            int32_t code =
                draw % 3 ? often[draw / 3 % (sizeof often / sizeof *often)] : (int32_t)(draw / 3 % 0x20000);
            if (!utf8proc_codepoint_valid(code) || utf8proc_category(code) == UTF8PROC_CATEGORY_CN) continue;
            if (!unicode_has_no_form(code)) n += utf8_write(code, bytes + n);
        }
        Normalizer step = {.kind = NORMALIZE_FORM, .composes = i & 1, .compatible = i & 2};
        Stretch text = {.bytes = bytes, .n = n};
        Error error = {0};
        assert_true(normalize(&step, 1, &space, &text, &error));
        utf8proc_uint8_t *whole;
        utf8proc_ssize_t length =
            utf8proc_map((const utf8proc_uint8_t *)bytes, (utf8proc_ssize_t)n, &whole,
                         UTF8PROC_STABLE | (step.composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                             (step.compatible ? UTF8PROC_COMPAT : 0));
        assert_int_equal(length, text.n);
        assert_memory_equal(text.bytes, whole, text.n);
        for (size_t k = 0; k < text.n; k++)
            assert_true(stretch_origin(&text, k) >= (k ? stretch_origin(&text, k - 1) : 0) &&
                        stretch_origin(&text, k) < (int64_t)n);
        free(whole);
    }
    stage_space_free(&space);
}

/* ---- starts, options, look-ups ---- */
static void starts_point_into_the_text(void **state) {
    (void)state;
    Tokenizer *tokenizer = open_small("byte_level");
    const char text[] = "the lighthouse<|user|> keeper cafe\xcc\x81 plants 12 beans";
    TokenList list = encode(tokenizer, text, sizeof text - 1, (EncodeOptions){0});
    int64_t n_exact = 0;
    for (int64_t i = 0; i < list.n; i++) {
        Error error = {0};
        Text one = {0};
        assert_true(tokenizer_decode(tokenizer, &list.ids[i], 1, false, &one, &error));
        bool ascii = true;
        for (size_t k = 0; k < one.length; k++) ascii = ascii && (unsigned char)one.bytes[k] < 0x80;
        if (ascii && list.starts[i] != 31) {
            assert_memory_equal(text + list.starts[i], one.bytes, one.length);
            n_exact++;
        }
        text_free(&one);
    }
    assert_true(n_exact > 6);
    token_list_free(&list);
    tokenizer_free(tokenizer);

    tokenizer = open_small("byte_fallback");
    list = encode(tokenizer, "the old <|user|> \n bridge", 25, (EncodeOptions){.add_special = true});
    assert_int_equal(list.ids[0], 1); /* BOS */
    assert_int_equal(list.starts[0], 0);
    assert_int_equal(list.starts[1], 0);
    for (int64_t i = 0; i < list.n; i++) {
        if (list.ids[i] == tokenizer_id(tokenizer, "<|user|>")) assert_int_equal(list.starts[i], 8);
    }
    assert_true(list.starts[list.n - 1] > 18 && list.starts[list.n - 1] < 25);
    token_list_free(&list);
    tokenizer_free(tokenizer);
}

static void added_tokens_can_be_plain_text(void **state) {
    (void)state;
    Tokenizer *tokenizer = open_small("byte_level");
    TokenList list = encode(tokenizer, "<|user|>", 8, (EncodeOptions){0});
    int32_t user = tokenizer_id(tokenizer, "<|user|>");
    assert_ids(&list, &user, 1);
    assert_true(tokenizer_is_special(tokenizer, user));
    assert_false(tokenizer_is_special(tokenizer, tokenizer_id(tokenizer, "<tag>")));
    assert_false(tokenizer_is_special(tokenizer, 60));
    token_list_free(&list);
    list = encode(tokenizer, "<|user|>", 8, (EncodeOptions){.plain_special = true});
    assert_true(list.n > 1);
    for (int64_t i = 0; i < list.n; i++) assert_true(list.ids[i] != user);
    Error error = {0};
    Text text = {0};
    assert_true(tokenizer_decode(tokenizer, list.ids, list.n, true, &text, &error));
    assert_string_equal(text.bytes, "<|user|>");
    text_free(&text);
    token_list_free(&list);
    assert_int_equal(tokenizer_eos(tokenizer), tokenizer_id(tokenizer, "<|end|>"));
    assert_int_equal(tokenizer_bos(tokenizer), -1);
    assert_int_equal(tokenizer_id(tokenizer, "no such token"), -1);
    tokenizer_free(tokenizer);
}

/* Normalised added tokens match the normalised text: here only behind a space or at the begin of a piece. */
static void added_tokens_match_normalised_text(void **state) {
    (void)state;
    char *json = read_text(DATA "byte_fallback/tokenizer.json");
    Tokenizer *tokenizer = from_text(with_change(
        json, "\"special\": false\n    }\n  ],",
        "\"special\": false}, {\"id\":706,\"content\":\"<tag>\",\"normalized\":true,\"special\":false}],"));
    mem_free(json);
    const int32_t both = tokenizer_id(tokenizer, "<tag>");
    TokenList list = encode(tokenizer, "<tag><tag>", 10, (EncodeOptions){0});
    assert_int_equal(both, 706);
    assert_int_equal(list.ids[0], both);
    for (int64_t i = 1; i < list.n; i++) assert_int_not_equal(list.ids[i], both);
    token_list_free(&list);
    list = encode(tokenizer, "the <tag>", 9, (EncodeOptions){0});
    assert_int_equal(list.ids[list.n - 1], both);
    token_list_free(&list);
    tokenizer_free(tokenizer);
}

static void bos_follows_the_template_or_the_class(void **state) {
    (void)state;
    static const struct {
        const char *config;
        int32_t first; /* -1: nothing is put in front */
    } cases[] = {
        {"{\"bos_token\":\"<|user|>\",\"add_bos_token\":true,\"tokenizer_class\":\"LlamaTokenizerFast\"}",
         641},
        {"{\"bos_token\":{\"content\":\"<|user|>\"},\"add_bos_token\":true,\"tokenizer_class\":"
         "\"LlamaTokenizer\"}",
         641},
        {"{\"bos_token\":\"<|user|>\",\"add_bos_token\":false,\"tokenizer_class\":\"LlamaTokenizerFast\"}",
         -1},
        {"{\"bos_token\":\"<|user|>\",\"add_bos_token\":true,\"tokenizer_class\":\"Qwen2Tokenizer\"}", -1},
        {"{\"bos_token\":null,\"add_bos_token\":true,\"tokenizer_class\":\"LlamaTokenizerFast\"}", -1},
        {"{}", -1},
    };
    char *json = read_text(DATA "byte_level/tokenizer.json");
    scratch_make_folder("bos");
    scratch_write_text("bos/tokenizer.json", json);
    mem_free(json);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error error = {0};
        scratch_write_text("bos/tokenizer_config.json", cases[i].config);
        Tokenizer *tokenizer = tokenizer_open(scratch_path("bos"), &error);
        if (!tokenizer) fail_msg("%s", error.text);
        TokenList with = encode(tokenizer, "the", 3, (EncodeOptions){.add_special = true});
        TokenList without = encode(tokenizer, "the", 3, (EncodeOptions){0});
        assert_int_equal(with.n - without.n, cases[i].first >= 0);
        if (cases[i].first >= 0) assert_int_equal(with.ids[0], tokenizer_id(tokenizer, "<|user|>"));
        token_list_free(&with);
        token_list_free(&without);
        tokenizer_free(tokenizer);
    }
    Error error = {0};
    scratch_write_text("bos/tokenizer_config.json", "{\"eos_token\":\"<stop>\"}");
    assert_null(tokenizer_open(scratch_path("bos"), &error));
    assert_contains(error.text,
                    "tokenizer_config.json: eos_token: expected a token of tokenizer.json: got \"<stop>\"");
}

/* ---- bad input ---- */
static const char small[] =
    "{\"added_tokens\":[],\"normalizer\":null,\"pre_tokenizer\":null,\"post_processor\":null,"
    "\"decoder\":null,\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},"
    "\"merges\":[\"a b\"]}}";

#define MODEL(vocab, merges, more) "{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges more "}"
#define ABC "{\"a\":0,\"b\":1,\"ab\":2}"
#define SPLIT(regex)                                                                                         \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\",\"invert\":false}"

static const struct {
    const char *key, *value, *says;
} broken[] = {
    {"model", "null", "test: model: expected an object"},
    {"model", "{\"type\":\"WordPiece\"}", "test: model.type: expected \"BPE\": got \"WordPiece\""},
    {"model", MODEL("{\"a\":0,\"b\":0}", "[]", ""),
     "test: model.vocab.b: expected one token with id 0: got another"},
    {"model", MODEL("{\"a\":-1}", "[]", ""), "test: model.vocab.a: expected an integer from 0"},
    {"model", MODEL("{\"a\":99999999}", "[]", ""), "test: model.vocab.a: expected an integer from 0 to"},
    {"model", MODEL("{\"a\":0.5}", "[]", ""), "test: model.vocab.a: expected an integer"},
    {"model", MODEL("{\"a\":0,\"b\":1}", "[\"a b\"]", ""),
     "test: model.merges[0]: expected a merge whose result is in the vocabulary: got \"ab\""},
    {"model", MODEL(ABC, "[\"a c\"]", ""),
     "test: model.merges[0]: expected a merge whose right part is in the vocabulary: got \"c\""},
    {"model", MODEL(ABC, "[\"a b\",\"ab\"]", ""),
     "test: model.merges[1]: expected two tokens and one space between: got \"ab\""},
    {"model", MODEL(ABC, "[[\"a\"]]", ""), "test: model.merges[0]: expected two tokens"},
    {"model", MODEL(ABC, "[[\"a\",\"b\"],7]", ""), "test: model.merges[1]: expected a string"},
    {"model", MODEL(ABC, "null", ""), "test: model.merges: expected an array"},
    {"model", MODEL(ABC, "[]", ",\"dropout\":0.1"), "test: model.dropout: expected null or 0: got 0.1"},
    {"model", MODEL(ABC, "[]", ",\"end_of_word_suffix\":\"</w>\""),
     "test: model.end_of_word_suffix: expected null or \"\": got \"</w>\""},
    {"model", MODEL(ABC, "[]", ",\"unk_token\":\"<unk>\""),
     "test: model.unk_token: expected a token of the vocabulary: got \"<unk>\""},
    {"added_tokens", "[{\"id\":9,\"content\":\"x\"}]",
     "test: added_tokens[0].id: expected an integer from 0 to 3: got 9"},
    {"added_tokens", "[{\"id\":1,\"content\":\"x\"}]",
     "test: added_tokens[0].id: expected id 3, the next one free: got 1"},
    {"added_tokens", "[{\"id\":3,\"content\":\"a\"}]",
     "test: added_tokens[0].id: expected id 0, as in model.vocab: got 3"},
    {"added_tokens", "[{\"id\":3,\"content\":\"\"}]", "test: added_tokens[0]: expected a content of 1 to"},
    {"added_tokens", "[{\"id\":3,\"content\":\"x\"},{\"id\":4,\"content\":\"x\"}]",
     "test: added_tokens[1]: expected each token once"},
    {"normalizer", "{\"type\":\"Nmt\"}", "test: normalizer.type: expected Prepend, Replace, NFC"},
    {"normalizer", "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"X\"}]}",
     "test: normalizer.normalizers[1].type: expected Prepend"},
    {"normalizer", "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"x\"}",
     "test: normalizer.pattern: expected a text to look for"},
    {"normalizer", "{\"type\":\"Sequence\"}", "test: normalizer.normalizers: expected an array"},
    {"normalizer", "\"NFC\"", "test: normalizer: expected an object: got"},
    {"pre_tokenizer", "{\"type\":\"BertPreTokenizer\"}",
     "test: pre_tokenizer.type: expected Split, ByteLevel"},
    {"pre_tokenizer", "{\"type\":\"Split\",\"pattern\":{\"String\":\"x\"},\"behavior\":\"Cut\"}",
     "test: pre_tokenizer.behavior: expected Removed"},
    {"pre_tokenizer", SPLIT("(a"), "test: pre_tokenizer.pattern: expected a regex: got \"(a\""},
    {"pre_tokenizer", SPLIT("[\\\\S]"), "a negated class inside a class"},
    {"pre_tokenizer", SPLIT("[a[b]]"), "a class inside a class"},
    {"pre_tokenizer", SPLIT("[a&&b]"), "an intersection of classes"},
    {"pre_tokenizer", SPLIT("a{1,2}+"), "a possessive interval"},
    {"pre_tokenizer", SPLIT("(?m)a"), "a group of another kind"},
    {"pre_tokenizer", SPLIT("\\\\bword"), "an escape"},
    {"pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"__\"}",
     "test: pre_tokenizer.replacement: expected one character: got \"__\""},
    {"post_processor", "{\"type\":\"RobertaProcessing\"}",
     "test: post_processor.type: expected TemplateProcessing"},
    {"post_processor",
     "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":"
     "\"A\"}}],\"special_tokens\":{}}",
     "test: post_processor.single[0].SpecialToken.id: expected a token of special_tokens: got \"<s>\""},
    {"post_processor", "{\"type\":\"TemplateProcessing\",\"single\":[]}",
     "test: post_processor.single: expected the text \"A\" once: got none"},
    {"decoder", "{\"type\":\"WordPiece\"}", "test: decoder.type: expected Replace, ByteFallback"},
    {"decoder", "{\"type\":\"Strip\",\"content\":\" \",\"start\":-1,\"stop\":0}",
     "test: decoder.start: expected an integer"},
};

static void broken_files_are_named(void **state) {
    (void)state;
    Error error = {0};
    Tokenizer *tokenizer = tokenizer_from_json(small, sizeof small - 1, "test", &error);
    assert_non_null(tokenizer); /* so that each row below is about its own change */
    tokenizer_free(tokenizer);
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        char *json = with_member(small, broken[i].key, broken[i].value);
        error = (Error){0};
        tokenizer = tokenizer_from_json(json, strlen(json), "test", &error);
        if (tokenizer) fail_msg("%s = %s was taken", broken[i].key, broken[i].value);
        assert_clean_error(&error, ERROR_BAD_INPUT);
        assert_contains(error.text, broken[i].says);
        mem_free(json);
    }
    error = (Error){0};
    assert_null(tokenizer_from_json("[]", 2, "test", &error));
    assert_contains(error.text, "test: expected an object");
    error = (Error){0};
    assert_null(tokenizer_open(scratch_path("nowhere"), &error));
    assert_contains(error.text, "nowhere/tokenizer.json");
}

static void bad_texts_and_ids_are_named(void **state) {
    (void)state;
    Tokenizer *tokenizer = open_small("byte_level");
    TokenList list = {0};
    Text text = {0};
    Error error = {0};
    assert_false(tokenizer_encode(tokenizer, "ab\xc3(", 4, (EncodeOptions){0}, &list, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(error.text, "text: expected UTF-8: got byte 0xc3 at offset 2");
    error = (Error){0};
    const int32_t ids[] = {1, 645}, negative[] = {-1};
    assert_false(tokenizer_decode(tokenizer, ids, 2, false, &text, &error));
    assert_contains(error.text, "ids[1]: expected an id of the tokenizer, 0 to 644: got 645");
    error = (Error){0};
    assert_false(tokenizer_decode(tokenizer, negative, 1, false, &text, &error));
    assert_contains(error.text, "ids[0]");
    token_list_free(&list);
    text_free(&text);
    tokenizer_free(tokenizer);
}

/* A regex that takes for ever ends in an error, not in a wrong split. */
static void endless_regexes_are_an_error(void **state) {
    (void)state;
    Tokenizer *tokenizer = from_text(with_member(small, "pre_tokenizer", SPLIT("(a+)+$|b")));
    char text[64];
    Error error = {0};
    TokenList list = {0};
    memset(text, 'a', sizeof text);
    text[63] = 'b';
    assert_false(tokenizer_encode(tokenizer, text, sizeof text, (EncodeOptions){0}, &list, &error));
    assert_clean_error(&error, ERROR_BAD_INPUT);
    assert_contains(
        error.text,
        "text: expected a regex of the tokenizer to come to an end: got \"match limit exceeded\"");
    token_list_free(&list);
    tokenizer_free(tokenizer);
}

/* ---- long words, threads, memory ---- */
static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* A word of a megabyte; quadratic work would take hours. */
static void long_words_end(void **state) {
    (void)state;
    static const char *const parts[] = {"a",         "_", " ", "the", "\xe4\xb8\xad", "\xe2\x80\x8d",
                                        "e\xcc\x81", "<", "\n"};
    static const char *const names[] = {"byte_level", "byte_fallback"};
    for (int t = 0; t < 2; t++) {
        Tokenizer *tokenizer = open_small(names[t]);
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            Text text = {0};
            while (text.length < 1 << 20) text_put_string(&text, parts[i]);
            double begin = seconds();
            TokenList list = encode(tokenizer, text.bytes, text.length, (EncodeOptions){0});
            assert_true(list.n > 1000 && seconds() - begin < 60);
            token_list_free(&list);
            text_free(&text);
        }
        tokenizer_free(tokenizer);
    }
}

typedef struct {
    const Tokenizer *tokenizer;
    const char *text;
    TokenList list;
    bool done;
} Thread;

static void *encode_in_thread(void *context) {
    Thread *thread = context;
    Error error = {0};
    thread->done = true;
    for (int i = 0; i < 50 && thread->done; i++) {
        thread->list.n = 0;
        thread->done = tokenizer_encode(thread->tokenizer, thread->text, strlen(thread->text),
                                        (EncodeOptions){0}, &thread->list, &error);
    }
    return NULL;
}

static void threads_share_a_tokenizer(void **state) {
    (void)state;
    Tokenizer *tokenizer = open_small("byte_level");
    const char *text =
        "the lighthouse keeper counts 1234 ships \xe4\xbb\x8a\xe6\x97\xa5 and writes <|user|> names";
    TokenList expected = encode(tokenizer, text, strlen(text), (EncodeOptions){0});
    Thread threads[4] = {{0}};
    pthread_t handles[4];
    for (int i = 0; i < 4; i++) {
        threads[i] = (Thread){.tokenizer = tokenizer, .text = text};
        assert_int_equal(pthread_create(&handles[i], NULL, encode_in_thread, &threads[i]), 0);
    }
    for (int i = 0; i < 4; i++) pthread_join(handles[i], NULL);
    for (int i = 0; i < 4; i++) {
        assert_true(threads[i].done);
        assert_ids(&threads[i].list, expected.ids, expected.n);
        token_list_free(&threads[i].list);
    }
    token_list_free(&expected);
    tokenizer_free(tokenizer);
}

/* Every kind of step in one small tokenizer, opened and used. */
static bool open_and_use(void *context, Error *error) {
    (void)context;
    static const char json[] =
        "{\"added_tokens\":[{\"id\":3,\"content\":\"<x>\",\"normalized\":false},{\"id\":4,\"content\":\"<y>"
        "\"}],"
        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Prepend\","
        "\"prepend\":\"a\"},"
        "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"c+\"},\"content\":\"b\"}]},"
        "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[" SPLIT(
            "\\\\s+|b+") ",{\"type\":\"ByteLevel\"}]},"
                         "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{"
                         "\"id\":\"<x>\"}},{\"Sequence\":"
                         "{\"id\":\"A\"}}],\"special_tokens\":{\"<x>\":{\"id\":\"<x>\",\"ids\":[3],"
                         "\"tokens\":[\"<x>\"]}}},"
                         "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteFallback\"},{"
                         "\"type\":\"Replace\",\"pattern\":"
                         "{\"String\":\"b\"},\"content\":\"c\"},{\"type\":\"Fuse\"}]},"
                         "\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a "
                         "b\"],\"unk_token\":\"a\",\"ignore_merges\":true}}";
    TokenList list = {0};
    Text text = {0};
    Tokenizer *tokenizer = tokenizer_from_json(json, sizeof json - 1, "test", error);
    bool done = tokenizer != NULL;
    done = done && tokenizer_encode(tokenizer, "ab cab<x> <y>e\xcc\x81", 16,
                                    (EncodeOptions){.add_special = true}, &list, error);
    done = done && tokenizer_decode(tokenizer, list.ids, list.n, false, &text, error);
    tokenizer_free(tokenizer);
    token_list_free(&list);
    text_free(&text);
    return done;
}

static void memory_may_run_out(void **state) {
    (void)state;
    assert_true(fail_each_allocation(open_and_use, NULL) > 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_tokenizers_agree),
        cmocka_unit_test(mixtral_agrees),
        cmocka_unit_test(qwen3_agrees),
        cmocka_unit_test(gpt_oss_agrees),
        cmocka_unit_test(deepseek_agrees),
        cmocka_unit_test(pieces_agree),
        cmocka_unit_test(byte_level_characters_are_one_to_one),
        cmocka_unit_test(normal_forms_are_those_of_whole_texts),
        cmocka_unit_test(starts_point_into_the_text),
        cmocka_unit_test(added_tokens_can_be_plain_text),
        cmocka_unit_test(added_tokens_match_normalised_text),
        cmocka_unit_test(bos_follows_the_template_or_the_class),
        cmocka_unit_test(broken_files_are_named),
        cmocka_unit_test(bad_texts_and_ids_are_named),
        cmocka_unit_test(endless_regexes_are_an_error),
        cmocka_unit_test(long_words_end),
        cmocka_unit_test(threads_share_a_tokenizer),
        cmocka_unit_test(memory_may_run_out),
    };
    return cmocka_run_group_tests(tests, NULL, scratch_remove);
}

/* Lines of JSON in, lines of JSON out. Every line is a document of its own, so that an error names its
 * number; results before it have been written. */
#include "tokenize.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/json.h"
#include "../engine/tokenizer.h"
#include <stdio.h>
#include <string.h>

enum { MAX_INPUT_BYTES = 1 << 30, OUTPUT_BYTES = 1 << 16 };

typedef struct {
    const Tokenizer *tokenizer;
    TokenList tokens;
    Text decoded, output;
    Error *error;
} Filter;

static bool encode_line(Filter *filter, Json root) {
    const char *text;
    if (!json_string(root, &text, filter->error)) return false;
    filter->tokens.n = 0;
    if (!tokenizer_encode(filter->tokenizer, text, strlen(text), (EncodeOptions){0}, &filter->tokens,
                          filter->error))
        return false;
    text_put_string(&filter->output, "[");
    for (int64_t i = 0; i < filter->tokens.n; i++)
        text_format(&filter->output, "%s%d", i ? "," : "", filter->tokens.ids[i]);
    text_put_string(&filter->output, "]\n");
    return true;
}

static bool decode_line(Filter *filter, Json root) {
    Json at = {0};
    int64_t id;
    if (json_type(root) != JSON_ARRAY)
        return json_error(root, filter->error, "expected array: got %s", json_type_name(json_type(root)));
    filter->tokens.n = 0;
    while (json_next(&root, &at)) {
        if (!json_integer(at, 0, tokenizer_size(filter->tokenizer) - 1, &id, filter->error)) return false;
        if (!token_list_put(&filter->tokens, (int32_t)id, 0))
            return error_out_of_memory(filter->error, "tokens", (size_t)filter->tokens.n * 12);
    }
    text_clear(&filter->decoded);
    if (!tokenizer_decode(filter->tokenizer, filter->tokens.ids, filter->tokens.n, false, &filter->decoded,
                          filter->error))
        return false;
    text_put_json(&filter->output, filter->decoded.bytes ? filter->decoded.bytes : "",
                  filter->decoded.length);
    text_put_string(&filter->output, "\n");
    return true;
}

static bool flush(Filter *filter) {
    Text *output = &filter->output;
    if (output->failed || filter->decoded.failed)
        return error_out_of_memory(filter->error, "output", output->length);
    bool done = !output->length || fwrite(output->bytes, 1, output->length, stdout) == output->length;
    text_clear(output);
    return done || error_set(filter->error, ERROR_FAILED, "standard output: expected it to take the ids");
}

static bool filter_line(Filter *filter, const char *line, size_t length, int64_t number, bool decode) {
    char name[60];
    snprintf(name, sizeof name, "standard input:%lld", (long long)number);
    JsonDocument *document = json_parse(line, length, name, filter->error);
    if (!document) return false;
    Json root = json_root(document);
    bool done = decode ? decode_line(filter, root) : encode_line(filter, root);
    if (!done && strncmp(filter->error->text, name, strlen(name)) != 0)
        error_add_place(filter->error, "%s", name);
    json_free(document);
    return done && (filter->output.length < OUTPUT_BYTES || flush(filter));
}

bool tokenize_run(const char *folder, bool decode, Error *error) {
    size_t n_bytes = 0;
    char *input = NULL;
    Filter filter = {.error = error};
    Tokenizer *tokenizer = tokenizer_open(folder, error);
    bool done = tokenizer != NULL;
    if (done) {
        filter.tokenizer = tokenizer;
        input = io_read_stream(0, "standard input", MAX_INPUT_BYTES, &n_bytes, error);
        done = input != NULL;
    }
    int64_t number = 0;
    for (size_t at = 0; done && at < n_bytes;) {
        const char *end = memchr(input + at, '\n', n_bytes - at);
        size_t length = end ? (size_t)(end - (input + at)) : n_bytes - at;
        number++;
        done = length == 0 || filter_line(&filter, input + at, length, number, decode);
        at += length + 1;
    }
    if (done)
        done = flush(&filter);
    else if (tokenizer)
        flush(&filter);
    if (fflush(stdout) != 0 && done)
        done = error_set(error, ERROR_FAILED, "standard output: expected it to take the ids");
    token_list_free(&filter.tokens);
    text_free(&filter.decoded);
    text_free(&filter.output);
    mem_free(input);
    tokenizer_free(tokenizer);
    return done;
}

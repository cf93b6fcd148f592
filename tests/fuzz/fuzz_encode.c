/* Any bytes as a text for two fixed tokenizers (run from the repository's root). Refused where they are
 * no UTF-8; else starts never fall, and a second round gives the same ids: decoding makes the normalised
 * text, which is its own. */
#include "engine/tokenizer.h"
#include "kernels/check.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static Tokenizer *open_once(int k) {
    static Tokenizer *tokenizers[2];
    static const char *const folders[] = {"tests/data/tokenizers/byte_level",
                                          "tests/data/tokenizers/byte_fallback"};
    Error error = {0};
    if (!tokenizers[k]) tokenizers[k] = tokenizer_open(folders[k], &error);
    check(tokenizers[k], "%s", error.text);
    return tokenizers[k];
}

static bool encode(const Tokenizer *tokenizer, const char *text, size_t length, bool plain, TokenList *list) {
    Error error = {0};
    bool done =
        tokenizer_encode(tokenizer, text, length, (EncodeOptions){.plain_special = plain}, list, &error);
    check(done || error.code == ERROR_BAD_INPUT, "%s", error.text);
    for (int64_t i = 0; i < list->n; i++)
        check(list->starts[i] >= (i ? list->starts[i - 1] : 0) && list->starts[i] < (int64_t)length,
              "start %lld", (long long)list->starts[i]);
    return done;
}

static void check_round(const Tokenizer *tokenizer, const char *text, size_t length) {
    TokenList once = {0}, again = {0};
    Text decoded = {0};
    Error error = {0};
    size_t bad;
    bool valid = text_is_utf8(text, length, &bad);
    check(encode(tokenizer, text, length, true, &once) == valid, "UTF-8 %d", valid);
    if (valid) {
        check(tokenizer_decode(tokenizer, once.ids, once.n, false, &decoded, &error), "%s", error.text);
        encode(tokenizer, decoded.bytes ? decoded.bytes : "", decoded.length, true, &again);
        check(once.n == again.n, "%lld and %lld tokens", (long long)once.n, (long long)again.n);
        for (int64_t i = 0; i < once.n; i++) check(once.ids[i] == again.ids[i], "token %lld", (long long)i);
    }
    token_list_free(&once);
    token_list_free(&again);
    text_free(&decoded);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    for (int k = 0; k < 2; k++) {
        TokenList list = {0};
        check_round(open_once(k), (const char *)data, size);
        encode(open_once(k), (const char *)data, size, false, &list);
        token_list_free(&list);
    }
    return 0;
}

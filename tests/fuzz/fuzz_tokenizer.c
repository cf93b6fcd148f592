/* Any bytes as a tokenizer.json: refused in words, or a tokenizer that encodes and decodes three texts
 * without a fault, with starts inside the text that never fall and ids that it knows. */
#include "engine/tokenizer.h"
#include "kernels/check.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(const Tokenizer *tokenizer, const char *text, size_t length, bool plain) {
    Error error = {0};
    TokenList list = {0};
    Text decoded = {0};
    EncodeOptions options = {.add_special = !plain, .plain_special = plain};
    if (tokenizer_encode(tokenizer, text, length, options, &list, &error)) {
        for (int64_t i = 0; i < list.n; i++) {
            check(list.ids[i] >= 0 && list.ids[i] < tokenizer_size(tokenizer), "id %d", list.ids[i]);
            check(list.starts[i] >= (i ? list.starts[i - 1] : 0) && list.starts[i] <= (int64_t)length,
                  "start %lld", (long long)list.starts[i]);
        }
        bool done = tokenizer_decode(tokenizer, list.ids, list.n, plain, &decoded, &error);
        size_t bad;
        check(!done || text_is_utf8(decoded.bytes ? decoded.bytes : "", decoded.length, &bad), "byte %zu",
              bad);
    }
    check(error.code == ERROR_NONE || error.text[0], "code %d", error.code);
    token_list_free(&list);
    text_free(&decoded);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char plain[] = "Hello  world, don't 12345 \n\n x",
                      marked[] = "<s>caf\xc3\xa9 <|x|>  e\xcc\x81 \xe2\x96\x81_";
    static const char wide[] = "\xe4\xbd\xa0\xe5\xa5\xbd\0\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7\t";
    Error error = {0};
    Tokenizer *tokenizer = tokenizer_from_json((const char *)data, size, "fuzz", &error);
    check(tokenizer || error.text[0], "no tokenizer and no error");
    if (!tokenizer) return 0;
    use(tokenizer, plain, sizeof plain - 1, false);
    use(tokenizer, marked, sizeof marked - 1, false);
    use(tokenizer, wide, sizeof wide - 1, true);
    tokenizer_free(tokenizer);
    return 0;
}

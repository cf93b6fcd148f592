/* Text to token ids and back, from a Hugging Face tokenizer.json: byte-level BPE with regex splits, and
 * the Llama/Mistral BPE with byte fallback; normalizers, added tokens, post-processor, decoder as that
 * file says. An unknown part is an error with its JSON path. Thread-safe once opened. */
#ifndef GATETAPE_TOKENIZER_H
#define GATETAPE_TOKENIZER_H
#include "error.h"
#include "text.h"
#include <stddef.h>
#include <stdint.h>

typedef struct Tokenizer Tokenizer;

typedef struct {
    int32_t *ids; /* owned: token_list_free */
    /* The byte of the encoded text at which each token begins (ids added around the text: its begin or end);
     * non-decreasing. Where normalisation moved bytes, the begin of the changed stretch. */
    int64_t *starts;
    int64_t n, capacity;
} TokenList;

void token_list_free(TokenList *list);
bool token_list_put(TokenList *list, int32_t id, int64_t start); /* false: out of memory */

/* Reads FOLDER/tokenizer.json, and FOLDER/tokenizer_config.json where it exists. Caller frees. NULL on
 * error. */
Tokenizer *tokenizer_open(const char *folder, Error *error);
/* From a text of tokenizer.json alone (fuzzing, tests); `name` is used in messages. */
Tokenizer *tokenizer_from_json(const char *json, size_t length, const char *name, Error *error);
void tokenizer_free(Tokenizer *tokenizer);

int64_t tokenizer_size(const Tokenizer *tokenizer);                  /* largest id + 1 */
int32_t tokenizer_id(const Tokenizer *tokenizer, const char *token); /* -1: no such token */
int32_t tokenizer_bos(const Tokenizer *tokenizer); /* from tokenizer_config.json; -1: none */
int32_t tokenizer_eos(const Tokenizer *tokenizer);
bool tokenizer_is_special(const Tokenizer *tokenizer, int32_t id);

typedef struct {
    bool add_special;   /* what the post-processor (or add_bos_token of a Llama class) puts around the text */
    bool plain_special; /* added tokens in the text are ordinary text, not recognised */
} EncodeOptions;

/* Appends the ids of a text (UTF-8, may contain NUL) to *list. Error: invalid UTF-8 with its offset, out
 * of memory. */
bool tokenizer_encode(const Tokenizer *tokenizer, const char *text, size_t length, EncodeOptions options,
                      TokenList *list, Error *error);

/* Appends the text of ids to *text; skip_special leaves out tokens marked special. An id that the
 * tokenizer does not know is an error. */
bool tokenizer_decode(const Tokenizer *tokenizer, const int32_t *ids, int64_t n_ids, bool skip_special,
                      Text *text, Error *error);

#endif

/* The tokenizer from inside: what a tokenizer.json becomes when it is read, and the stages of encoding
 * and decoding that its files hand each other. Nested sequences are flat lists here, and composite parts
 * (ByteLevel, Metaspace, Digits) are made of simple steps; all of it is constant after opening, but for
 * the word cache, which one encoder borrows at a time. */
#ifndef GATETAPE_TOKENIZER_PARTS_H
#define GATETAPE_TOKENIZER_PARTS_H
#include "json.h"
#include "tokenizer.h"
#include "tokenizer_pattern.h"
#include "tokenizer_vocabulary.h"
#include <pthread.h>

/* ---- texts on their way ---- */
/* A text and, for each of its bytes, the byte of the encoded text that it came from. */
typedef struct {
    const char *bytes;
    size_t n;
    const int64_t *origins; /* NULL: byte i came from base + i */
    int64_t base;
    int place; /* 1 or 2: in that rewrite of the space it was made in; 0: elsewhere */
} Stretch;

int64_t stretch_origin(const Stretch *stretch, size_t i); /* i < n */

/* A text being written by a step that changes bytes. */
typedef struct {
    char *bytes;
    int64_t *origins;
    size_t n, capacity;
} Rewrite;

bool rewrite_reserve(Rewrite *rewrite, size_t n_bytes, Error *error); /* room for that many more */
bool rewrite_put(Rewrite *rewrite, const char *bytes, size_t n, int64_t origin,
                 Error *error); /* one origin for all */
bool rewrite_copy(Rewrite *rewrite, const Stretch *from, size_t begin, size_t end, Error *error);
void rewrite_free(Rewrite *rewrite);

typedef struct {
    Rewrite rewrites[2]; /* a step reads one and writes the other */
    SpanList found, pieces, next_pieces;
    PatternSpace pattern;
    int32_t *code_points; /* of a normal form */
    size_t code_points_capacity;
} StageSpace;

void stage_space_free(StageSpace *space);
/* The rewrite that `from` does not live in, empty. */
Rewrite *stage_space_other(StageSpace *space, const Stretch *from);
/* *text becomes what was written there. */
void stage_space_adopt(StageSpace *space, const Rewrite *written, Stretch *text);

/* ---- normalizers ---- */
typedef enum {
    NORMALIZE_PREPEND,
    NORMALIZE_REPLACE,
    NORMALIZE_FORM,
    NORMALIZE_STRIP,
    NORMALIZE_LOWERCASE
} NormalizerKind;

typedef struct {
    NormalizerKind kind;
    Pattern pattern; /* replace */
    char *content;   /* prepend, replace; owned */
    size_t length;
    bool composes, compatible; /* NFC NFD NFKC NFKD */
    bool left, right;          /* strip */
} Normalizer;

/* *text becomes its normalised self; it may point into *space afterwards. */
bool normalize(const Normalizer *steps, int64_t n_steps, StageSpace *space, Stretch *text, Error *error);

/* ---- pre-tokenizers ---- */
typedef enum { PIECES_SPLIT, PIECES_PREFIX_SPACE, PIECES_METASPACE, PIECES_BYTE_MAP } PieceStepKind;
typedef enum { METASPACE_ALWAYS, METASPACE_FIRST, METASPACE_NEVER } MetaspaceScheme;

typedef struct {
    PieceStepKind kind;
    Pattern pattern; /* split */
    SplitBehavior behavior;
    bool invert;
    char replacement[4]; /* metaspace */
    size_t replacement_length;
    MetaspaceScheme scheme;
} PieceStep;

/* Fills space->pieces with the pieces of *text, which may come to point into *space. */
bool split_text(const PieceStep *steps, int64_t n_steps, StageSpace *space, Stretch *text, Error *error);

/* ByteLevel's characters: byte to code point, and back (-1: not one of them). */
int32_t byte_level_character(unsigned char byte);
int32_t byte_level_byte(int32_t code);
extern const char byte_level_regex[]; /* the one of GPT-2 */

/* ---- BPE ---- */
typedef struct {
    Vocabulary vocabulary;
    MergeTable merges;
    int32_t unknown; /* -1: none */
    bool fuse_unknown, byte_fallback, ignore_merges;
    bool words_open; /* no merge reaches from another character to a U+2581 behind it: words end there */
    bool byte_level; /* words come as raw bytes and are looked up by ByteLevel's characters */
    int32_t byte_ids[256]; /* of <0xHH>, or of ByteLevel's characters; -1: none */
} BpeModel;

typedef struct {
    int32_t id;
    uint32_t begin; /* byte of the word */
} WordToken;

typedef struct {
    int32_t id; /* -1: merged away */
    int32_t previous, next;
    uint32_t begin;
} BpeSymbol;

typedef struct {
    BpeSymbol *symbols;
    size_t symbols_capacity;
    uint64_t *heap; /* rank << 32 | position of the left symbol */
    size_t n_heap, heap_capacity;
    WordToken *tokens; /* the result */
    size_t n_tokens, tokens_capacity;
    Text mapped;
} BpeSpace;

void bpe_space_free(BpeSpace *space);
/* Where the first part of a word ends that merges apart from the rest; `length` where there is none. */
size_t bpe_part(const BpeModel *model, const char *word, size_t length);
/* After the merges are read: sets words_open. */
void bpe_find_openings(BpeModel *model);
/* space->tokens become the tokens of one word. Errors: out of memory, a word of 2 GiB. */
bool bpe_encode(const BpeModel *model, const char *word, size_t length, BpeSpace *space, Error *error);

/* Words already encoded, up to 64 bytes each; empties itself when full. */
typedef struct WordCache WordCache;
WordCache *word_cache_create(void); /* NULL: out of memory */
void word_cache_free(WordCache *cache);
const WordToken *word_cache_find(const WordCache *cache, const char *word, size_t length, size_t *n_tokens);
void word_cache_put(WordCache *cache, const char *word, size_t length, const WordToken *tokens,
                    size_t n_tokens);

/* ---- added tokens ---- */
typedef struct {
    char *content; /* owned */
    size_t length;
    int32_t id;
    bool single_word, left_strip, right_strip, normalized, special;
} AddedToken;

typedef struct {
    int32_t child, sibling; /* -1: none */
    int32_t token;          /* index of the token that ends here; -1: none */
    unsigned char byte;
} TrieNode;

typedef struct {
    TrieNode *nodes;
    int64_t n, capacity;
    int32_t first[256]; /* node of a first byte; -1: none. Valid when n > 0 */
} Trie;

bool trie_put(Trie *trie, const char *text, size_t length, int32_t token,
              Error *error); /* the first of equals stays */
void trie_free(Trie *trie);

typedef struct {
    size_t begin, end;
    int32_t token; /* index of an added token; -1: text between them */
} AddedSpan;

typedef struct {
    AddedSpan *items;
    size_t n, capacity;
} AddedSpanList;

/* Replaces *spans by the tokens in a text, leftmost and longest, and what lies between. */
bool added_find(const AddedToken *tokens, const Trie *trie, const char *text, size_t length,
                AddedSpanList *spans, Error *error);

/* ---- decoders ---- */
typedef enum {
    DECODE_REPLACE,
    DECODE_BYTE_FALLBACK,
    DECODE_FUSE,
    DECODE_STRIP,
    DECODE_BYTE_LEVEL,
    DECODE_METASPACE
} DecoderKind;

typedef struct {
    DecoderKind kind;
    Pattern pattern; /* replace */
    char *content;   /* replace; owned */
    size_t length;
    int32_t character;   /* strip, metaspace */
    int64_t start, stop; /* strip */
    bool drops_first;    /* metaspace: the replacement in the first token becomes nothing */
} Decoder;

/* ---- all of it ---- */
typedef struct {
    pthread_mutex_t lock;
    WordCache *cache; /* made by the first encoder */
} SharedCache;

struct Tokenizer {
    BpeModel model;
    AddedToken *added;
    int64_t n_added, n_new; /* n_new of them are not in the model's vocabulary */
    Vocabulary added_names;
    int32_t *added_of_id; /* index into added, or -1; n_ids of them */
    int64_t n_ids;
    Trie raw, normalised; /* added tokens to find before and after the normalizer */
    Normalizer *normalizers;
    int64_t n_normalizers;
    PieceStep *piece_steps;
    int64_t n_piece_steps;
    Decoder *decoders;
    int64_t n_decoders;
    bool has_template;       /* a TemplateProcessing rules what goes around a text */
    int32_t *before, *after; /* those ids */
    int64_t n_before, n_after;
    int32_t bos, eos;
    SharedCache *shared;
};

/* Reading, each from its member of tokenizer.json; errors name the JSON path. */
bool tokenizer_read_model(Tokenizer *tokenizer, const Json *root, Error *error);
bool tokenizer_read_added(Tokenizer *tokenizer, const Json *root,
                          Error *error); /* after the model and normalizers */
bool tokenizer_read_normalizers(Tokenizer *tokenizer, const Json *root, Error *error);
bool tokenizer_read_pre_tokenizers(Tokenizer *tokenizer, const Json *root, Error *error);
bool tokenizer_read_post_processor(Tokenizer *tokenizer, const Json *root, Error *error);
bool tokenizer_read_decoders(Tokenizer *tokenizer, const Json *root, Error *error);
bool tokenizer_read_config(Tokenizer *tokenizer, const Json *root,
                           Error *error); /* of tokenizer_config.json */

/* Shared by the readers: an absent or null member gives the default. */
bool tokenizer_read_flag(const Json *object, const char *key, bool fallback, bool *value, Error *error);
/* Pattern {"String": ...} or {"Regex": ...} under `key`. */
bool tokenizer_read_pattern(const Json *object, const char *key, Pattern *pattern, Error *error);
/* A string member as an own copy. */
bool tokenizer_read_text(const Json *object, const char *key, char **text, size_t *length, Error *error);
/* A string member of one character. */
bool tokenizer_read_character(const Json *object, const char *key, int32_t *code, Error *error);
/* The "type" of a part. */
bool tokenizer_read_type(const Json *object, const char **type, Error *error);
/* A larger array of `item_bytes` each, with room for one more after n; zeroed there. */
bool tokenizer_grow(void **items, int64_t n, size_t item_bytes, Error *error);

/* Nested sequences: calls `read` for each part below `at` that is not itself of type Sequence, in order. */
typedef bool PartReader(Tokenizer *tokenizer, const Json *part, const char *type, Error *error);
bool tokenizer_read_parts(Tokenizer *tokenizer, const Json *at, const char *list_key, PartReader *read,
                          Error *error);

#endif

/* Reading normalizer, pre_tokenizer, post_processor and decoder of tokenizer.json, and
 * tokenizer_config.json. One table of types each; what stands in none of them is refused with its path,
 * because leaving it out would change ids. */
#include "alloc.h"
#include "tokenizer_parts.h"
#include "tokenizer_unicode.h"
#include <string.h>

typedef struct {
    const char *type;
    PartReader *read;
} PartKind;

static bool read_part(const PartKind *kinds, size_t n_kinds, Tokenizer *tokenizer, const Json *at,
                      const char *type, Error *error) {
    for (size_t i = 0; i < n_kinds; i++)
        if (strcmp(kinds[i].type, type) == 0) return kinds[i].read(tokenizer, at, type, error);
    Text known = {0};
    for (size_t i = 0; i < n_kinds; i++) text_format(&known, "%s, ", kinds[i].type);
    json_error(json_member(at, "type"), error, "expected %sSequence: got \"%.40s\"",
               known.bytes ? known.bytes : "", type);
    text_free(&known);
    return false;
}

/* ---- normalizers ---- */
static Normalizer *add_normalizer(Tokenizer *tokenizer, NormalizerKind kind, Error *error) {
    if (!tokenizer_grow((void **)&tokenizer->normalizers, tokenizer->n_normalizers, sizeof(Normalizer),
                        error))
        return NULL;
    Normalizer *step = &tokenizer->normalizers[tokenizer->n_normalizers++];
    step->kind = kind;
    return step;
}

static bool read_prepend(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    (void)type;
    Normalizer *step = add_normalizer(tokenizer, NORMALIZE_PREPEND, error);
    return step && tokenizer_read_text(at, "prepend", &step->content, &step->length, error);
}

static bool read_replace(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    (void)type;
    Normalizer *step = add_normalizer(tokenizer, NORMALIZE_REPLACE, error);
    return step && tokenizer_read_pattern(at, "pattern", &step->pattern, error) &&
           tokenizer_read_text(at, "content", &step->content, &step->length, error);
}

static bool read_form(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    (void)at;
    Normalizer *step = add_normalizer(tokenizer, NORMALIZE_FORM, error);
    if (!step) return false;
    step->compatible = type[2] == 'K';
    step->composes = type[strlen(type) - 1] == 'C';
    return true;
}

static bool read_strip(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    (void)type;
    Normalizer *step = add_normalizer(tokenizer, NORMALIZE_STRIP, error);
    return step && tokenizer_read_flag(at, "strip_left", true, &step->left, error) &&
           tokenizer_read_flag(at, "strip_right", true, &step->right, error);
}

static bool read_lowercase(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    (void)at, (void)type;
    return add_normalizer(tokenizer, NORMALIZE_LOWERCASE, error) != NULL;
}

static bool read_normalizer(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    static const PartKind kinds[] = {{"Prepend", read_prepend}, {"Replace", read_replace},
                                     {"NFC", read_form},        {"NFD", read_form},
                                     {"NFKC", read_form},       {"NFKD", read_form},
                                     {"Strip", read_strip},     {"Lowercase", read_lowercase}};
    return read_part(kinds, sizeof kinds / sizeof *kinds, tokenizer, at, type, error);
}

bool tokenizer_read_normalizers(Tokenizer *tokenizer, const Json *root, Error *error) {
    Json at = json_member(root, "normalizer");
    return tokenizer_read_parts(tokenizer, &at, "normalizers", read_normalizer, error);
}

/* ---- pre-tokenizers ---- */
static PieceStep *add_piece_step(Tokenizer *tokenizer, PieceStepKind kind, Error *error) {
    if (!tokenizer_grow((void **)&tokenizer->piece_steps, tokenizer->n_piece_steps, sizeof(PieceStep), error))
        return NULL;
    PieceStep *step = &tokenizer->piece_steps[tokenizer->n_piece_steps++];
    step->kind = kind;
    return step;
}

static bool read_behavior(const Json *at, SplitBehavior *behavior, Error *error) {
    const char *name;
    Json member = json_member(at, "behavior");
    if (!json_string(member, &name, error)) return false;
    for (int i = 0; i < N_SPLITS; i++)
        if (strcmp(split_behavior_names[i], name) == 0) {
            *behavior = (SplitBehavior)i;
            return true;
        }
    return json_error(
        member, error,
        "expected Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous: got \"%.40s\"", name);
}

static bool read_split(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    (void)type;
    PieceStep *step = add_piece_step(tokenizer, PIECES_SPLIT, error);
    return step && tokenizer_read_pattern(at, "pattern", &step->pattern, error) &&
           read_behavior(at, &step->behavior, error) &&
           tokenizer_read_flag(at, "invert", false, &step->invert, error);
}

static bool read_byte_level(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    (void)type;
    bool prefix, regex;
    if (!tokenizer_read_flag(at, "add_prefix_space", true, &prefix, error)) return false;
    if (!tokenizer_read_flag(at, "use_regex", true, &regex, error)) return false;
    if (prefix && !add_piece_step(tokenizer, PIECES_PREFIX_SPACE, error)) return false;
    if (regex) {
        PieceStep *step = add_piece_step(tokenizer, PIECES_SPLIT, error);
        if (!step || !pattern_regex(&step->pattern, byte_level_regex, error)) return false;
        step->behavior = SPLIT_ISOLATED;
    }
    return add_piece_step(tokenizer, PIECES_BYTE_MAP, error) != NULL;
}

static bool read_scheme(const Json *at, MetaspaceScheme *scheme, Error *error) {
    static const char *const names[] = {"always", "first", "never"};
    Json member = json_member(at, "prepend_scheme");
    const char *name;
    bool prefix;
    if (!tokenizer_read_flag(at, "add_prefix_space", true, &prefix, error)) return false;
    *scheme = prefix ? METASPACE_ALWAYS : METASPACE_NEVER;
    if (!member.node) return true;
    if (!json_string(member, &name, error)) return false;
    for (int i = 0; i < 3; i++)
        if (strcmp(names[i], name) == 0) {
            *scheme = (MetaspaceScheme)i;
            return true;
        }
    return json_error(member, error, "expected always, first or never: got \"%.40s\"", name);
}

static bool read_metaspace(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    (void)type;
    int32_t code = 0;
    bool splits;
    PieceStep *step = add_piece_step(tokenizer, PIECES_METASPACE, error);
    if (!step || !tokenizer_read_character(at, "replacement", &code, error) ||
        !read_scheme(at, &step->scheme, error) || !tokenizer_read_flag(at, "split", true, &splits, error))
        return false;
    step->replacement_length = utf8_write(code, step->replacement);
    if (!splits) return true;
    char replacement[4];
    size_t length = utf8_write(code, replacement);
    step = add_piece_step(tokenizer, PIECES_SPLIT, error);
    if (!step || !pattern_literal(&step->pattern, replacement, length, error)) return false;
    step->behavior = SPLIT_MERGED_WITH_NEXT;
    return true;
}

/* A split at the characters of a class. */
static bool add_class_split(Tokenizer *tokenizer, bool (*is_member)(int32_t), SplitBehavior behavior,
                            Error *error) {
    PieceStep *step = add_piece_step(tokenizer, PIECES_SPLIT, error);
    if (!step) return false;
    step->pattern = (Pattern){.kind = PATTERN_CHARACTERS, .is_member = is_member};
    step->behavior = behavior;
    return true;
}

static bool read_digits(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    (void)type;
    bool alone;
    return tokenizer_read_flag(at, "individual_digits", false, &alone, error) &&
           add_class_split(tokenizer, unicode_is_numeric, alone ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, error);
}

static bool read_whitespace_split(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    (void)at, (void)type;
    return add_class_split(tokenizer, unicode_is_space, SPLIT_REMOVED, error);
}

static bool read_punctuation(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    (void)type;
    SplitBehavior behavior = SPLIT_ISOLATED;
    if (json_member(at, "behavior").node && !read_behavior(at, &behavior, error)) return false;
    return add_class_split(tokenizer, unicode_is_punctuation, behavior, error);
}

static bool read_whitespace(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    (void)at, (void)type;
    PieceStep *step = add_piece_step(tokenizer, PIECES_SPLIT, error);
    if (!step ||
        !pattern_regex(&step->pattern, "[\\w\\x{200C}\\x{200D}]+|[^\\w\\x{200C}\\x{200D}\\s]+", error))
        return false;
    step->behavior = SPLIT_REMOVED;
    step->invert = true;
    return true;
}

static bool read_pre_tokenizer(Tokenizer *tokenizer, const Json *at, const char *type, Error *error) {
    static const PartKind kinds[] = {{"Split", read_split},
                                     {"ByteLevel", read_byte_level},
                                     {"Metaspace", read_metaspace},
                                     {"Digits", read_digits},
                                     {"Whitespace", read_whitespace},
                                     {"WhitespaceSplit", read_whitespace_split},
                                     {"Punctuation", read_punctuation}};
    return read_part(kinds, sizeof kinds / sizeof *kinds, tokenizer, at, type, error);
}

bool tokenizer_read_pre_tokenizers(Tokenizer *tokenizer, const Json *root, Error *error) {
    Json at = json_member(root, "pre_tokenizer");
    return tokenizer_read_parts(tokenizer, &at, "pretokenizers", read_pre_tokenizer, error);
}

/* Pre-tokenizers: from a text to its pieces. Steps run one after another over all pieces; a split sees
 * nothing beyond its piece. Steps that change bytes write the text anew and move the pieces along. */
#include "alloc.h"
#include "tokenizer_parts.h"
#include "tokenizer_unicode.h"
#include <string.h>

const char byte_level_regex[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* Bytes that print keep their code point; the others, in increasing order, become 256, 257, ... */
static bool keeps_character(int32_t byte) {
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

int32_t byte_level_character(unsigned char byte) {
    if (keeps_character(byte)) return byte;
    return byte <= 32 ? 256 + byte : byte <= 160 ? 256 + 33 + byte - 127 : 256 + 67;
}

int32_t byte_level_byte(int32_t code) {
    if (code < 0 || code >= 256 + 68) return -1;
    if (code < 256) return keeps_character(code) ? code : -1;
    int32_t k = code - 256;
    return k <= 32 ? k : k < 67 ? 127 + k - 33 : 173;
}

static bool split(const PieceStep *step, StageSpace *space, const Stretch *text, Error *error) {
    for (size_t i = 0; i < space->pieces.n; i++) {
        Span piece = space->pieces.items[i];
        bool done = pattern_find(&step->pattern, text->bytes + piece.begin, piece.end - piece.begin,
                                 &space->pattern, &space->found, error) &&
                    split_pieces(&space->found, step->behavior, step->invert, piece.begin,
                                 &space->next_pieces, error);
        if (!done) return false;
    }
    return true;
}

static bool put_prefixed(Span piece, const Stretch *text, Rewrite *to, Error *error) {
    if (text->bytes[piece.begin] != ' ' && !rewrite_put(to, " ", 1, stretch_origin(text, piece.begin), error))
        return false;
    return rewrite_copy(to, text, piece.begin, piece.end, error);
}

static bool put_metaspace(const PieceStep *step, Span piece, const Stretch *text, Rewrite *to, Error *error) {
    const char *bytes = text->bytes + piece.begin;
    size_t n = piece.end - piece.begin;
    int64_t origin = stretch_origin(text, piece.begin);
    bool marked = bytes[0] == ' ' || (n >= step->replacement_length &&
                                      memcmp(bytes, step->replacement, step->replacement_length) == 0);
    bool wanted = step->scheme == METASPACE_ALWAYS || (step->scheme == METASPACE_FIRST && origin == 0);
    if (wanted && !marked && !rewrite_put(to, step->replacement, step->replacement_length, origin, error))
        return false;
    for (size_t i = piece.begin; i < piece.end; i++) {
        bool space = text->bytes[i] == ' ';
        if (!rewrite_put(to, space ? step->replacement : text->bytes + i,
                         space ? step->replacement_length : 1, stretch_origin(text, i), error))
            return false;
    }
    return true;
}

static bool put_mapped(Span piece, const Stretch *text, Rewrite *to, Error *error) {
    for (size_t i = piece.begin; i < piece.end; i++) {
        char character[4];
        size_t length = utf8_write(byte_level_character((unsigned char)text->bytes[i]), character);
        if (!rewrite_put(to, character, length, stretch_origin(text, i), error)) return false;
    }
    return true;
}

/* A step that changes bytes, piece by piece. */
static bool rewrite_pieces(const PieceStep *step, StageSpace *space, Stretch *text, Error *error) {
    Rewrite *to = stage_space_other(space, text);
    for (size_t i = 0; i < space->pieces.n; i++) {
        Span piece = space->pieces.items[i];
        size_t begin = to->n;
        bool done = step->kind == PIECES_PREFIX_SPACE ? put_prefixed(piece, text, to, error)
                    : step->kind == PIECES_METASPACE  ? put_metaspace(step, piece, text, to, error)
                                                      : put_mapped(piece, text, to, error);
        if (!done || !span_list_put(&space->next_pieces, (Span){begin, to->n, false}, error)) return false;
    }
    stage_space_adopt(space, to, text);
    return true;
}

bool split_text(const PieceStep *steps, int64_t n_steps, StageSpace *space, Stretch *text, Error *error) {
    space->pieces.n = 0;
    if (!text->n) return true;
    if (!span_list_put(&space->pieces, (Span){0, text->n, false}, error)) return false;
    for (int64_t i = 0; i < n_steps; i++) {
        space->next_pieces.n = 0;
        bool done = steps[i].kind == PIECES_SPLIT ? split(&steps[i], space, text, error)
                                                  : rewrite_pieces(&steps[i], space, text, error);
        if (!done) return false;
        SpanList swapped = space->pieces;
        space->pieces = space->next_pieces;
        space->next_pieces = swapped;
    }
    return true;
}

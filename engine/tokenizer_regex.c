/* A regex of a tokenizer.json is meant for Oniguruma; PCRE2 runs it. Classes whose members differ (\s,
 * \w, scripts) are spelt out, and whatever has another meaning in the two engines is refused instead of
 * guessed: nested classes and && in a class, possessive intervals, inline options other than i, escapes
 * such as \h, \b, \R. */
#include "tokenizer_pattern.h"
#include <ctype.h>
#include <string.h>

/* White_Space: PCRE2's own \s has U+180E in excess. */
#define SPACES                                                                                               \
    "\\t-\\r\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
/* Oniguruma's \w: Alphabetic, marks, decimal digits, connectors. */
#define WORDS                                                                                                \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{"     \
    "1F170}-\\x{1F189}"

typedef struct {
    const char *at;
    Text *to;
    bool in_class;
    bool after_class; /* inside a class: what stands before was a spelt-out class or a property */
    Error *error;
} Translation;

static bool refuse(Translation *t, const char *what) {
    return error_set(t->error, ERROR_BAD_INPUT,
                     "expected a regex that means the same to Oniguruma and PCRE2: got %s at \"%.20s\"", what,
                     t->at);
}

/* \s \S \w \W: `set` is what goes between the brackets. */
static bool put_class(Translation *t, const char *set, bool negated) {
    if (t->in_class && negated) return refuse(t, "a negated class inside a class");
    text_put_string(t->to, t->in_class ? "" : negated ? "[^" : "[");
    text_put_string(t->to, set);
    text_put_string(t->to, t->in_class ? "" : "]");
    t->at += 2;
    t->after_class = true;
    return true;
}

/* \p{Name}: short names are general categories, the same in both; a long one is a script, which PCRE2
 * would take for the script extensions. */
static bool put_property(Translation *t) {
    const char *close = t->at[2] == '{' ? strchr(t->at, '}') : NULL;
    if (!close || close - t->at > 60) return refuse(t, "a property without braces");
    const char *name = t->at + 3;
    bool negated = *name == '^';
    if (negated) name++;
    size_t length = (size_t)(close - name);
    for (size_t i = 0; i < length; i++)
        if (!isalpha((unsigned char)name[i]) && name[i] != '_') return refuse(t, "an unknown property");
    text_format(t->to, "\\%c{%s%s%.*s}", t->at[1], negated ? "^" : "", length > 2 ? "sc:" : "", (int)length,
                name);
    t->at = close + 1;
    t->after_class = true;
    return true;
}

static bool put_escape(Translation *t) {
    char c = t->at[1];
    t->after_class = false;
    switch (c) {
    case 's': return put_class(t, SPACES, false);
    case 'S': return put_class(t, SPACES, true);
    case 'w': return put_class(t, WORDS, false);
    case 'W': return put_class(t, WORDS, true);
    case 'p':
    case 'P': return put_property(t);
    case '\0': return refuse(t, "a backslash at the end");
    default: break;
    }
    bool plain = !isalnum((unsigned char)c) || strchr("nrtfaedD", c) || (!t->in_class && strchr("AzZ", c));
    bool code = c == 'x' && (t->at[2] == '{' || (t->at[2] >= '0' && t->at[2] <= '7'));
    if (!plain && !code) return refuse(t, "an escape");
    t->after_class = strchr("dD", c) != NULL;
    text_put(t->to, t->at, 2);
    t->at += 2;
    if (code && *t->at == '{') {
        const char *close = strchr(t->at, '}');
        if (!close) return refuse(t, "an open brace");
        text_put(t->to, t->at, (size_t)(close + 1 - t->at));
        t->at = close + 1;
    }
    return true;
}

static bool put_in_class(Translation *t) {
    char c = t->at[0], next = t->at[1];
    if (c == '[') return refuse(t, "a class inside a class");
    if (c == '&' && next == '&') return refuse(t, "an intersection of classes");
    if (c == '-' && next == '\\' && t->at[2] && strchr("swSWpPdD", t->at[2]))
        return refuse(t, "a range up to a class");
    /* behind a class a hyphen is itself; what the class was spelt out to must not become the begin of a
     * range */
    if (c == '-' && t->after_class) text_put_string(t->to, "\\");
    text_put(t->to, &c, 1);
    t->after_class = false;
    if (c == ']') t->in_class = false;
    t->at++;
    return true;
}

static bool put_group(Translation *t) {
    static const char *const known[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:", "(?i)"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        size_t length = strlen(known[i]);
        if (strncmp(t->at, known[i], length) != 0) continue;
        text_put(t->to, t->at, length);
        t->at += length;
        return true;
    }
    return refuse(t, "a group of another kind");
}

static bool put_outside(Translation *t) {
    char c = t->at[0], next = t->at[1];
    if (c == '(' && next == '*') return refuse(t, "a verb");
    if (c == '(' && next == '?') return put_group(t);
    if (c == '{' && next == ',') return refuse(t, "an interval without a lower bound");
    if (c == '}' && next == '+') return refuse(t, "a possessive interval");
    size_t length = 1;
    if (c == '[') {
        t->in_class = true;
        t->after_class = false;
        if (next == '^') length = 2;
        if (t->at[length] == ']') return refuse(t, "an empty class");
    }
    text_put(t->to, t->at, length);
    t->at += length;
    return true;
}

bool pattern_translate(const char *regex, Text *to, Error *error) {
    Translation t = {.at = regex, .to = to, .error = error};
    while (*t.at) {
        bool good = *t.at == '\\' ? put_escape(&t) : t.in_class ? put_in_class(&t) : put_outside(&t);
        if (!good) return false;
    }
    if (to->failed) return error_out_of_memory(error, "a regex", to->length);
    return true;
}

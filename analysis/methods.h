/* methods: what was done, in sentences that can be pasted into a paper, made from a resolved job.
 *
 * Every option of the job is named with its value and what that value means, those that change no number and
 * those without effect in their step included (the latter are listed as such); of a path its last name. So no
 * two resolved jobs that differ in an option have the same text, but for the folders before that name. An
 * option without a sentence of its own in methods_table.c is named with what its help says of the value, so
 * that a new one is covered from the day it is in the table of options. The text holds no time, host or
 * folder: the same job gives the same bytes. */
#ifndef GATETAPE_METHODS_H
#define GATETAPE_METHODS_H
#include "options.h"

/* Appends the text of a resolved job (job.json of a run folder): headings of level 3, paragraphs and lists,
 * all of it escaped. What a job of another version lacks is named as not stated, what this one does not know
 * is named with its value. Errors: a job without steps; out of memory. */
bool methods_put(Json job, Text *to, Error *error);
/* The same words as plain text: headings on lines of their own; of control characters only line
 * feeds of values. */
bool methods_put_plain(Json job, Text *to, Error *error);
/* FOLDER/methods.txt, the plain text, by the job.json in it. */
bool methods_write(const char *folder, Error *error);

/* ---- for methods_table.c, methods_always.c and the tests ---- */
typedef struct {
    OptionScope scope;
    unsigned kinds; /* of steps, as in Option; 0: all that have the option */
    const char *option;
    const char *value; /* of the job, as text; NULL: every other */
    const char *text;  /* a sentence without its end; {} stands for the value */
} MethodSentence;
extern const MethodSentence method_sentences[], utility_sentences[];
extern const int64_t n_method_sentences, n_utility_sentences;
/* Sentence i of all tables together; NULL: no more. */
const MethodSentence *methods_sentence(int64_t i);

/* An option has no effect in a step whose option `other` has none of these values; `except` instead: that
 * has this one. A step without the other option is not concerned. */
typedef struct {
    const char *option, *other;
    const char *values[4], *except;
} MethodNeed;
extern const MethodNeed method_needs[];
extern const int64_t n_method_needs;

/* Rows of the table of definitions that a reader of the paper needs. */
extern const char *const method_definitions[]; /* NULL-terminated */
/* What is done after each step of a kind without any switch; NULL: nothing. */
const char *method_always(const char *kind);
#endif

/* The command line, read by a table: verbs, their operands and flags, and from the same table every help
 * text.
 *
 * `--flag VALUE` and `--flag=VALUE` are the same; flags may stand anywhere behind the verb; `--` ends them.
 * An unknown verb or flag is an error that names the nearest known one. */
#ifndef GATETAPE_ARGUMENTS_H
#define GATETAPE_ARGUMENTS_H
#include "../engine/error.h"
#include <stdint.h>
#include <stdio.h>

typedef struct {
    const char *name;  /* with its dashes, "--out" */
    const char *value; /* what stands for its value in the help; NULL: it takes none */
    const char *help;
    bool repeated;
} Flag;

typedef struct Arguments Arguments;

typedef struct {
    const char *name, *operand; /* "JOB", or two as "RUN RUN"; NULL: the verb takes none */
    const char *summary;        /* one line */
    const char *details;        /* more, ended by a line feed; may be NULL */
    const Flag *flags;          /* ended by a name of NULL; may be NULL */
    /* Does it. False and an Error, or false alone when what was asked came out negative (exit code 1). */
    bool (*run)(const Arguments *arguments, Error *error);
} Verb;

enum { MAX_ARGUMENTS = 256 };

struct Arguments {
    const Verb *verb;
    const char *operand, *second; /* the operands; NULL where the verb takes none */
    bool help;
    int64_t n;
    struct {
        const Flag *flag;
        const char *value;
    } given[MAX_ARGUMENTS];
};

/* Reads what stands behind the verb. */
bool arguments_read(const Verb *verb, int n, char **texts, Arguments *arguments, Error *error);

bool arguments_have(const Arguments *arguments, const char *flag);
/* The last value of a flag, else `otherwise`. */
const char *arguments_value(const Arguments *arguments, const char *flag, const char *otherwise);
/* All values of a repeated flag, in order; returns how many, at most MAX_ARGUMENTS. */
int64_t arguments_values(const Arguments *arguments, const char *flag, const char *values[MAX_ARGUMENTS]);
/* Numbers; `value` keeps what it holds when the flag is not given. */
bool arguments_integer(const Arguments *arguments, const char *flag, int64_t least, int64_t most,
                       int64_t *value, Error *error);
bool arguments_number(const Arguments *arguments, const char *flag, double least, double most, double *value,
                      Error *error);

const Verb *verb_find(const Verb *verbs, const char *name, Error *error); /* verbs: ended by a name of NULL */
void verb_print_help(const Verb *verb, FILE *to);
void verbs_print_help(const Verb *verbs, FILE *to);

#endif

/* Reading the command line, and the help. */
#include "arguments.h"
#include "../engine/json.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const Flag help_flag = {"--help", NULL, "print this and end", false};

static const Flag *find_flag(const Verb *verb, const char *name, size_t length) {
    for (const Flag *flag = verb->flags; flag && flag->name; flag++)
        if (strlen(flag->name) == length && !memcmp(flag->name, name, length)) return flag;
    return length == strlen(help_flag.name) && !memcmp(name, help_flag.name, length) ? &help_flag : NULL;
}

static bool unknown_flag(const Verb *verb, const char *text, Error *error) {
    const char *names[64] = {help_flag.name};
    size_t n = 1;
    for (const Flag *flag = verb->flags; flag && flag->name && n < 64; flag++) names[n++] = flag->name;
    char name[80];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(text, "="), text);
    const char *near = json_nearest(name, names, n);
    return error_set(error, ERROR_BAD_INPUT, "%s: expected a flag of this verb: got %s%s%s%s", verb->name,
                     name, near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
}

/* One flag; *i is moved on when its value is the next text. */
static bool read_flag(Arguments *a, int n, char **texts, int *i, Error *error) {
    const char *text = texts[*i], *equals = strchr(text, '=');
    const Flag *flag = find_flag(a->verb, text, equals ? (size_t)(equals - text) : strlen(text));
    if (!flag) return unknown_flag(a->verb, text, error);
    if (flag == &help_flag) {
        a->help = true;
        return true;
    }
    const char *value = equals ? equals + 1 : NULL;
    if (!flag->value && value)
        return error_set(error, ERROR_BAD_INPUT, "%s: expected no value: got %s", flag->name, value);
    if (flag->value && !value) {
        if (*i + 1 >= n)
            return error_set(error, ERROR_BAD_INPUT, "%s: expected %s behind it: got nothing", flag->name,
                             flag->value);
        value = texts[++*i];
    }
    if (!flag->repeated && arguments_have(a, flag->name))
        return error_set(error, ERROR_BAD_INPUT, "%s: expected once: got it again", flag->name);
    if (a->n == MAX_ARGUMENTS)
        return error_set(error, ERROR_BAD_INPUT, "expected at most %d flags", MAX_ARGUMENTS);
    a->given[a->n].flag = flag;
    a->given[a->n++].value = value;
    return true;
}

/* One more operand; false when the verb takes no more. */
static bool take_operand(Arguments *a, const char *text) {
    bool two = a->verb->operand && strchr(a->verb->operand, ' ');
    if (a->verb->operand && !a->operand)
        a->operand = text;
    else if (two && !a->second)
        a->second = text;
    else
        return false;
    return true;
}

static bool lacks_operand(const Arguments *a) {
    return a->verb->operand && (!a->operand || (strchr(a->verb->operand, ' ') && !a->second));
}

bool arguments_read(const Verb *verb, int n, char **texts, Arguments *a, Error *error) {
    *a = (Arguments){.verb = verb};
    bool flags = true;
    for (int i = 0; i < n; i++) {
        if (flags && !strcmp(texts[i], "--")) {
            flags = false;
        } else if (flags && !strcmp(texts[i], "-h")) {
            a->help = true;
        } else if (flags && texts[i][0] == '-' && texts[i][1]) {
            if (!read_flag(a, n, texts, &i, error)) return false;
        } else if (!take_operand(a, texts[i])) {
            const char *one = !verb->operand ? "no operand" : a->second ? "" : "one ";
            return error_set(error, ERROR_BAD_INPUT, "%s: expected %s%s: got \"%s\" too", verb->name, one,
                             verb->operand ? verb->operand : "", texts[i]);
        }
    }
    if (a->help || !lacks_operand(a)) return true;
    return error_set(error, ERROR_BAD_INPUT, "%s: expected %s: got %s (gatetape %s --help)", verb->name,
                     verb->operand, a->operand ? "one" : "nothing", verb->name);
}

bool arguments_have(const Arguments *a, const char *flag) {
    for (int64_t i = 0; i < a->n; i++)
        if (!strcmp(a->given[i].flag->name, flag)) return true;
    return false;
}

const char *arguments_value(const Arguments *a, const char *flag, const char *otherwise) {
    for (int64_t i = a->n; i-- > 0;)
        if (!strcmp(a->given[i].flag->name, flag)) return a->given[i].value;
    return otherwise;
}

int64_t arguments_values(const Arguments *a, const char *flag, const char *values[MAX_ARGUMENTS]) {
    int64_t n = 0;
    for (int64_t i = 0; i < a->n; i++)
        if (!strcmp(a->given[i].flag->name, flag)) values[n++] = a->given[i].value;
    return n;
}

bool arguments_integer(const Arguments *a, const char *flag, int64_t least, int64_t most, int64_t *value,
                       Error *error) {
    const char *text = arguments_value(a, flag, NULL);
    if (!text) return true;
    char *end = NULL;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    bool digits = *text && (*text == '-' ? text[1] : *text) >= '0' && (*text == '-' ? text[1] : *text) <= '9';
    if (!digits || *end || errno || number < least || number > most)
        return error_set(error, ERROR_BAD_INPUT, "%s: expected an integer from %lld to %lld: got \"%s\"",
                         flag, (long long)least, (long long)most, text);
    *value = number;
    return true;
}

bool arguments_number(const Arguments *a, const char *flag, double least, double most, double *value,
                      Error *error) {
    const char *text = arguments_value(a, flag, NULL);
    if (!text) return true;
    char *end = NULL;
    double number = strtod(text, &end);
    if (!strchr("0123456789.", *text) || !*text || *end || strpbrk(text, "xX") ||
        !(number >= least && number <= most))
        return error_set(error, ERROR_BAD_INPUT, "%s: expected a number from %g to %g: got \"%s\"", flag,
                         least, most, text);
    *value = number;
    return true;
}

/* ---- verbs ---- */
const Verb *verb_find(const Verb *verbs, const char *name, Error *error) {
    const char *names[64];
    size_t n = 0;
    for (const Verb *verb = verbs; verb->name; verb++) {
        if (!strcmp(verb->name, name)) return verb;
        if (n < 64) names[n++] = verb->name;
    }
    const char *near = json_nearest(name, names, n);
    error_set(error, ERROR_BAD_INPUT, "expected a verb: got \"%s\"%s%s%s", name,
              near ? " (did you mean " : "", near ? near : "", near ? "?)" : " (gatetape --help lists them)");
    return NULL;
}

static void print_flag(const Flag *flag, FILE *to) {
    char head[60];
    snprintf(head, sizeof head, "%s%s%s%s", flag->name, flag->value ? " " : "",
             flag->value ? flag->value : "", flag->repeated ? " ..." : "");
    fprintf(to, "  %-24s %s\n", head, flag->help);
}

void verb_print_help(const Verb *verb, FILE *to) {
    fprintf(to, "usage: gatetape %s%s%s%s\n\n%s\n", verb->name, verb->operand ? " " : "",
            verb->operand ? verb->operand : "", verb->flags ? " [flags]" : "", verb->summary);
    if (verb->details) fprintf(to, "\n%s", verb->details);
    fprintf(to, "\nflags:\n");
    for (const Flag *flag = verb->flags; flag && flag->name; flag++) print_flag(flag, to);
    print_flag(&help_flag, to);
}

void verbs_print_help(const Verb *verbs, FILE *to) {
    fprintf(to, "usage: gatetape VERB ...\n\n"
                "Which experts of a Mixture-of-Experts language model carry a behaviour.\n\nverbs:\n");
    for (const Verb *verb = verbs; verb->name; verb++) {
        char head[60];
        snprintf(head, sizeof head, "%s%s%s", verb->name, verb->operand ? " " : "",
                 verb->operand ? verb->operand : "");
        fprintf(to, "  %-18s %s\n", head, verb->summary);
    }
    fprintf(
        to,
        "\n  gatetape VERB --help says more; gatetape --version\n\n"
        "Results go to standard output or into the run folder, everything else to standard error.\n"
        "exit codes: 0 done; 1 failed while running, or a check did not pass; 2 bad job, option or file;\n"
        "            3 device or memory not available; 130 interrupted (a second run resumes)\n");
}

/* Private to judge_*.c: the replies of an intervention step while they are labelled and compared. */
#ifndef GATETAPE_JUDGE_PARTS_H
#define GATETAPE_JUDGE_PARTS_H
#include "csv.h"
#include "judge_folder.h"

enum { JUDGE_MOST_BYTES = 1 << 30, NO_LABEL = -1 };

/* One reply; texts are owned. */
typedef struct {
    char *group, *id, *why;
    char *text; /* kept for a guard; else NULL */
    int64_t index;
    Label label, rule; /* label: what counts; rule: what the rules say */
    int human, guard;  /* NO_LABEL: none */
    double perplexity; /* under the unedited model; NaN: not known */
    /* the guard's, of its answers among themselves, NaN: it has no such answer; and of saying none of them */
    double probability[N_LABELS], other;
} Reply;

/* A condition; texts belong to the table of conditions. */
typedef struct {
    const char *name, *kind, *of; /* of: the condition that a control goes with */
    const char *rule, *amount;    /* random sets go with every condition of theirs */
    Reply *replies;
    int64_t n, next; /* next: where a search goes on */
    bool defined;
} Judged;

/* Who is set beside whom. */
typedef enum { PEOPLE_AND_RULES, PEOPLE_AND_GUARD, GUARD_AND_RULES, N_PAIRS } LabellerPair;

typedef struct Judging {
    const JudgeFolder *request;
    JudgeRules *rules;
    Csv conditions, people;
    bool has[N_PAIRS]; /* replies that both have labelled */
    Judged *list;      /* in the order of conditions.csv, the baseline first */
    int64_t n;
    int64_t agreement[N_PAIRS][N_LABELS][N_LABELS];
    double perplexity_reference; /* NaN: not defined */
    Error *error;
} Judging;

/* Conditions and their replies, labelled by the rules. */
bool judge_read_conditions(Judging *w);
/* request->labels, where it is given. */
bool judge_read_people(Judging *w);
/* w->perplexity_reference, and replies beyond request->perplexity_limit degraded by rule. */
bool judge_read_perplexity(Judging *w);
/* Whose label counts, and who agrees with whom. */
void judge_decide(Judging *w);
/* labels.csv, outcomes.csv, agreement.csv, judge.json. rules: their path, as judge.json is to name it. */
bool judge_write_tables(Judging *w, const char *rules);
void judge_free_conditions(Judging *w);

#endif

/* judge_folder: the replies of an intervention step labelled, and what its conditions changed.
 *
 * Reads FOLDER/conditions.csv and FOLDER/responses/CONDITION.jsonl. Writes labels.csv (a row a reply:
 * condition, group, index, id; the label that counts and why by the rules; the label of people; perplexity;
 * the labels of rules and guard; the guard's probabilities), outcomes.csv (a row a condition and group,
 * beside the baseline, and beside the mean of its matched controls), agreement.csv (labellers beside each
 * other, with Cohen's kappa, where there are two) and judge.json (by what files, limits and seed). A later
 * run with other rules or labels replaces them. */
#ifndef GATETAPE_JUDGE_FOLDER_H
#define GATETAPE_JUDGE_FOLDER_H
#include "judge.h"

/* What a reply's perplexity is compared with: the largest or the median of the baseline's replies, of all
 * groups together, or 1. */
typedef enum { PERPLEXITY_LARGEST, PERPLEXITY_MEDIAN, PERPLEXITY_ABSOLUTE } PerplexityReference;
extern const char *const perplexity_reference_names[]; /* ended by NULL */

typedef enum { LABELLER_PEOPLE, LABELLER_GUARD, LABELLER_RULES, N_LABELLERS } Labeller;
extern const char *const labeller_names[N_LABELLERS + 1]; /* ended by NULL */

enum { JUDGE_RESAMPLES = 2000 };
#define JUDGE_STANDARD_RULES "judge/refusals_en.json"
#define JUDGE_STANDARD_GUARD "judge/guard_three_way.json"

/* A file that an option names, or where it names none ("" or NULL) the standard one of configs/. Caller
 * frees; NULL and an Error when out of memory. */
char *judge_path(const char *given, const char *standard, Error *error);

struct Judging; /* judge_parts.h */

typedef struct {
    const char *folder; /* RUN/STEP */
    const char *rules;  /* a file of judge.h; NULL or "": the standard one */
    /* NULL, or a CSV with condition, group, id and label, or labels.csv with its column human filled in: a
     * label there goes before the rules' */
    const char *labels;
    int64_t resamples, seed;
    /* 0: off. Else replies are degraded whose perplexity under the unedited model is more than so many times
     * the reference's; replies without it are an error then */
    double perplexity_limit;
    int perplexity_reference;
    /* whose label counts: the first of them that has one; none given: people, guard, rules */
    Labeller decides[N_LABELLERS];
    int n_decides;
    const char *out; /* where the tables go; NULL: to folder */
    /* Fills guard, probability and other of every reply; NULL: no guard. Then guard_facts is JSON that says
     * what guard it was, and guard_degrades whether it has an answer for degraded: if not, what the rules
     * call degraded is, whatever it says */
    bool (*ask_guard)(void *context, struct Judging *judging);
    void *context;
    const char *guard_facts;
    bool guard_degrades;
    bool asks_alone; /* no tables: of ranks that ask the guard together, all but the first */
} JudgeFolder;

bool judge_folder(const JudgeFolder *request, Error *error);

#endif

/* judge_folder: the replies of an intervention step labelled, and what its conditions changed.
 *
 * Reads FOLDER/conditions.csv and FOLDER/responses/CONDITION.jsonl. Writes labels.csv (a row a reply:
 * condition, group, index, id, label, why, human, perplexity), outcomes.csv (a row a condition and group,
 * beside the baseline, and beside the mean of its matched controls), agreement.csv (rules beside people,
 * where there are labels of people) and judge.json (the rules' path and hash, resamples, seed). A later run
 * with other rules or labels replaces them. */
#ifndef GATETAPE_JUDGE_FOLDER_H
#define GATETAPE_JUDGE_FOLDER_H
#include "judge.h"

/* What a reply's perplexity is compared with: the largest or the median of the baseline's replies, of all
 * groups together, or 1. */
typedef enum { PERPLEXITY_LARGEST, PERPLEXITY_MEDIAN, PERPLEXITY_ABSOLUTE } PerplexityReference;
extern const char *const perplexity_reference_names[]; /* ended by NULL */

enum { JUDGE_RESAMPLES = 2000 };

typedef struct {
    const char *folder; /* RUN/STEP */
    const char *rules;  /* a file of judge.h; NULL: configs/judge/refusals_en.json */
    /* NULL, or a CSV with condition, group, id and label, or labels.csv with its column human filled in: a
     * label there goes before the rules' */
    const char *labels;
    int64_t resamples, seed;
    /* 0: off. Else replies are degraded whose perplexity under the unedited model is more than so many times
     * the reference's; replies without it are an error then */
    double perplexity_limit;
    int perplexity_reference;
} JudgeFolder;

bool judge_folder(const JudgeFolder *request, Error *error);

#endif

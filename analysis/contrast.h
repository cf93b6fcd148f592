/* contrast: one step of kind contrast. Does the router go elsewhere for the same prompt answered otherwise,
 * for the same prompt behind a prefix, for a prompt's matched partner, for the same text under an adapter;
 * and how far does it go for another topic?
 *
 * The unit is a pair of texts, first and second. Of each pair and layer: Jensen-Shannon divergence of the
 * router distributions (softmax over all experts), overlap@k, weighted Jaccard; beside them the same of
 * control pairs of unlike topics. Continuations are compared token by token (the j-th of one with the j-th
 * of the other, up to the shorter's end, behind the same prompt tokens, which is checked), and so is one text
 * without an adapter (first) and with it (second); prompts by their mean distributions. Cells are ranked by
 * three sensitivities, and the first of each ranking are written as selection_*.csv. The definitions are
 * ours where the literature (arXiv 2605.29708) states none; definitions.c has them.
 *
 * RUN/STEP gets contrast.json, overall.csv, layers.csv, pairs.csv, controls.csv, ranking.csv,
 * selection_RANKING.csv and last step.json. Finished blocks of 64 pairs are not measured again. */
#ifndef GATETAPE_CONTRAST_H
#define GATETAPE_CONTRAST_H
#include "resample.h"
#include "step.h"

bool contrast_run(const StepRun *run, Error *error);

/* Texts of a pair are compared token by token (else by their mean distributions). */
bool contrast_by_token(const StepOptions *step);
/* The gradient of the contrast is taken. */
bool contrast_walks_back(const StepOptions *step);

/* What of a step's groups, and of its other options (*key: which), contradicts itself; NULL: nothing. */
const char *contrast_wrong_groups(const StepOptions *step);
const char *contrast_contradiction(const StepOptions *step, const char **key);

/* ---- pairs: pair i is prompts[i] of both sides ---- */
typedef struct {
    PromptGroup side[2]; /* prompts in the order of pairs, n of both */
    int64_t n;
} ContrastPairs;

/* Reads and encodes both sides, pairs them and checks what the contrast rests on: partners, targets,
 * topics, equal prompts before continuations, a counted token in every text. *notes gets a line for each
 * thing to warn of. inputs NULL: hashes are not compared. Caller frees with contrast_pairs_free, also
 * after an error. */
bool contrast_pairs_read(const Job *job, const StepOptions *step, const PromptEncoder *encoder,
                         const Inputs *inputs, ContrastPairs *pairs, Text *notes, Error *error);
void contrast_pairs_free(ContrastPairs *pairs);

/* ---- a batch: texts 2i and 2i + 1 are pair first + i ---- */
/* Tokens of both texts of a pair. */
int64_t contrast_pair_tokens(const StepOptions *step, const ContrastPairs *pairs, int64_t pair);
/* How many pairs from `first` on, of those before `end`, make one batch: at least one. */
int64_t contrast_batch_size(const StepOptions *step, const ContrastPairs *pairs, int64_t first, int64_t end,
                            BatchLimits limits);
/* counted: the text's number; loss: 1 / its target tokens, negative for the first side, so that the loss
 * of a pass is the sum over pairs of NLL(second) - NLL(first); 0 without continuations. Caller frees
 * with batch_free; safe after an error too. */
bool contrast_batch_make(const StepOptions *step, const ContrastPairs *pairs, int64_t first, int64_t n,
                         Batch *batch, Error *error);
/* Of a pair: counted tokens of both texts, and aligned positions counted in both. */
void contrast_count_tokens(const StepOptions *step, const ContrastPairs *pairs, int64_t pair,
                           int64_t counted[2], int64_t *n_aligned);

typedef struct {
    const Model *model;
    const StepOptions *step;
    const ContrastPairs *pairs;
    size_t memory_limit_bytes;
} ContrastPass;

/* One pass over pairs [first, first + n); fills rows from `at` on of `to`. */
bool contrast_measure(const ContrastPass *pass, int64_t first, int64_t n, int64_t at, Measures *to,
                      Error *error);
/* This rank's part in such a pass of the others, on a spread model. */
void contrast_serve(const ContrastPass *pass);

/* ---- two distributions over experts ---- */
typedef enum { CURVE_JS, CURVE_OVERLAP, CURVE_JACCARD, N_CURVES } ContrastCurve;
extern const char *const contrast_curve_names[N_CURVES];

/* JS in nats of p and q, each divided by its sum; how many experts are among the k largest of both (ties
 * to the lower expert); sum min / sum max. mark [2 n_experts] is room. */
void contrast_compare(const double *p, const double *q, int64_t n_experts, int64_t k, uint8_t *mark,
                      double values[N_CURVES]);

/* What the router decided on a batch of pairs, on the host. */
typedef struct {
    const Batch *batch;
    const float *probs; /* [L,T,E] softmax over all experts */
    const int32_t *ids; /* [L,T,K] the chosen ones */
    int64_t n_layers, n_experts, n_chosen, overlap_k;
    bool token_by_token; /* continuations; else mean distributions are compared */
} ContrastRoutes;

/* Fills js, overlap, jaccard, selected_*, mean_* and shift of rows from `at` on; they must be zero. The
 * same bits for any number of threads. */
bool contrast_reduce(const ContrastRoutes *routes, int64_t at, Measures *to, Error *error);

int64_t contrast_overlap_k(const StepOptions *step, const ModelConfig *config);

/* ---- statistics ---- */
typedef struct {
    const StepOptions *step;
    const ModelConfig *config;
    uint64_t seed;
    const Measures *measures;
    const char *const *topics; /* [P] of pairs; NULL: no controls */
    const int64_t *keys;       /* [P] numbers of pairs in random draws */
} ContrastInput;

typedef struct {
    int64_t most;     /* draws of a pair at most */
    int64_t *n_draws; /* [P] fewer where other topics have fewer prompts */
    int64_t *partner; /* [P,most] pairs whose second text (prefix: whose plain prompt) was drawn */
    double *draws;    /* [P,most,N_CURVES] mean over layers */
    double *curves;   /* [P,L,N_CURVES] mean over draws */
} ContrastControls;

typedef enum { RANKING_RATE, RANKING_PROBABILITY, RANKING_GRADIENT, N_RANKINGS } ContrastRankingKind;
extern const char *const contrast_ranking_names[N_RANKINGS];

typedef struct {
    bool there;         /* false: no backward pass was made */
    double *value;      /* [C] mean over pairs; of rate signed, first - second */
    double *low, *high; /* [C] its interval */
    double *score;      /* [C] what is ranked: value, of rate by rate_side; >= 0 */
    int64_t *order;     /* [C] cells, largest score first, ties to the lower cell */
    int64_t *rank;      /* [C] from 1 */
    double *frequency;  /* [C] share of the bootstraps with the cell among their first n_wanted */
    bool *selected;     /* [C] */
    bool *stable;       /* [C] among the first n_wanted of every bootstrap */
    int64_t n_selected;
} ContrastRanking;

typedef enum { PART_CONTRAST, PART_CONTROL, PART_DIFFERENCE, N_PARTS } ContrastPart; /* contrast - control */

typedef struct {
    int64_t n_pairs, n_layers, n_cells, n_wanted;
    const char *no_controls, *no_samples; /* why there are none, or NULL */
    Resamples draws;                      /* of the pairs, the same for curves and rankings */
    ContrastControls controls;
    int64_t n_columns;         /* by contrast_column */
    double *values;            /* [P,n_columns] */
    double *mean, *low, *high; /* [n_columns] */
    ContrastRanking rankings[N_RANKINGS];
} ContrastStatistics;

/* Of layer l, or of their mean, l = n_layers. */
int64_t contrast_column(const ContrastStatistics *s, ContrastPart part, ContrastCurve curve, int64_t l);

/* The same bits for any number of threads. Caller frees, also after an error. */
bool contrast_statistics_make(const ContrastInput *input, ContrastStatistics *statistics, Error *error);
void contrast_statistics_free(ContrastStatistics *statistics);
bool contrast_rank_cells(const ContrastInput *input, ContrastStatistics *s, Error *error);
/* How many cells a ranking selects; an Error where that is none, or more than there are. */
bool contrast_count_wanted(const StepOptions *step, const ModelConfig *config, int64_t *n, Error *error);

/* ---- files ---- */
typedef struct {
    const StepRun *run;
    const ContrastPairs *pairs;
    const ContrastInput *input;
    const ContrastStatistics *statistics;
    const char *warnings; /* lines; may be NULL */
} ContrastResults;

bool contrast_write(const ContrastResults *results, Error *error);
/* contrast.json as a text. */
void contrast_put_json(const ContrastInput *input, const ContrastStatistics *s, const char *warnings,
                       Text *to);
const char *contrast_alignment(const StepOptions *step); /* how tokens are compared, in words */

#endif

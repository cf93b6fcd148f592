/* measures: what a step keeps of each prompt, before anything is averaged.
 *
 * One table of columns drives memory, the files of finished blocks and putting blocks together. Cells are
 * (expert layer, expert), expert layers counted from 0 here; tables write decoder layers. A block is
 * BLOCK_PROMPTS prompts of a group: what a run that was stopped does not do again. */
#ifndef GATETAPE_MEASURES_H
#define GATETAPE_MEASURES_H
#include "../engine/comm.h"
#include "../engine/error.h"
#include "../engine/generate.h"
#include "options.h"
#include <stdint.h>

enum { BLOCK_PROMPTS = 64 };

typedef struct {
    int kind; /* StepKind */
    int64_t n_prompts, n_layers, n_experts;
    /* of each prompt, [P] */
    int64_t *n_tokens;  /* tokens of the pass: prompt and what was put behind it */
    int64_t *n_counted; /* tokens counted, or tokens of the loss; contrast: aligned tokens */
    double *nll;        /* mean negative log-likelihood: gradient: of the loss; intervention: of the reply's
                           tokens under the unedited model, 0 when it is not asked for */
    double *prompt_nll,
        *target_nll; /* intervention: of the prompt's own tokens and of its target's, under the
                                        condition; 0 where there are none or they are not asked for */
    /* activation, [P,L,E] */
    int64_t *selected; /* times chosen */
    float *mass;       /* sum of router probabilities */
    float *weight;     /* sum of combine weights */
    float *largest;    /* largest magnitude in the expert's outputs */
    float *norm;       /* largest L2 norm of an output */
    /* activation, [P,L] */
    int64_t *near_ties; /* counted tokens whose margin is below the step's near_tie */
    float *margin;      /* least margin of a counted token; infinite when there is none */
    /* gradient of the prompt's loss, [P,L,E] */
    float *l2, *l1;   /* norms of the gate row's gradient */
    float *logit_abs; /* sum over tokens of |dL/dlogit| */
    /* contrast: of each pair of texts. [P]: tokens counted of both; mean NLL of their targets */
    int64_t *n_first, *n_second;
    double *nll_first, *nll_second;
    double *js, *overlap, *jaccard; /* [P,L], JS in nats */
    /* [P,L,E] */
    int64_t *selected_first, *selected_second; /* times chosen, over counted tokens */
    double *mean_first, *mean_second;          /* mean router distribution over counted tokens */
    double *shift;      /* mean |p - q| over aligned tokens; without such |mean_first - mean_second| */
    float *contrast_l2; /* norm of the gate row's gradient of NLL(second) - NLL(first) */
    /* replies, where the step generates */
    int64_t *reply_offsets; /* [P+1] into reply_tokens */
    int32_t *reply_tokens;
    int64_t *reply_stopped; /* [P]: ended by a stop token */
} Measures;

/* Zeroed; the arrays of the kind. Caller frees; safe after an error too. */
bool measures_make(int kind, int64_t n_prompts, int64_t n_layers, int64_t n_experts, Measures *measures,
                   Error *error);
void measures_free(Measures *measures);
/* Room for replies of n_tokens in all, zeroed. */
bool measures_make_replies(Measures *measures, int64_t n_tokens, Error *error);

/* Replies of a batch, to stand from number `at` on, behind those that are there. */
bool measures_put_replies(Measures *measures, int64_t at, const Generation *from, Error *error);

/* A finished block to and from its file. Loading: an Error when it is not such a block. */
bool measures_save(const Measures *measures, const char *path, Error *error);
bool measures_load(const char *path, int kind, int64_t n_prompts, int64_t n_layers, int64_t n_experts,
                   Measures *measures, Error *error);
/* Collective: rank 0 gets the ranks' prompts one after another, rows[r] of rank r; *part is taken in any
 * case. On the other ranks *whole stays empty. A rank without memory for it ends the job. */
void measures_gather(Comm *comm, Measures *part, const int64_t *rows, Measures *whole);
/* Puts a block's prompts at `first` of the whole; replies are appended. */
bool measures_append(Measures *whole, int64_t first, const Measures *block, Error *error);

#endif

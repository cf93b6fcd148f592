/* trace: what every token was routed to, for whoever asks for it.
 *
 * As sensitive as the prompts: expert ids alone give back most of the text (arXiv 2602.04105). Written
 * only where the job says so, one file a block of prompts, and the warning stands in the file. */
#ifndef GATETAPE_TRACE_H
#define GATETAPE_TRACE_H
#include "batches.h"

extern const char trace_warning[];

typedef struct {
    int choice; /* TraceChoice */
    int64_t n_prompts, n_tokens, n_layers, n_experts, n_chosen;
    float *logits;  /* [L,T,E] as the router's linear map gives them */
    float *probs;   /* [L,T,E] softmax over all experts */
    int32_t *ids;   /* [L,T,K] largest weight first */
    float *weights; /* [L,T,K] as applied to the experts' outputs */
    float *margin;  /* [L,T] least chosen logit minus largest other; infinite where all are chosen */
    int32_t *tokens, *roles, *spans;     /* [T] */
    int64_t *prompt_offsets;             /* [P+1] */
    int64_t *prompt_index;               /* [P] entry of the prompt file */
    int64_t n_put_tokens, n_put_prompts; /* so far */
} Trace;

bool trace_make(int choice, const ModelConfig *config, int64_t n_prompts, int64_t n_tokens, Trace *trace,
                Error *error);
void trace_free(Trace *trace);

/* In a route hook: a layer of the batch that comes next. */
void trace_copy_layer(Trace *trace, const HookSite *site, const RouteView *view);
/* After the pass: the batch is done; its prompts are those from `at` of the group on. */
void trace_put_batch(Trace *trace, const Batch *batch, const PromptGroup *group, int64_t at);

/* Collective, as measures_gather: the traces of the ranks' prompts of one block, one after another. */
void trace_gather(Comm *comm, Trace *part, const int64_t *rows, const ModelConfig *config, Trace *whole);

bool trace_write(Trace *trace, const ModelConfig *config, const char *path, Error *error);

/* The routes of a file that trace_write made, for a model of the same shape: ids, weights, tokens,
 * prompt_offsets; what is not needed to replay them stays NULL. Caller frees with trace_free. */
bool trace_read(const char *path, const ModelConfig *config, Trace *trace, Error *error);
/* As PassOptions.replay wants them for a batch of all the file's prompts; borrows. */
RouteReplay trace_replay(const Trace *trace);

#endif

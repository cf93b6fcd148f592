/* The one decoder. Inference, scoring, gradients and generation are all the same forward pass over the op
 * table of a device; with a tape behind it, it can be walked back.
 *
 * A pass works on prompts packed one after another, of any lengths, no padding. A prompt's results do not
 * depend on what else is in the batch. Callers see what happens inside through hooks: tensors on the device,
 * valid during the call; whoever needs them longer reduces them with ops of the queue or copies them out. */
#ifndef GATETAPE_MODEL_H
#define GATETAPE_MODEL_H
#include "edits.h"
#include "spread.h"
#include "weights.h"

/* The memory of the last pass, kept for the next one: fresh memory costs a page fault every 4 KB. */
typedef struct {
    void *block; /* NULL: none, or in use */
    size_t n_bytes;
} SpareBlock;

typedef struct LoraWeights LoraWeights;   /* lora.h */
typedef struct LoraTraining LoraTraining; /* lora.h */
typedef struct Exchange Exchange;         /* exchange.h */

typedef struct {
    ModelConfig config;
    Weights weights;
    const Device *device;
    DType compute;              /* DTYPE_F32 or DTYPE_BF16: how activations are stored (DESIGN section 3) */
    SpareBlock *spare;          /* owned; NULL: nothing is kept between passes */
    const LoraWeights *adapter; /* the caller's: updates of experts that every run has; NULL: none */
    Spread spread;
    Exchange *exchange; /* owned; NULL: no tokens travel */
} Model;

/* Opens a checkpoint folder. On the cost device the files' headers are read, no weights. Caller closes. One
 * thread at a time computes with a model. */
bool model_open(const char *folder, const Device *device, DType compute, Model *model, Error *error);
/* The same with the experts where `spread` says: the same bits. With several ranks a collective. */
bool model_open_spread(const char *folder, const Device *device, DType compute, const Spread *spread,
                       Model *model, Error *error);
void model_close(Model *model);

/* Prompts on the host, packed; owned by the caller. Prompt p has the tokens [offsets[p], offsets[p+1]), at
 * least one. */
typedef struct {
    int64_t n_prompts;
    const int64_t *offsets; /* [P+1], offsets[0] = 0 */
    const int32_t *tokens;  /* [T], each in [0, V) */
} PromptBatch;

/* What a layer's router decided. All on the device; moe_layer counts expert layers from 0. */
typedef struct {
    int64_t layer, moe_layer;
    Tensor input;   /* [T,D] act: what router and experts read */
    Tensor logits;  /* [T,E] f32, before any edit */
    Tensor probs;   /* [T,E] f32, softmax over all experts of the edited logits */
    Tensor ids;     /* [T,K] i32, largest weight first */
    Tensor weights; /* [T,K] f32, as applied to the experts' outputs */
    Tensor outputs; /* [M,D] act: the experts' outputs before their weights, rows by plan */
    MoePlan plan;
} RouteView;

/* What came back to a router. Gradients of the sum over tokens of loss_weights[t] * nll[t]. */
typedef struct {
    int64_t layer, moe_layer;
    Tensor input;        /* [T,D] act */
    Tensor logits_grad;  /* [T,E] f32 */
    Tensor weights_grad; /* [T,K] f32: of the combine weights */
    Tensor ids, weights; /* as in RouteView */
    Tensor offsets;      /* [P+1] i32: the prompts' tokens, as segment ops want them */
} RouteGradView;

/* Where a hook runs its ops. A hook that fails fills *error and returns false; the pass then ends with that
 * error. */
typedef struct {
    const Device *device;
    Queue *queue;
    Error *error;
} HookSite;

typedef struct {
    void *context; /* handed to every hook; each hook may be NULL */
    /* forward, layers ascending, once */
    bool (*route)(void *context, HookSite *site, const RouteView *view);
    /* x [T,D] act after each decoder layer */
    bool (*residual)(void *context, HookSite *site, int64_t layer, Tensor x);
    /* backward, layers descending */
    bool (*route_grad)(void *context, HookSite *site, const RouteGradView *view);
    /* [T,D] act, last; without it nothing below the first router is walked back */
    bool (*embedding_grad)(void *context, HookSite *site, Tensor grad);
    /* nll [T] real, after the forward */
    bool (*loss)(void *context, HookSite *site, Tensor nll);
    /* kl, distance [L_moe,T] real of PassOptions.router_loss, after the forward; absent: not asked for */
    bool (*router_loss)(void *context, HookSite *site, Tensor kl, Tensor distance);
} Hooks;

typedef enum {
    RECOMPUTE_AUTO,   /* keep every activation when memory_limit_bytes allows, else recompute */
    RECOMPUTE_ALWAYS, /* keep three hidden rows a token and layer, compute the rest again in the backward */
    RECOMPUTE_NEVER
} Recompute;

/* What the routers of another pass decided on the same tokens, on the host, as trace files hold it: it takes
 * the place of this pass's decisions. */
typedef struct {
    const int32_t *ids;   /* [L_moe,T,K], distinct experts of a token in their order */
    const float *weights; /* [L_moe,T,K] */
} RouteReplay;

/* A loss on the routers' distributions beside the one on tokens: the sum over expert layers and tokens of
 *   kl_weights[t] KL(softmax(frozen / T) || softmax(logits / T))
 *   + anchor_weights[t] |softmax(logits) - aim|^2
 * of the logits before any edit, T the temperature. All on the host. */
typedef struct {
    const float *kl_weights; /* [T]; NULL: no such term */
    const float *frozen;     /* [L_moe,T,E] router logits of another pass over the same tokens */
    float temperature;
    const float *anchor_weights; /* [T]; NULL: no such term */
    const float *aims;           /* [L_moe,E] */
    const bool *anchored;        /* [L_moe]: the layers that have an aim */
} RouterLoss;

/* Weights of the tokens' losses that follow from the losses: fills weights [T] from nll [T], which may hold
 * NaN. */
typedef bool weigh_fn(void *context, const double *nll, float *weights, Error *error);

typedef struct {
    /* [T] on the host: the loss is the sum of loss_weights[t] * nll[t]. NULL: no gradient */
    const float *loss_weights;
    /* Called once between forward and backward, on the host, where the losses say how they are weighed; what
     * loss_weights holds is then not used. NULL: not */
    weigh_fn *weigh;
    void *weigh_context;
    const RouterLoss *router_loss; /* NULL: none. Needs loss_weights for a gradient, is measured without */
    const EditTable *edits;        /* NULL: none */
    const int32_t *token_edits;    /* [T]: the set of edits of each token, < 0: none. NULL: set 0 for all */
    const RouteReplay *replay;     /* NULL: the router decides. Not with loss_weights */
    /* Gradients of the model's adapter: the batch's prompts are the examples first_example, ... of a step,
     * and their gradients are added to training's counters. NULL: the adapter is frozen. Needs loss_weights;
     * gate gradients are then left out unless a hook asks for them. */
    const LoraTraining *training;
    int64_t first_example;
    /* Dropout of what trained updates read, at a rate in [0, 1): [T] a number of each token, which
     * says what is left out. NULL: none */
    const int64_t *dropout_keys;
    float dropout_rate;
    Recompute recompute;
    size_t memory_limit_bytes; /* for RECOMPUTE_AUTO; 0: what the machine has free */
    bool want_nll;             /* implied by loss_weights */
    bool want_logits;          /* all rows, [T,V]: only for short texts */
} PassOptions;

typedef struct {
    float *nll;    /* [T]: -log p(next token), 0 for a prompt's last token; NULL when not wanted */
    float *logits; /* [T,V] or NULL */
    float *router_kl, *router_distance; /* [L_moe,T] of router_loss's terms, before their weights; or NULL */
    bool recomputed;
    size_t activation_bytes; /* taken from the device for this pass */
    size_t saved_bytes;      /* of them, what was kept from the forward for the backward pass */
    size_t weights_bytes;    /* of the model */
    Cost cost;               /* as the cost device counts it */
} PassResult;

/* One forward pass, and backward when loss_weights is given. Numbers that are not finite are an error naming
 * layer, expert and token. On the cost device nothing is computed: the result has memory and cost alone,
 * hooks are not called. Caller frees the result with pass_result_free. */
bool model_pass(const Model *model, const PromptBatch *batch, const PassOptions *options, const Hooks *hooks,
                PassResult *result, Error *error);
void pass_result_free(PassResult *result);

/* ---- passes of a spread model (spread.h): collectives, which end the job when one rank fails ----
 * but for numbers of a training's pass that are not finite: those are found when no peer waits in the pass
 * any more, and the training says whose they are */
/* How many passes all ranks make where this one has n to make: the most that a rank has. Not spread: n. */
int64_t model_agree_passes(const Model *model, int64_t n);
/* This rank's part in a pass of the others, which have such options. */
void model_serve(const Model *model, const PassOptions *options);

/* Memory and work of such a pass, from shapes alone (runs model_pass's program on the cost device). */
bool model_plan(const ModelConfig *config, DType compute, DType weights, const PromptBatch *shape,
                const PassOptions *options, PassResult *plan, Error *error);

#endif

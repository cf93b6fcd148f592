/* The decoder's layers and what a run of them needs: private to model_*.c and generate.c.
 *
 * A program (a scoring pass, a decoding step) is run twice: on the cost device, which tells how much memory
 * it takes, and on the model's device, in a block of exactly that size. Both runs make the same calls:
 * nothing that decides about memory depends on computed values. */
#ifndef GATETAPE_DECODER_H
#define GATETAPE_DECODER_H
#include "../autograd/nn.h"
#include "kv_cache.h"
#include "lora.h"

typedef struct Decoder Decoder;

/* One layer of one run. */
typedef struct {
    Decoder *decoder;
    const LayerWeights *weights;
    int64_t layer, moe_layer; /* moe_layer: -1 in a layer without experts */
    Var *x, *middle, *out;    /* residual stream: before attention, before the experts, after them [T,D] */
    Var *attended;            /* [T,H*Cv] and its lse [T,H], kept for the walk; NULL, absent in inference */
    Tensor lse;
    Var *input, *logits, *chosen; /* of the router; chosen: the combine weights. Valid while the block is */
    Tensor ids;
    ExpertUpdates updates; /* of the layer's experts */
    RemoteExperts remote;  /* where tokens travel to them */
    RouterRows router_rows;
} LayerRun;

typedef struct {
    Tensor ids, weights;
} RouteTensors;

/* What a RouterLoss needs on the device. */
typedef struct {
    Tensor kl_weights, frozen, kl;         /* [T], [L_moe,T,E], [L_moe,T] real; absent: no such term */
    Tensor anchor_weights, aims, distance; /* [T], [L_moe,E], [L_moe,T] real */
} RouterLossTensors;

struct Decoder {
    const Model *model;
    const Hooks *hooks;
    HookSite site;
    bool wants_grad; /* gradients of router logits are asked for */
    LoraPass lora;   /* training NULL: the model's adapter, if any, is frozen */
    bool recompute;
    bool failed;        /* a hook did; site.error says why */
    Tensor positions;   /* [T] i32 */
    Tensor frequencies; /* [n] f32 */
    Spans spans;
    const EditTable *edits;        /* NULL: none */
    RouteEdits edit_tensors;       /* of all layers: modes, values [L_moe,N,E], rows [T] */
    RouteTensors replay;           /* [L_moe,T,K] each; absent: the router's own */
    const RouterLoss *router_loss; /* NULL: none */
    RouterLossTensors router_loss_tensors;
    KvCache *cache;    /* NULL: keys and values are those of the rows themselves */
    Tensor cache_rows; /* [T] i32: where the rows' keys and values go in the cache */
    Tensor nonfinite;  /* [n_checks] i64: decoder_check's findings */
    LayerRun *runs;    /* [n_layers] */
};

/* What a run reads, on the host: its rows (tokens) and the prompts they belong to. */
typedef struct {
    int64_t n_rows, n_prompts;
    int32_t *ids, *positions, *targets; /* [n_rows]; targets: in a pass the next token's id, -1: none */
    int32_t *cache_rows;                /* [n_rows]: in generation, where keys and values go */
    int32_t *edits;                     /* [n_rows]: the set of edits of each; < 0: none */
    int32_t *offsets;                   /* [n_prompts+1] */
    int32_t *kv_begin, *kv_length;      /* [n_prompts] */
    int32_t *block;
} Rows;

/* False and an Error for an empty or over-long prompt (with n_more tokens to come), an id that is none, too
 * many rows. */
bool decoder_check_batch(const Model *model, const PromptBatch *batch, int64_t n_more, Error *error);
/* Room for so many; caller closes. */
bool rows_open(Rows *rows, int64_t n_rows, int64_t n_prompts, Error *error);
void rows_close(Rows *rows);
/* Modes and values [L_moe,N,E] of a table with no memory yet. */
RouteEdits decoder_edit_shapes(const EditTable *edits, DType real);
/* Copies what the layers need to the device and sets the decoder's tensors; returns the ids [n_rows] i32. */
Tensor decoder_upload(Decoder *decoder, Context *c, const Rows *rows);

/* A RouterLoss on the host, in reals; model_loss.c. Caller closes, also after an error. */
typedef struct {
    const void *kl_weights, *frozen, *anchor_weights, *aims;
    void *owned[4];
    void *kl, *distance; /* [L_moe,T] reals: what comes back */
} RouterLossReals;
bool router_loss_open(RouterLossReals *reals, const RouterLoss *loss, const Model *model, int64_t n_rows,
                      Error *error);
void router_loss_close(RouterLossReals *reals);
/* To the device, for a run of so many rows. */
void router_loss_upload(Decoder *decoder, Context *c, const RouterLossReals *reals, int64_t n_rows);
/* For an experts block, whose run->logits are there: the layer's terms, and their gradients on a tape. */
void router_loss_add(Context *c, const LayerRun *run);
/* After the forward: the hook, and both terms to the host. */
void router_loss_fetch(Decoder *decoder, Context *c, const RouterLossReals *reals);

/* All layers on x [T,D], in its memory when c->tape is NULL. Returns the last residual stream. Stops when a
 * hook fails. */
Var *decoder_run(Decoder *decoder, Context *c, Var *x);

/* ---- programs on a spread model (model_serve.c) ---- */
/* What a rank wants before each program of a generation; the largest wish of all is done. */
typedef enum { STEP_NONE, STEP_RUN, STEP_STOP } StepWish;
StepWish generation_agree(const Model *model, StepWish own);
/* This rank's part in a program of the others. Waits. */
void generation_serve_step(const Model *model, Queue *queue);

/* ---- numbers that are none ---- */
/* What is looked at, in the order in which a fault is reported. A layer's entries are its index beyond the
 * base. */
typedef enum { CHECK_ROUTER, CHECK_RESIDUAL, CHECK_NLL, CHECK_LOGITS, CHECK_ROUTER_GRAD } CheckKind;
int64_t decoder_n_checks(const ModelConfig *config);
/* The findings of nothing looked at: -1 each. */
void decoder_checks_clear(int64_t *findings, int64_t n);
void decoder_check(const Decoder *decoder, Context *c, CheckKind kind, int64_t layer, Tensor x);
/* Where the rows of what was looked at come from, for messages: token and prompt, from 0. */
typedef void row_place_fn(const void *context, CheckKind kind, int64_t row, int64_t *prompt, int64_t *token);
/* False and an Error when one of the findings (on the host) is a fault. */
bool decoder_checks_read(const ModelConfig *config, const int64_t *findings, row_place_fn *place,
                         const void *context, Error *error);

/* ---- memory of a run ---- */
typedef struct {
    Context context;
    Tape tape;
    SpareBlock memory;
    SpareBlock *spare; /* the model's: where the memory comes from and goes back to; NULL: none */
} Workspace;

/* On the cost device: endless addresses. Else workspace_reserve gives it memory. Caller closes, also after
 * an error. */
bool workspace_open(Workspace *w, const Model *model, const Device *device, bool with_tape, Error *error);
bool workspace_reserve(Workspace *w, size_t n_bytes, Error *error);
void workspace_close(Workspace *w);
/* Gives the device back what is kept between passes. False when there was nothing. */
bool workspace_drop_spare(const Model *model);
/* Waits. False and an Error when an op has failed. */
bool workspace_sync(Workspace *w, Error *error);

/* A table that stays on the model's device for many runs: memory for it, its contents, its end. Nothing for
 * edits NULL. */
bool decoder_edits_reserve(const EditTable *edits, const Model *model, RouteEdits *to, Error *error);
bool decoder_edits_copy(const EditTable *edits, Workspace *w, RouteEdits to, Error *error);
void decoder_edits_free(const Device *device, RouteEdits *edits);

/* from[0..n) as reals of the context (f64 in the table f64); *owned is the copy to free, NULL when none was
 * needed. NULL when out of memory. */
const void *decoder_reals(DType real, const float *from, int64_t n, void **owned);

#endif

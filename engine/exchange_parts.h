/* What exchange.c and exchange_owner.c share. */
#ifndef GATETAPE_EXCHANGE_PARTS_H
#define GATETAPE_EXCHANGE_PARTS_H
#include "exchange.h"
#include "lora.h"

/* int32_t of the host, grown to the most that was asked for. */
typedef struct {
    int32_t *data;
    int64_t n;
} Numbers;

struct Exchange {
    const Device *device;
    Comm *comm;
    Range own;       /* experts of this rank */
    int32_t *owner;  /* [E]: the rank that computes an expert for this one's tokens */
    int32_t *cursor; /* [E]: work of `arrange` */
    Queue *cost;     /* of the cost device */
    void *block;     /* of the device */
    size_t block_bytes;
    int64_t out[COMM_MAX_RANKS], in[COMM_MAX_RANKS]; /* rows to a rank and from it, of the layer at hand */
    /* what is copied to the device stays until the next wait */
    Numbers ids, rows, pairs, tokens, by_plan, sent, received, counting;
};

/* A layer of which rows come in. Its context's arena is the block, or, on the cost device, endless. */
typedef struct {
    Exchange *e;
    const ModelConfig *config;
    const LayerWeights *weights;
    ExpertUpdates updates;
    bool updated;
    Context c;
    int64_t n;     /* rows */
    bool wants_dx; /* a rank does: the gradient of x */
} Owner;

int32_t *exchange_reserve(Exchange *e, Numbers *numbers, int64_t n);

/* Updates of the layer's experts, the context's device and types; rows and arena are the caller's to set. */
Owner exchange_owner(const Model *model, int64_t layer, const Context *c);
/* y [M,D] = the experts' outputs for x, or, with back, what the way back asks for; home's rows. */
void exchange_owner_run(Owner *owner, Tensor y, Tensor x, const TravelGradients *back);

#endif

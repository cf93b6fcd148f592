/* rank_plan: what a pass on some ranks of a device needs and takes, from a model's sizes alone, and which
 * residency to take.
 *
 * Memory is that of the rank with the most experts. It is counted as the engine allocates: for one rank it
 * is what the cost device finds (a test holds it to 1 %). Time has no overlap of exchange and compute, hides
 * copies ahead of use behind both, and knows no imbalance between experts: with one, a rank is as slow as
 * the fullest, but for travelling weights. */
#ifndef GATETAPE_RANK_PLAN_H
#define GATETAPE_RANK_PLAN_H
#include "model_config.h"
#include "placement.h"

/* A device and its links, all in bytes and floating-point operations per second. configs/devices/NAME.json
 * has them with their sources. */
typedef struct {
    char name[64];
    double usable_bytes; /* for weights and activations */
    double flops_per_s;  /* of a whole pass */
    double dram_bytes_per_s;
    double host_bytes_per_s; /* from pinned memory of the host; 0: it computes there, and streams nothing */
    double node_bytes_per_s; /* to the other ranks of a node, each way */
    double network_bytes_per_s; /* of one rank to other nodes, each way */
    int64_t per_node;
} RankDevice;

/* Reads what is used here. Numbers without a source, missing ones and such as are not above 0 are errors that
 * name file and key. */
bool rank_device_read(const char *path, RankDevice *device, Error *error);

/* The work of a rank. */
typedef struct {
    int64_t n_tokens, n_prompts; /* of one pass */
    double mean_length;          /* of the prompts, for attention's work; 0: it is left out */
    double skew; /* most rows of a layer that travel to a rank, over its even share; 0: 2, to be prepared */
    bool walks_back;            /* layers are computed again on the way */
    int64_t n_decoded;          /* steps of decoding after the pass, whose tokens n_tokens has; 0: none */
    int64_t n_cells, lora_rank; /* trained cells, of all ranks; 0: none */
    int64_t lora_copies; /* values kept for each trained one: 4 (itself, gradient, two moments) and more */
    DType compute, weights;
} RankWork;

/* Bytes, on the fullest rank. */
typedef struct {
    double weights;  /* all of the rank's that are on the device, buffers included */
    double saved;    /* kept from the forward for the way back */
    double exchange; /* sent and received rows, and the experts' results before their sum */
    double experts;  /* work of one layer's experts, and the rows around it */
    double gates;    /* gradients of one layer's router gates, a row for each prompt and expert */
    double cache;    /* keys and values while decoding */
    double lora;
    double sum;
} RankMemory;

typedef struct {
    Residency residency; /* never auto */
    Placement placement;
    int64_t group;      /* ranks of the largest group */
    int64_t n_experts;  /* of a layer, on the fullest rank */
    int64_t n_streamed; /* layers copied from the host; 0 unless streamed */
    RankMemory memory;
    double usable_bytes;
    bool fits;
    double flops;      /* of a token, all that a pass does with it */
    double sent_bytes; /* of a token and layer, each way of an exchange of rows */
    double
        moved_bytes; /* of a token, all that ranks send for it in a pass; with even experts, none updated */
    double count_bytes;    /* sent by a rank in a pass beside that, for n_ranks of one group */
    int64_t n_exchanges;   /* of a layer and pass: 2 forward, 5 with the way back */
    double copied_bytes;   /* from the host, in a pass that follows another */
    double gathered_bytes; /* sent to peers, in a pass that follows another */
    double compute_seconds, exchange_seconds, copy_seconds; /* of a pass */
    double hidden_from; /* tokens a rank and pass that hide copies or travelling weights; 0: there are none */
    double pass_seconds, step_seconds; /* of a pass; of one step of decoding, 0: none */
    double seconds;                    /* of both */
    double efficiency;                 /* compute_seconds / pass_seconds */
} RankPlan;

/* One way to do it. n_streamed < 0: as many layers stay on the device as fit. */
RankPlan rank_plan_make(const ModelConfig *config, const RankWork *work, const RankDevice *device,
                        Placement placement, Residency residency, int64_t n_streamed);

/* Of one rank, which may hold fewer experts than the fullest. */
RankMemory rank_plan_memory(const ModelConfig *config, const RankWork *work, const RankPlan *plan,
                            int64_t rank);

/* The fastest that fits among those that `residency` allows: groups within nodes and across them, and, for
 * auto, all residencies, streaming as few layers as must be, also with the whole model on each rank. Where
 * none fits, the one that lacks least, with fits false. Streamed streams every layer; peers are several ranks
 * where there are several. */
RankPlan rank_plan_choose(const ModelConfig *config, const RankWork *work, const RankDevice *device,
                          int64_t n_ranks, Residency residency);
/* The same one for all of some works: the fastest in sum, as long as each fits; the plan is that of the work
 * that takes the most memory. A work with trained cells is done where its tokens are: weights travel where
 * the experts are spread. n_works >= 1. */
RankPlan rank_plan_choose_all(const ModelConfig *config, const RankWork *works, int64_t n_works,
                              const RankDevice *device, int64_t n_ranks, Residency residency);
/* One of that: residency and placement given, n_streamed as in rank_plan_make. */
RankPlan rank_plan_make_all(const ModelConfig *config, const RankWork *works, int64_t n_works,
                            const RankDevice *device, Placement placement, Residency residency,
                            int64_t n_streamed);
/* The placement whose groups have one rank each: the whole model on all. */
Placement rank_plan_whole(const ModelConfig *config, int64_t n_ranks);

/* The least number of ranks on which it fits; 0: not on RANK_PLAN_MOST_RANKS either. */
enum { RANK_PLAN_MOST_RANKS = 1024 };
int64_t rank_plan_least_ranks(const ModelConfig *config, const RankWork *work, const RankDevice *device,
                              Residency residency);

#endif

/* spread: a model whose experts lie on several ranks (placement.h).
 *
 * Where tokens travel, each row goes to the rank that has its expert and its result comes back; where weights
 * travel, all experts of a layer come to every rank ahead of use. Either way passes are collectives: all
 * ranks make the same number of them, walking back or not alike, and a rank that has no prompts for one
 * serves the others' (model_serve). */
#ifndef GATETAPE_SPREAD_H
#define GATETAPE_SPREAD_H
#include "comm.h"
#include "placement.h"

typedef struct {
    Comm *comm;          /* NULL: one rank */
    Residency residency; /* never auto; peers only with groups of several ranks */
    Placement placement; /* of comm's ranks; not read without comm */
    int64_t n_streamed;  /* layers whose experts are copied from the host; 0 unless streamed */
} Spread;

/* Whether any group has several ranks. Without that passes are each rank's own. */
bool spread_any(const Spread *spread);
/* The same, and what travels. */
bool spread_tokens_travel(const Spread *spread);
bool spread_weights_travel(const Spread *spread);

#endif

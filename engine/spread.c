/* What the placement says of a spread model (spread.h). */
#include "spread.h"

bool spread_any(const Spread *s) {
    for (int64_t r = 0; s->comm && r < s->comm->size; r++)
        if (placement_group(&s->placement, r).n > 1) return true;
    return false;
}

bool spread_weights_travel(const Spread *s) { return s->residency == RESIDENCY_PEERS && spread_any(s); }

bool spread_tokens_travel(const Spread *s) { return s->residency != RESIDENCY_PEERS && spread_any(s); }

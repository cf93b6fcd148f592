/* Private to share*.c: what is kept of a block, measures or values. */
#ifndef GATETAPE_SHARE_PARTS_H
#define GATETAPE_SHARE_PARTS_H
#include "share.h"

/* Room for the results of a part, zeroed. */
bool share_make_part(const Share *share, SharePart *part, Error *error);
/* A block that an earlier run finished; one that cannot be read is measured again: *there stays false. */
bool share_load(const Share *share, ShareBlock *block, bool *there, Error *error);
/* Collective: rank 0 gets the block's items, items[r] of rank r in order, and, where `save`, writes its file:
 * the block is finished. The part's results are taken. */
bool share_keep(const Share *share, SharePart *part, ShareBlock *block, const int64_t *items, bool save,
                Error *error);

#endif

/* share: the work of a step, done by all ranks together.
 *
 * A step has lists (groups, pairs, conditions) of units (prompts, pairs, questions, replies). 64 units are a
 * block, whose file says that it is finished until the step's tables are written. What is dealt out is finer:
 * items of a unit (its texts, its replies). A wave is as many unfinished blocks as there are ranks; its
 * items, one after another, are cut into one run of items a rank with nearly equal costs, each rank measures
 * its own, and rank 0 gathers and saves block by block. The cut is a function of costs and ranks alone, and
 * what is measured of an item does not depend on it: the run folder has the same bytes for any number of
 * ranks, and another number can go on with it.
 *
 * A rank measures in turns, a batch of items each. On a spread model (spread.h) all ranks take as many turns
 * as the one with most: who has no items left serves. */
#ifndef GATETAPE_SHARE_H
#define GATETAPE_SHARE_H
#include "step.h"

typedef struct {
    const char *name;         /* of the files of its blocks */
    const PromptGroup *group; /* of steps with measures: whose prompts the units are */
    int64_t n;                /* units */
    const int64_t *begin;     /* [n + 1]: items [begin[u], begin[u + 1]) are unit u's; NULL: n_each of each */
    int64_t n_each;
    double *values; /* rank 0: of items [..,n_values] of the list, filled; NULL where there are measures */
} ShareList;

typedef struct {
    int64_t list, first, n; /* units [first, first + n) */
    int64_t item, n_items;  /* the list's items [item, item + n_items) */
    int64_t done;           /* 1: measured, in this run or an earlier one; the same on every rank */
    Measures measures;      /* of rank 0, in steps with measures */
} ShareBlock;

/* This rank's items of a block: [first, first + n) of the list, n may be 0. */
typedef struct {
    const ShareBlock *block;
    int64_t first, n;
    BlockResult result; /* measures have n_rows rows an item */
    double *values;     /* [n,n_values] */
} SharePart;

typedef struct Share Share;
struct Share {
    const StepRun *run;
    void *context;    /* the step's own */
    const char *unit; /* what progress counts: rows of measures, or items */
    ShareList *lists;
    int64_t n_lists;
    int n_stages; /* each takes turns through all items of a wave */
    /* what is kept of an item: n_values numbers under a name, or, where that is 0, rows of measures */
    int64_t n_values;
    const char *values_name;
    Measures shape; /* kind, n_layers, n_experts */
    int64_t n_rows;

    int64_t (*cost)(const Share *share, int64_t list, int64_t item); /* in any unit, at least 1 */
    /* Before a stage, of every part of a wave; NULL: nothing to do. */
    bool (*begin)(const Share *share, SharePart *part, int stage, Error *error);
    /* How many of the part's items from number `at` on make one turn, at least one. */
    int64_t (*batch)(const Share *share, const SharePart *part, int stage, int64_t at);
    /* A turn: items [at, at + n) of the part. Adds the tokens of its passes to progress. */
    bool (*measure)(const Share *share, SharePart *part, int stage, int64_t at, int64_t n, Error *error);
    /* The same passes with the items of other ranks, on a spread model. Fails when all are interrupted. */
    bool (*serve)(const Share *share, int stage, Error *error);

    ShareBlock *blocks; /* made by share_run, freed by share_free */
    int64_t n_blocks;
    int64_t n_items, n_done;
};

/* Measures what earlier runs have not. Collective; the same answer on every rank. */
bool share_run(Share *share, Error *error);
/* Rank 0, after share_run: the measures of each list; takes them. whole [n_lists], freed by the caller, also
 * after an error. */
bool share_take_measures(Share *share, Measures *whole, Error *error);
void share_free(Share *share);

#endif

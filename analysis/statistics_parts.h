/* What the files of statistics share: what is worked out of a group once, and room for the threads. */
#ifndef GATETAPE_STATISTICS_PARTS_H
#define GATETAPE_STATISTICS_PARTS_H
#include "json_write.h"
#include "ranking.h"
#include "resample.h"
#include "statistics.h"

typedef struct {
    const StatGroup *group;
    int64_t *order;         /* [C] cells, largest first */
    double *cumulative;     /* [C] along order */
    const char *no_ranking; /* why cells cannot be ranked, or NULL */
    double *samples;        /* [bootstraps,C] scores of every resample; NULL: */
    const char *no_samples;
    double *halves[2]; /* [splits,C] scores of both halves of every split; NULL: */
    const char *no_halves;
    bool *stable; /* [C] in the stable selection; all false without samples */
} GroupWork;

/* What one thread needs to take one resample apart. */
typedef struct {
    Ranked *ranked;    /* [2C] */
    int64_t *order[2]; /* [C] */
    int64_t *classes;  /* [C] */
    int64_t *taken;    /* [n_layers] */
    int64_t *kept;     /* [n_top + 1,C] how many resamples had the cell: in its layer's top, in top k */
    uint8_t *mark;     /* [C] */
} Room;

typedef struct {
    const StatisticsInput *in;
    const StepOptions *options;
    const Cells *cells;
    GroupWork *groups; /* [in->n_groups] */
    Room *rooms;
    int64_t n_rooms;
} Work;

/* Sizes of the top sets that fit the number of cells come first; how many they are. */
int64_t work_count_top(const Work *work);
int64_t work_top(const Work *work, int64_t i);
const char *work_no_top(const Work *work, int64_t i, char reason[100]); /* NULL: it fits */

/* floor(stable_share x experts) of a layer, and why there is no stable selection, where that is 0 in all. */
int64_t work_stable_size(const Work *work, int64_t layer);
const char *work_no_stable(const Work *work);

/* The pooled prompts of one group, or of two. */
Pool work_pool(const Work *work, const StatGroup *a, const StatGroup *b);

/* Members of a group's object; sets what later parts need of the group's resamples. */
bool statistics_put_group(Work *work, int64_t g, Text *to, Error *error);
/* Members about two groups: differences, overlap, selectivity, permutation, split halves, stable sets. */
bool statistics_put_pair(Work *work, int64_t a, int64_t b, Text *to, Error *error);
bool statistics_put_classes(Work *work, Text *to, Error *error);
/* `split_half` of a group, whose halves it makes; of the difference of two groups. */
bool statistics_put_halves(Work *work, int64_t g, Text *to, Error *error);
bool statistics_put_difference_halves(const Work *work, int64_t a, int64_t b, Text *to, Error *error);
void statistics_put_near_ties(const Work *work, int64_t g, Text *to);

/* ---- small parts ---- */
void put_cell(const Cells *cells, int64_t cell, Text *to); /* members layer and expert */
/* `key`: {n, mean_depth, cells: [[layer, expert], ...]} of the n cells for which chosen is set. */
bool put_cell_set(const Cells *cells, const char *key, const bool *chosen, Text *to, Error *error);
/* `overlap`: [{k, shared, jaccard}]. values: shared and jaccard of each top set that fits; low, high: their
 * intervals or NULL; reason: why there is none of it, or NULL. */
void put_overlap(const Work *work, const double *values, const double *low, const double *high,
                 const char *reason, Text *to);
/* shared and jaccard of each top set that fits: values [2 n_top]. */
void take_overlap(const Work *work, const int64_t *a, const int64_t *b, uint8_t *mark, double *values);

#endif

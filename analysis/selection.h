/* selection: which cells an intervention takes, and the sets that its controls draw.
 *
 * Cells are numbered over expert layers, expert layer * E + expert. Scores and counts come from the
 * scores.csv of finished steps. Draws are Philox numbers of (seed, id of the condition, position): a
 * condition draws the same set whatever else the step holds. */
#ifndef GATETAPE_SELECTION_H
#define GATETAPE_SELECTION_H
#include "../engine/model_config.h"
#include "options.h"

/* A column of STEP/scores.csv for one group, or the largest over all groups (group NULL): to [L*E]. */
bool selection_read_column(const char *path, const ModelConfig *config, const char *group, const char *column,
                           double *to, Error *error);
/* Cells of a CSV file with the columns layer and expert, in its order; *cells is the caller's to free. */
bool selection_read_cells(const char *path, const ModelConfig *config, int64_t **cells, int64_t *n,
                          Error *error);
/* A cell written LAYER:EXPERT; `place` names it in messages. */
bool selection_parse_cell(const char *text, const ModelConfig *config, const char *place, int64_t *cell,
                          Error *error);
/* The number of (decoder layer, expert); -1 when there is no such cell. */
int64_t selection_cell(const ModelConfig *config, int64_t layer, int64_t expert);
int64_t selection_layer(const ModelConfig *config, int64_t cell); /* decoder layer of a cell */
/* What cells have together, of share [L*E]. */
double selection_share(const double *share, const int64_t *cells, int64_t n);

/* super[c]: largest output a > P99.5 of all cells (linear interpolation) and a > largest / 10, decoder layer
 * in the first 75 % (Super Experts, arXiv 2507.23279). False when out of memory. */
bool selection_find_super(const ModelConfig *config, const double *largest_output, bool *super);

/* What cells are ranked by: first - second, first / second (x / 0 comes first), or first (second may then be
 * NULL). Cells that are excluded, have no ratio (0 / 0) or are not of the class are left out. order [L*E],
 * largest first, ties to the lower cell; returns how many, -1: out of memory. */
int64_t selection_rank(const StepOptions *step, const double *first, const double *second,
                       const bool *excluded, int64_t n_cells, int64_t *order);
/* Whether all n cells of such an order have one value: then an order of some of them says nothing. */
bool selection_all_alike(const StepOptions *step, const double *first, const double *second,
                         const int64_t *order, int64_t n);
/* Each cell's share of all choices. */
void selection_shares(const double *selected, int64_t n_cells, double *share);
/* How many of `order`, from the first on, before the first that would take the sum of shares beyond
 * `budget`. */
int64_t selection_within(const int64_t *order, int64_t n, const double *share, double budget);

/* ---- draws ---- */
typedef struct {
    uint64_t seed;
    int64_t id, position;
} Draw;

/* A condition's draw: its id is a hash of its name. */
Draw draw_new(uint64_t seed, const char *condition);

typedef struct {
    int64_t n_cells, n_experts;
    const bool *taken;   /* [L*E]: cells that no set may hold (excluded, selected) */
    const double *share; /* [L*E]; NULL: no traffic */
    int64_t layer_most;  /* most cells of a layer in one set */
} DrawFrom;

enum { MATCH_PERCENT = 5 };

/* Each fills cells [n_cells] and returns their number, 0: there is no such set (or none was found), -1: out
 * of memory. A set of n; one of n with as many in each layer as `like` has; any number with a share within 5
 * % of `share`; n with such a share. Ascending cells. */
int64_t draw_set(Draw *draw, const DrawFrom *from, int64_t n, int64_t *cells);
int64_t draw_layer_matched(Draw *draw, const DrawFrom *from, const int64_t *like, int64_t n, int64_t *cells);
int64_t draw_share(Draw *draw, const DrawFrom *from, double share, int64_t *cells);
int64_t draw_traffic_matched(Draw *draw, const DrawFrom *from, double share, int64_t n, int64_t *cells);

#endif

/* What page and figures see of a run: RUN/statistics.json, and nothing else of its numbers.
 *
 * report_view_make gathers everything that the report says into that file, reads it back, and page and
 * figures are made of what was read. So each number of the page stands in the file; the page cannot know
 * another. */
#ifndef GATETAPE_REPORT_VIEW_H
#define GATETAPE_REPORT_VIEW_H
#include "../engine/json.h"

typedef struct {
    const char *name, *kind;
    bool finished, measures;
    Json entry, facts, statistics; /* statistics: of steps that measure; of a contrast its contrast.json */
    const char **groups;           /* of statistics, like the sizes */
    int64_t n_groups, n_layers, n_experts;
} ViewStep;

typedef struct {
    JsonDocument *document;
    Json page, run;    /* the limits of the page; device, version, files */
    Json before_after; /* what trainings did; nothing where there is nothing of it */
    ViewStep *steps;
    int64_t n_steps;
} ReportView;

/* Writes FOLDER/statistics.json and opens it. Caller frees with report_view_free; safe on a zeroed one. */
bool report_view_make(const char *folder, ReportView *view, Error *error);
void report_view_free(ReportView *view);

/* Values without complaint: NAN and "" where there is none of that type. A Json of these may outlive its
 * parents: it gives no places for messages. */
double view_number(Json at);
const char *view_string(Json at);
int64_t view_limit(const ReportView *view, const char *key); /* of page */
/* "a.b.c" from an object. Where it is null or absent, *reason (may be NULL) is the reason beside the value
 * or beside one on the way; NULL: none is given. */
Json view_find(Json object, const char *path, const char **reason);
const char *view_reason(Json object, const char *path); /* that reason alone */
/* A group of a step's statistics. */
Json view_group(const ViewStep *step, int64_t group);

#endif

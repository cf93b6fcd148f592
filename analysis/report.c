/* The page: what was asked, what came out, how sure one can be that it is what one thinks. */
#include "report.h"
#include "figures.h"
bool report_write(const char *folder, Progress *progress, Error *error) {
    ReportRun run;
    Figures figures;
    if (!report_read(folder, &run, error)) return false;
    bool ok = figures_draw(folder, &run, &figures, error);
    if (ok && figures.problem[0]) progress_warn(progress, "figures: %s", figures.problem);
    if (ok) figures_free(&figures);
    report_free(&run);
    return ok;
}

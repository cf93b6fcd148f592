/* Figures in the page. */
#include "report_parts.h"

static void put_figure(const Figure *figure, Text *to) {
    text_put_string(to, figure->full ? "<figure class=\"full\">" : "<figure>");
    text_put(to, figure->svg.bytes, figure->svg.length);
    text_put_string(to, "<figcaption>");
    text_put_string(to, figure->caption);
    if (figure->of[0]) {
        text_format(to, "; %s ", figure->of_what);
        html_put(to, figure->of);
    }
    text_put_string(to, ". <span class=\"soft\">figures/");
    html_put(to, figure->name);
    text_put_string(to, figure->has_pdf ? ".svg, .pdf</span></figcaption></figure>\n"
                                        : ".svg</span></figcaption></figure>\n");
}

void report_put_figures(const ReportView *view, int64_t step, unsigned kinds, const Figures *figures,
                        Text *to) {
    bool any = false;
    (void)view;
    for (int64_t i = 0; i < figures->n; i++) {
        const Figure *figure = &figures->figures[i];
        if (figure->step != step || !(kinds >> figure->kind & 1) || !figure->svg.length) continue;
        if (!any) text_put_string(to, "<div class=\"pair\">\n");
        any = true;
        put_figure(figure, to);
    }
    if (any) text_put_string(to, "</div>\n");
}

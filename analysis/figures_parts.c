/* Small parts of data files and scripts. */
#include "figures_parts.h"
#include <math.h>
#include <string.h>

const char *const figure_colours[6] = {"#1f5fa8", "#c8501e", "#2a8a57", "#8a4fa0", "#8c6d1f", "#3aa0a8"};

const char figure_preamble[] = "set encoding utf8\n"
                               "set datafile separator ','\n"
                               "set border linecolor rgb '#8a8a8a' linewidth 0.8\n"
                               "set tics nomirror out scale 0.5 textcolor rgb '#333333'\n"
                               "set grid ytics linecolor rgb '#dddddd' linewidth 0.6\n";

static void put_escaped(Text *to, const char *name) {
    Text shown = {0};
    text_put_terminal(&shown, name, strlen(name));
    for (size_t i = 0; i < shown.length; i++) {
        if (!strncmp(shown.bytes + i, "\xef\xbf\xbe", 3) || !strncmp(shown.bytes + i, "\xef\xbf\xbf", 3)) {
            text_put_string(to, "?"); /* U+FFFE and U+FFFF are no characters of XML */
            i += 2;
            continue;
        }
        switch (shown.bytes[i]) {
        case '"': text_put_string(to, "'"); break;
        case '\\': text_put_string(to, "\\\\"); break;
        case '\n': text_put_string(to, "\\\\n"); break;
        case ',': text_put_string(to, ";"); break; /* ends a field of a header even within quotes */
        default: text_put(to, shown.bytes + i, 1);
        }
    }
    to->failed = to->failed || shown.failed;
    text_free(&shown);
}

void figure_put_name(Text *to, const char *first, const char *between, const char *second) {
    text_put_string(to, "\"");
    put_escaped(to, first);
    put_escaped(to, between);
    put_escaped(to, second);
    text_put_string(to, "\"");
}

void figure_put_value(Text *to, double value) {
    if (isfinite(value))
        text_format(to, ",%.9g", value);
    else
        text_put_string(to, ",NaN");
}

void figure_put_member(Text *to, Json object, const char *path) {
    figure_put_value(to, view_number(view_find(object, path, NULL)));
}

void figure_put_interval(Text *to, Json object, const char *path) {
    char name[100];
    figure_put_member(to, object, path);
    snprintf(name, sizeof name, "%s_low", path);
    figure_put_member(to, object, name);
    snprintf(name, sizeof name, "%s_high", path);
    figure_put_member(to, object, name);
}

void figure_put_plot(Text *script, int width, int height, const Text *plot) {
    script->failed = script->failed || plot->failed;
    if (plot->failed || !plot->bytes) return;
    text_format(script,
                "set terminal svg noenhanced size %d,%d font 'sans-serif,12' background rgb 'white'\n", width,
                height);
    text_format(script, "set output 'drawing.svg'\n%s\nset output\n", plot->bytes);
    text_format(script, "set terminal pdfcairo noenhanced size %.2fin,%.2fin font 'sans-serif,10'\n",
                width / 96.0, height / 96.0);
    text_format(script, "set output 'drawing.pdf'\n%s\nset output\n", plot->bytes);
}

long long figure_label_step(int64_t n) {
    long long step = 1;
    while (n > 16 * step) step *= 2;
    return step;
}

void figure_put_band(Text *plot, bool first, int64_t at, int64_t series) {
    const char *colour = figure_colours[series % 6];
    text_format(
        plot,
        "%s'drawing.csv' using 1:%lld:%lld with filledcurves fillcolor rgb '%s' fillstyle transparent solid "
        "0.15 noborder notitle, '' using 1:%lld with lines linewidth 2 linecolor rgb '%s' dashtype %lld "
        "title columnheader(%lld)",
        first ? "" : ", ", (long long)at + 1, (long long)at + 2, colour, (long long)at, colour,
        (long long)(series % 4) + 1, (long long)at);
}

void figure_put_block_band(Text *plot, int64_t block, int64_t at, bool with_points) {
    const char *colour = figure_colours[block % 6];
    text_format(plot,
                "%s'drawing.csv' index %lld using 1:%lld:%lld skip 1 with filledcurves fillcolor rgb '%s' "
                "fillstyle transparent solid 0.15 noborder notitle, '' index %lld using 1:%lld with %s "
                "linewidth 2 linecolor rgb '%s' dashtype %lld pointtype 7 pointsize 0.35 title "
                "columnheader(%lld)",
                block ? ", " : "", (long long)block, (long long)at + 1, (long long)at + 2, colour,
                (long long)block, (long long)at, with_points ? "linespoints" : "lines", colour,
                (long long)(block / 6 + block % 4) % 4 + 1, (long long)at);
}

/* The page: what was asked, what came out, what it was made of. Its style sheet and its script are allowed by
 * their hashes, and nothing else is: no other script, no picture or font from anywhere, no style in a tag. */
#include "report.h"
#include "../engine/alloc.h"
#include "../engine/hash.h"
#include "../engine/io.h"
#include "methods.h"
#include "report_parts.h"
#include <string.h>

enum { MAX_JOB_BYTES = 64 << 20, MAX_JOB_SHOWN = 256 << 10 };

/* ---- head ---- */
static int hex_digit(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

static void put_parts(const char *const *parts, Text *to) {
    for (; *parts; parts++) text_put_string(to, *parts);
}

/* The SHA-256 of a text in base64, as the policy wants it. */
static void put_hash(const char *const *parts, Text *to) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char hex[HASH_TEXT];
    uint8_t bytes[33] = {0};
    Hash hash;
    hash_begin(&hash);
    for (; *parts; parts++) hash_add(&hash, *parts, strlen(*parts));
    hash_end(&hash, hex);
    for (int i = 0; i < 32; i++) bytes[i] = (uint8_t)(hex_digit(hex[2 * i]) << 4 | hex_digit(hex[2 * i + 1]));
    for (int i = 0; i < 33; i += 3) {
        unsigned three = (unsigned)bytes[i] << 16 | (unsigned)bytes[i + 1] << 8 | bytes[i + 2];
        char four[4];
        for (int k = 0; k < 4; k++) four[k] = digits[three >> (18 - 6 * k) & 63];
        if (i == 30) four[3] = '='; /* 32 bytes are ten threes and a two */
        text_put(to, four, 4);
    }
}

static void put_models(const ReportView *view, Text *to) {
    bool any = false;
    for (int64_t s = 0; s < view->n_steps; s++) {
        const char *model = view_string(json_member(&view->steps[s].facts, "model"));
        bool seen = !*model;
        for (int64_t k = 0; k < s; k++)
            seen = seen || !strcmp(model, view_string(json_member(&view->steps[k].facts, "model")));
        if (seen) continue;
        text_put_string(to, any ? ", " : "Model ");
        html_put(to, model);
        any = true;
    }
}

/* Parts of a step's section, as its headings are called; ended by NULL. */
typedef const char *SectionPart[2];
static const SectionPart measured[] = {{"scores", "scores"},
                                       {"concentration", "concentration"},
                                       {"layers", "layers"},
                                       {"differences", "differences"},
                                       {"classes", "classes"},
                                       {"overlap", "overlap"},
                                       {"depth", "depth"},
                                       {"stable", "stable selection"},
                                       {"reliability", "reliability"},
                                       {"ties", "near ties"},
                                       {"prompts", "prompts"},
                                       {NULL, NULL}},
                         judged[] = {{"comparison", "comparison"}, {"transitions", "transitions"},
                                     {"side", "side effects"},     {"agreement", "agreement"},
                                     {"samples", "replies"},       {NULL, NULL}},
                         contrasted[] = {{"divergence", "divergence"},
                                         {"sensitivity", "sensitive cells"},
                                         {NULL, NULL}},
                         tuned[] = {{"training", "training"},
                                    {"updates", "where the update went"},
                                    {NULL, NULL}},
                         useful[] = {{"utility", "utility"}, {NULL, NULL}};

static void put_step_contents(const ViewStep *step, int64_t s, Text *to) {
    const SectionPart *part = step->measures                    ? measured
                              : !strcmp(step->kind, "contrast") ? contrasted
                              : !strcmp(step->kind, "tune")     ? tuned
                              : !strcmp(step->kind, "utility")  ? useful
                                                                : judged;
    text_format(to, "<li><a href=\"#step%lld\">", (long long)s);
    html_put(to, step->name);
    text_put_string(to, "</a>");
    for (; step->finished && (*part)[0]; part++)
        text_format(to, " <a class=\"small\" href=\"#s%lld-%s\">%s</a>", (long long)s, (*part)[0],
                    (*part)[1]);
    text_put_string(to, "</li>\n");
}

static void put_head(const ReportView *view, Text *to) {
    text_put_string(
        to, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-");
    put_hash(report_style, to);
    text_put_string(to, "'; script-src 'sha256-");
    put_hash(report_script, to);
    text_put_string(
        to, "'; base-uri 'none'; form-action 'none'\">\n"
            "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
            "<meta name=\"referrer\" content=\"no-referrer\">\n<title>gatetape report</title>\n<style>");
    put_parts(report_style, to);
    text_put_string(to,
                    "</style></head>\n<body><header><h1>Experts by prompt group</h1>\n<p class=\"soft\">");
    put_models(view, to);
    text_put_string(to,
                    "</p>\n<nav aria-label=\"Contents\"><ul>\n<li><a href=\"#overview\">Overview</a></li>\n");
    if (view->before_after.node)
        text_put_string(to, "<li><a href=\"#before_after\">Before and after</a> <a class=\"small\" "
                            "href=\"#before_after-replies\">replies</a> <a class=\"small\" "
                            "href=\"#before_after-drift\">drift</a> <a class=\"small\" "
                            "href=\"#before_after-utility\">utility</a></li>\n");
    for (int64_t s = 0; s < view->n_steps; s++) put_step_contents(&view->steps[s], s, to);
    text_put_string(to, "<li><a href=\"#methods\">Methods</a> <a href=\"#inputs\">What went in</a> <a "
                        "href=\"#terms\">Terms</a></li>\n"
                        "</ul></nav></header>\n<main>\n");
}

/* ---- sections ---- */
static void put_overview(const ReportView *view, const Figures *figures, Text *to) {
    text_put_string(to, "<section id=\"overview\"><h2>Overview</h2>\n");
    if (figures->problem[0]) {
        text_put_string(to, "<aside>Figures are missing: ");
        html_put(to, figures->problem);
        text_put_string(
            to, ". <code>gatetape report FOLDER</code> draws them where gnuplot is installed.</aside>\n");
    }
    report_put_overview(view, to);
    report_put_figures(view, -1, 1u << FIGURE_SIGNALS, figures, to);
    text_put_string(
        to, "<p class=\"soft small\">Every number of this page stands in statistics.json beside it, with all "
            "its digits.</p></section>\n");
}

static void put_steps(const ReportView *view, const Figures *figures, Text *to) {
    for (int64_t s = 0; s < view->n_steps; s++) report_put_step(view, s, figures, to);
}

static void put_inputs(const ReportView *view, Text *to) {
    static const Column columns[] = {{"name", "file", true, false},
                                     {"bytes", "bytes", false, false},
                                     {"sha256", "SHA-256", true, false},
                                     {"sha256_of", "of", true, false}};
    const int64_t n = sizeof columns / sizeof *columns;
    const Json inputs = json_member(&view->run, "inputs");
    text_put_string(to, "<section id=\"inputs\"><h2>What went in</h2>\n");
    if (json_type(view->run) != JSON_OBJECT) {
        text_put_string(to, "<p class=\"soft\">The folder has no manifest.json.</p>\n");
        return;
    }
    text_put_string(to, "<dl>\n");
    for (Json at = {0}; json_next(&view->run, &at);) {
        if (!strcmp(at.key, "inputs")) continue;
        text_put_string(to, "<dt>");
        html_put(to, at.key);
        text_put_string(to, "</dt><dd>");
        html_put_json(to, at);
        text_put_string(to, "</dd>\n");
    }
    text_put_string(to, "</dl>\n");
    Table table = {0};
    table_begin(&table, to, NULL, columns, n);
    for (Json at = {0}; json_next(&inputs, &at);) table_row(&table, at, columns, n);
    table_end(&table);
}

static void put_job(const char *job, size_t n, Text *to) {
    if (n <= MAX_JOB_SHOWN) {
        text_put_string(to, "<details><summary>the job, with every option filled in</summary><pre>");
        text_put_html(to, job, n);
        text_put_string(to, "</pre></details></section>\n");
    } else {
        text_put_string(to,
                        "<p>The job, with every option filled in, is long: see job.json.</p></section>\n");
    }
}

static const char terms[] =
    "<section id=\"terms\"><h2>Terms</h2><dl>\n"
    "<dt>cell</dt><dd>One expert of one layer. Both are counted from the first as zero, layers over all "
    "decoder layers, those without experts included.</dd>\n"
    "<dt>score</dt><dd>What a step measures of a cell, defined above in each step. Scores of different "
    "definitions or model families are not on one scale.</dd>\n"
    "<dt>rank</dt><dd>The largest score of the group is first; ties go to the lower cell.</dd>\n"
    "<dt>dominant</dt><dd>A layer's largest score, as a share of the layer's sum unless the switches say "
    "otherwise.</dd>\n"
    "<dt>entropy</dt><dd>H = -&Sigma; s ln s of the layer's scores taken as shares, in nats.</dd>\n"
    "<dt>effective</dt><dd>exp(H): how many equally used experts (cells) would have that entropy. Simpson: "
    "the inverse of &Sigma; s&sup2;.</dd>\n"
    "<dt>nll</dt><dd>Mean negative log-likelihood of the next token, in nats.</dd>\n"
    "<dt>Jaccard</dt><dd>Cells that two sets share, over the size of their union.</dd>\n"
    "<dt>all others</dt><dd><code>gatetape definitions</code>, also in README.txt.</dd>\n"
    "</dl></section>\n";

static bool put_methods(Json job, Text *to, Error *error) {
    text_put_string(to, "<section id=\"methods\"><h2>Methods</h2>\n");
    const bool ok = methods_put(job, to, error);
    text_put_string(to, "</section>\n");
    return ok;
}

/* The sections in their order; job: the bytes of job.json, and what they say. */
static bool put_page(const char *job, size_t n, Json said, const ReportView *view, const Figures *figures,
                     Text *to, Error *error) {
    put_head(view, to);
    put_overview(view, figures, to);
    report_put_adapted(view, figures, to);
    put_steps(view, figures, to);
    if (!put_methods(said, to, error)) return false;
    put_inputs(view, to);
    put_job(job, n, to);
    text_put_string(to, terms);
    text_put_string(
        to, "</main><footer>Made by gatetape from the tables in this folder. It shows where routing and "
            "sensitivity differ; that an expert causes a behaviour is shown only by changing it."
            "</footer><script>");
    put_parts(report_script, to);
    text_put_string(to, "</script></body></html>\n");
    return true;
}

static bool write_page(const char *folder, const ReportView *view, const Figures *figures, Error *error) {
    Text page = {0};
    size_t n = 0;
    char *path = io_join(folder, "report.html"), *from = io_join(folder, "job.json");
    char *job = from ? io_read_all(from, MAX_JOB_BYTES, &n, error) : NULL;
    JsonDocument *said = job ? json_parse(job, n, from, error) : NULL;
    bool ok = (path && from) || error_out_of_memory(error, "a file name", strlen(folder));
    ok = ok && said && put_page(job, n, json_root(said), view, figures, &page, error);
    if (ok && page.failed) ok = error_out_of_memory(error, "the report", page.length);
    ok = ok && io_write_all(path, page.bytes, page.length, error);
    json_free(said);
    mem_free(job);
    mem_free(from);
    mem_free(path);
    text_free(&page);
    return ok;
}

bool report_write(const char *folder, Progress *progress, Error *error) {
    ReportView view;
    Figures figures;
    if (!report_view_make(folder, &view, error)) return false;
    bool ok = figures_draw(folder, &view, &figures, error);
    if (ok) {
        if (figures.problem[0]) progress_warn(progress, "figures: %s", figures.problem);
        ok = write_page(folder, &view, &figures, error) && methods_write(folder, error);
        figures_free(&figures);
    }
    report_view_free(&view);
    if (ok) progress_note(progress, "report: %s/report.html", folder);
    return ok;
}

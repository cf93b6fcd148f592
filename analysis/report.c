/* The page: what was asked, what came out, what it was made of. Its style sheet is allowed by its hash, and
 * nothing else is: no script, no picture or font from anywhere, no style in a tag. */
#include "report.h"
#include "report_parts.h"
#include "../engine/alloc.h"
#include "../engine/hash.h"
#include "../engine/io.h"
#include <string.h>

static int hex_digit(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

/* The SHA-256 of the style sheet in base64, as the policy wants it. */
static void put_style_hash(Text *to) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char hex[HASH_TEXT];
    uint8_t bytes[33] = {0};
    Hash hash;
    hash_begin(&hash);
    hash_add(&hash, report_style, strlen(report_style));
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

static void put_head(const ReportRun *run, Text *to) {
    text_put_string(
        to, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-");
    put_style_hash(to);
    text_put_string(
        to, "'\">\n<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
            "<meta name=\"referrer\" content=\"no-referrer\">\n<title>gatetape report</title>\n<style>");
    text_put_string(to, report_style);
    text_put_string(to,
                    "</style></head>\n<body><header><h1>Experts by prompt group</h1>\n<p class=\"soft\">");
    bool any = false;
    for (int64_t s = 0; s < run->n_steps; s++) {
        if (!run->steps[s].finished) continue;
        if (!any) text_format(to, "Model %s", "");
        bool seen = false;
        for (int64_t k = 0; k < s; k++)
            seen = seen || (run->steps[k].finished && !strcmp(run->steps[k].model, run->steps[s].model));
        if (seen) continue;
        if (any) text_put_string(to, ", ");
        html_put(to, run->steps[s].model);
        any = true;
    }
    text_put_string(to, "</p>\n<nav><a href=\"#overview\">overview</a>");
    for (int64_t s = 0; s < run->n_steps; s++) {
        text_format(to, "<a href=\"#step%lld\">", (long long)s);
        html_put(to, run->steps[s].name);
        text_put_string(to, "</a>");
    }
    text_put_string(
        to, "<a href=\"#inputs\">what went in</a><a href=\"#terms\">terms</a></nav></header>\n<main>\n");
}

static bool put_overview(const ReportRun *run, const Figures *figures, Text *to, Error *error) {
    text_put_string(to, "<section id=\"overview\"><h2>Overview</h2>\n");
    if (figures->problem[0]) {
        text_put_string(to, "<aside>Figures are missing: ");
        html_put(to, figures->problem);
        text_put_string(
            to, ". <code>gatetape report FOLDER</code> draws them where gnuplot is installed.</aside>\n");
    }
    text_put_string(
        to, "<p>k80, k90 and k95 are the least numbers of cells that together hold 80, 90 and 95 % of a "
            "group's total score: the smaller, the more the score sits in few experts.</p>\n"
            "<div class=\"wide\"><table><thead><tr><th class=\"l\">step</th><th class=\"l\">group</th>"
            "<th>prompts</th><th>tokens</th><th>k80</th><th>k90</th><th>k95</th><th>cells</th>"
            "<th class=\"l\">largest cell</th></tr></thead><tbody>\n");
    for (int64_t s = 0; s < run->n_steps; s++)
        if (run->steps[s].finished && !report_put_overview_rows(&run->steps[s], to, error)) return false;
    text_put_string(to, "</tbody></table></div></section>\n");
    return true;
}

/* Of the manifest what is the same on every run of the job. */
static void put_inputs(const ReportRun *run, Text *to) {
    static const char *const facts[] = {"version", "device", "compute", "seed"};
    text_put_string(to, "<section id=\"inputs\"><h2>What went in</h2>\n");
    if (run->manifest) {
        Json root = json_root(run->manifest), inputs = json_member(&root, "inputs"), at = {0};
        text_put_string(to, "<dl>\n");
        for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) {
            Json fact = json_member(&root, facts[i]);
            if (!fact.node) continue;
            text_format(to, "<dt>%s</dt><dd>", facts[i]);
            html_put_json(to, fact);
            text_put_string(to, "</dd>\n");
        }
        text_put_string(to,
                        "</dl>\n<div class=\"wide\"><table><thead><tr><th class=\"l\">file</th><th>bytes</th>"
                        "<th class=\"l\">SHA-256</th><th class=\"l\">of</th></tr></thead><tbody>\n");
        while (json_next(&inputs, &at)) {
            text_put_string(to, "<tr><td class=\"l\">");
            html_put_json(to, json_member(&at, "name"));
            text_put_string(to, "</td><td>");
            html_put_json(to, json_member(&at, "bytes"));
            text_put_string(to, "</td><td class=\"l hash\">");
            html_put_json(to, json_member(&at, "sha256"));
            text_put_string(to, "</td><td class=\"l\">");
            html_put_json(to, json_member(&at, "sha256_of"));
            text_put_string(to, "</td></tr>\n");
        }
        text_put_string(to, "</tbody></table></div>\n");
    }
}

static bool put_job(const char *folder, Text *to, Error *error) {
    size_t n = 0;
    char *path = io_join(folder, "job.json"), *job = path ? io_read_all(path, 64 << 20, &n, error) : NULL;
    if (!path) error_out_of_memory(error, "a file name", strlen(folder));
    if (job) {
        text_put_string(to, "<details><summary>the job, with every option filled in</summary><pre>");
        text_put_html(to, job, n);
        text_put_string(to, "</pre></details></section>\n");
    }
    mem_free(path);
    mem_free(job);
    return job != NULL;
}

static const char terms[] =
    "<section id=\"terms\"><h2>Terms</h2><dl>\n"
    "<dt>cell</dt><dd>One expert of one layer. Layers are counted from 0 over all decoder layers, those "
    "without experts included; experts from 0.</dd>\n"
    "<dt>score</dt><dd>What a step measures of a cell, defined above in each step. Scores of different "
    "definitions or "
    "model families are not on one scale.</dd>\n"
    "<dt>rank</dt><dd>1 is the largest score of the group; ties go to the lower cell.</dd>\n"
    "<dt>dominant</dt><dd>A layer's largest score, as a share of the layer's sum unless the switches say "
    "otherwise.</dd>\n"
    "<dt>entropy</dt><dd>H = -&Sigma; s ln s of the layer's scores taken as shares, in nats.</dd>\n"
    "<dt>effective</dt><dd>exp(H): how many equally used experts would have that entropy. Simpson: 1 / "
    "&Sigma; s&sup2;.</dd>\n"
    "<dt>nll</dt><dd>Mean negative log-likelihood of the next token, in nats.</dd>\n"
    "</dl></section>\n";

static bool write_page(const char *folder, const ReportRun *run, const Figures *figures, Text *page,
                       Error *error) {
    put_head(run, page);
    bool ok = put_overview(run, figures, page, error);
    for (int64_t s = 0; ok && s < run->n_steps; s++) ok = report_put_step(run, s, figures, page, error);
    ok = ok && report_put_interventions(folder, run, page, error);
    put_inputs(run, page);
    ok = ok && put_job(folder, page, error);
    text_put_string(page, terms);
    text_put_string(
        page, "</main><footer>Made by gatetape from the tables in this folder. It shows where routing and "
              "sensitivity differ; that an expert causes a behaviour is shown only by changing it."
              "</footer></body></html>\n");
    if (ok && page->failed) ok = error_out_of_memory(error, "the report", page->length);
    char *path = ok ? io_join(folder, "report.html") : NULL;
    if (ok && !path) ok = error_out_of_memory(error, "a file name", strlen(folder));
    ok = ok && io_write_all(path, page->bytes, page->length, error);
    mem_free(path);
    return ok;
}

bool report_write(const char *folder, Progress *progress, Error *error) {
    ReportRun run;
    Figures figures;
    if (!report_read(folder, &run, error)) return false;
    bool ok = figures_draw(folder, &run, &figures, error);
    if (ok) {
        if (figures.problem[0]) progress_warn(progress, "figures: %s", figures.problem);
        Text page = {0};
        ok = write_page(folder, &run, &figures, &page, error);
        text_free(&page);
        figures_free(&figures);
    }
    report_free(&run);
    if (ok) progress_note(progress, "report: %s/report.html", folder);
    return ok;
}

/* Replies side by side, one block a prompt: the baseline first, then the selected conditions. Texts are
 * those that report_samples.c put into statistics.json, escaped here. */
#include "report_parts.h"
#include <string.h>

/* What else labels.csv says of a reply: all but its label and what stands elsewhere. */
static void put_facts(Json reply, Text *to) {
    static const char *const apart[] = {"condition", "id", "bytes", "response", "label"};
    for (Json at = {0}; json_next(&reply, &at);) {
        bool shown = json_type(at) == JSON_NULL || strstr(at.key, "_reason") ||
                     (json_type(at) == JSON_STRING && !*view_string(at));
        for (size_t i = 0; i < sizeof apart / sizeof *apart; i++) shown = shown || !strcmp(at.key, apart[i]);
        /* the rules' label where it is the one that counts says nothing more */
        shown = shown || (!strcmp(at.key, "rules") &&
                          !strcmp(view_string(at), view_string(json_member(&reply, "label"))));
        if (shown) continue;
        text_put_string(to, " <span class=\"soft small\">");
        html_put(to, at.key);
        text_put_string(to, ": ");
        if (json_type(at) == JSON_NUMBER)
            html_put_double(to, view_number(at));
        else
            html_put_json(to, at);
        text_put_string(to, "</span>");
    }
}

/* "label label-restricted" for our own labels; another's word is no class. */
static void put_label(Json reply, Text *to) {
    static const char *const known[] = {"restricted", "compliant", "degraded"};
    const char *label = view_string(json_member(&reply, "label"));
    text_put_string(to, "<span class=\"label");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(label, known[i])) text_format(to, " %s", known[i]);
    text_put_string(to, "\">");
    html_put(to, label);
    text_put_string(to, "</span>");
}

static void put_reply(const ReportView *view, Json reply, Text *to) {
    const char *reason;
    const Json text = view_find(reply, "response", &reason);
    text_put_string(to, "<div><b>");
    html_put(to, view_string(json_member(&reply, "condition")));
    text_put_string(to, "</b> ");
    put_label(reply, to);
    put_facts(reply, to);
    if (json_type(text) == JSON_STRING) {
        text_put_string(to, "<p class=\"reply\">");
        html_put(to, view_string(text));
        text_put_string(to, "</p>");
        if (view_number(json_member(&reply, "bytes")) > (double)view_limit(view, "sample_bytes")) {
            text_put_string(to, "<p class=\"soft small\">cut; ");
            html_put_defined(to, reply, "bytes");
            text_put_string(to, " bytes long</p>");
        }
    } else {
        html_put_absent(to, "Reply", reason);
    }
    text_put_string(to, "</div>\n");
}

static void put_prompt(const ReportView *view, Json prompt, Text *to) {
    const Json replies = json_member(&prompt, "replies");
    Json first = {0};
    bool changed = false;
    Error none = {0};
    json_next(&replies, &first);
    json_bool(json_member(&prompt, "changed"), &changed, &none);
    text_put_string(to, "<article><h4>");
    html_put(to, view_string(json_member(&prompt, "group")));
    text_put_string(to, ": ");
    html_put(to, view_string(json_member(&first, "id")));
    text_put_string(to, changed
                            ? "</h4>\n<div class=\"side\">\n"
                            : " <span class=\"soft\">(label unchanged)</span></h4>\n<div class=\"side\">\n");
    for (Json at = {0}; json_next(&replies, &at);) put_reply(view, at, to);
    text_put_string(to, "</div></article>\n");
}

void report_put_samples(const ReportView *view, int64_t s, Text *to) {
    const char *reason;
    const Json samples = view_find(view->steps[s].entry, "samples", &reason),
               prompts = json_member(&samples, "prompts");
    report_put_heading(to, s, "samples", "Replies side by side");
    if (json_type(samples) != JSON_OBJECT) {
        html_put_absent(to, "Replies", reason);
        return;
    }
    text_put_string(to, "<p class=\"soft small\">Of ");
    html_put_defined(to, samples, "n_prompts");
    text_put_string(to, " prompts the label of ");
    html_put_defined(to, samples, "n_changed");
    text_put_string(to, " changed under one of the first ");
    html_put_json(to, json_member(&view->page, "sample_conditions"));
    text_put_string(to, " selected conditions. Shown are of each group the first ");
    html_put_json(to, json_member(&view->page, "samples"));
    text_put_string(
        to, " prompts: those whose label changed, then the first others, both in the order of the prompt "
            "file; texts after ");
    html_put_json(to, json_member(&view->page, "sample_bytes"));
    text_put_string(to, " bytes are cut. All replies stand in responses/.</p>\n");
    for (Json at = {0}; json_next(&prompts, &at);) put_prompt(view, at, to);
}

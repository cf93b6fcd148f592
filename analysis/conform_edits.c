/* The interventions of a golden case: interventions.json read, what choices under an edit are judged by, and
 * actual_interventions.safetensors written. */
#include "conform_parts.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/json.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_EDITS_BYTES = 1 << 24, MAX_EDITS = 1000, MAX_NAME = 200 };

/* ---- reading ---- */
static bool read_mode(Json at, EditMode *mode, Error *error) {
    const char *name;
    if (!json_string(at, &name, error)) return false;
    size_t n = 0;
    for (; edit_mode_names[n]; n++)
        if (!strcmp(edit_mode_names[n], name)) {
            *mode = (EditMode)(EDIT_MASK + n);
            return true;
        }
    const char *near = json_nearest(name, edit_mode_names, n);
    return json_error(at, error, "expected a mode of an edit: got \"%.60s\"%s%s%s", name,
                      near ? " (did you mean \"" : "", near ? near : "", near ? "\"?)" : "");
}

static bool read_cells(Json cells, const ModelConfig *config, CellEdit edit, EditTable *table, Error *error) {
    Json cell = {0};
    if (!cells.node || json_type(cells) != JSON_ARRAY || json_count(cells) < 1)
        return json_error(cells, error, "expected an array of [layer, expert]");
    while (json_next(&cells, &cell)) {
        Json layer = {0}, expert;
        if (json_type(cell) != JSON_ARRAY || json_count(cell) != 2)
            return json_error(cell, error, "expected [layer, expert]");
        json_next(&cell, &layer);
        expert = layer;
        json_next(&cell, &expert);
        Error own = {0};
        if (!json_integer(layer, 0, INT32_MAX, &edit.layer, error) ||
            !json_integer(expert, 0, INT32_MAX, &edit.expert, error))
            return false;
        if (!edit_table_put(table, config, 0, edit, &own)) return json_error(cell, error, "%s", own.text);
    }
    return true;
}

static bool read_edit(Json at, const ModelConfig *config, ConformEdit *to, Error *error) {
    const char *name;
    CellEdit edit = {0};
    double value = 0;
    Json number = json_member(&at, "value");
    if (!json_string(json_member(&at, "name"), &name, error) ||
        !read_mode(json_member(&at, "mode"), &edit.mode, error) ||
        (number.node && json_type(number) != JSON_NULL && !json_number(number, &value, error)))
        return false;
    size_t n = strlen(name);
    if (!n || n > MAX_NAME)
        return json_error(at, error, "expected a name of 1 to %d bytes: got %zu", MAX_NAME, n);
    edit.value = (float)value;
    to->name = mem_copy_text(name, n);
    to->prefix = mem_alloc(n + 2);
    if (!to->name || !to->prefix) return error_out_of_memory(error, "an intervention", n);
    snprintf(to->prefix, n + 2, "%s.", name);
    Error own = {0};
    if (!edit_table_make(config, 1, &to->table, error) ||
        !read_cells(json_member(&at, "cells"), config, edit, &to->table, error))
        return false;
    return edit_table_check(&to->table, config, &own) || json_error(at, error, "%s", own.text);
}

static bool read_list(Json list, const ModelConfig *config, ConformEdits *edits, Error *error) {
    int64_t n = json_count(list);
    if (json_type(list) != JSON_ARRAY || n > MAX_EDITS)
        return json_error(list, error, "expected an array of at most %d edits", MAX_EDITS);
    edits->edits = mem_zeroed((size_t)n + 1, sizeof *edits->edits);
    if (!edits->edits) return error_out_of_memory(error, "interventions", (size_t)n * sizeof *edits->edits);
    Json at = {0};
    while (json_next(&list, &at)) {
        ConformEdit *edit = &edits->edits[edits->n++];
        if (!read_edit(at, config, edit, error)) return false;
        for (int64_t i = 0; i + 1 < edits->n; i++)
            if (!strcmp(edits->edits[i].name, edit->name))
                return json_error(at, error, "expected another name than that of [%lld]: got \"%.60s\"",
                                  (long long)i, edit->name);
    }
    return true;
}

bool conform_edits_read(const char *folder, const ModelConfig *config, ConformEdits *edits, Error *error) {
    *edits = (ConformEdits){0};
    char *path = io_join(folder, "interventions.json");
    if (!path) return error_out_of_memory(error, "a path", strlen(folder));
    bool ok = true;
    if (io_exists(path)) {
        JsonDocument *document = json_read(path, MAX_EDITS_BYTES, error);
        ok = document && read_list(json_root(document), config, edits, error);
        json_free(document);
    }
    mem_free(path);
    if (!ok) conform_edits_free(edits);
    return ok;
}

void conform_edits_free(ConformEdits *edits) {
    for (int64_t i = 0; i < edits->n; i++) {
        mem_free(edits->edits[i].name);
        mem_free(edits->edits[i].prefix);
        edit_table_free(&edits->edits[i].table);
    }
    mem_free(edits->edits);
    *edits = (ConformEdits){0};
}

/* ---- judging ---- */
static void edit_row(float *z, const int32_t *modes, const float *values, int64_t n) {
    float largest = -INFINITY, least = INFINITY;
    for (int64_t e = 0; e < n; e++) largest = fmaxf(largest, z[e]), least = fminf(least, z[e]);
    for (int64_t e = 0; e < n; e++) {
        switch ((EditMode)modes[e]) {
        case EDIT_MASK: z[e] = -INFINITY; break;
        case EDIT_BIAS: z[e] += values[e]; break;
        case EDIT_PROMOTE: z[e] = largest + values[e]; break;
        case EDIT_DEMOTE: z[e] = least - values[e]; break;
        case EDIT_FORCE: z[e] = 1e30f / (1 + values[e]); break;
        default: break;
        }
    }
}

void conform_edit_logits(const EditTable *edits, Tensor logits) {
    int64_t n_tokens = logits.shape[1], n = logits.shape[2];
    for (int64_t l = 0; l < edits->n_layers; l++)
        for (int64_t t = 0; t < n_tokens; t++)
            edit_row((float *)logits.data + (l * n_tokens + t) * n, edits->modes + l * n,
                     edits->values + l * n, n);
}

/* ---- writing ---- */
bool conform_edits_write(const ConformEdits *edits, const ConformValues *values, const char *folder,
                         Error *error) {
    static const ConformName written[] = {CONFORM_LOGITS, CONFORM_NLL, CONFORM_TOPK_IDS,
                                          CONFORM_TOPK_WEIGHTS};
    enum { N_WRITTEN = sizeof written / sizeof *written };
    size_t n = (size_t)edits->n * N_WRITTEN, at = 0;
    NamedTensor *tensors = mem_zeroed(n, sizeof *tensors);
    char(*names)[MAX_NAME + 40] = mem_zeroed(n, sizeof *names),
                            *path = io_join(folder, "actual_interventions.safetensors");
    bool ok = (tensors && names && path) || error_out_of_memory(error, "interventions", n * sizeof *names);
    for (int64_t i = 0; ok && i < edits->n; i++)
        for (size_t k = 0; k < N_WRITTEN; k++, at++) {
            snprintf(names[at], sizeof *names, "%s%s", edits->edits[i].prefix,
                     conform_infos[written[k]].name);
            tensors[at] = (NamedTensor){names[at], values[i].tensors[written[k]]};
        }
    ok = ok && io_make_folders(folder, error) && safetensors_write(path, tensors, (int64_t)n, NULL, 0, error);
    mem_free(tensors);
    mem_free(names);
    mem_free(path);
    return ok;
}

/* Finding and reading arch files. */
#include "arch.h"
#include "alloc.h"
#include "io.h"
#include "model_config.h"
#include "text.h"
#include <string.h>
#include <stdlib.h>
#include <unistd.h>

enum { MAX_ARCH_BYTES = 1 << 20, MAX_PATH = 4096 };

const char *model_config_folder(void) {
    static char beside[MAX_PATH];
    const char *named = getenv("GATETAPE_CONFIGS");
    if (named && *named) return named;
    if (!beside[0]) {
        char program[MAX_PATH / 2];
        ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
        program[n > 0 ? n : 0] = '\0';
        char *slash = strrchr(program, '/');
        if (slash) *slash = '\0';
        snprintf(beside, sizeof beside, "%s/../share/gatetape/configs", program);
    }
    return io_is_folder(beside) ? beside : GATETAPE_SOURCE_CONFIGS;
}

/* The families that have an arch file, as "mixtral, olmoe, qwen3_moe". */
static void list_families(const char *folder, Text *to) {
    char **names;
    size_t n;
    if (!io_list(folder, &names, &n, &(Error){0})) return;
    for (size_t i = 0; i < n; i++) {
        size_t length = strlen(names[i]);
        if (length > 5 && !strcmp(names[i] + length - 5, ".json")) {
            if (to->length) text_put_string(to, ", ");
            text_put(to, names[i], length - 5);
        }
        mem_free(names[i]);
    }
    mem_free(names);
}

bool arch_open(const char *model_type, Arch *arch, Error *error) {
    *arch = (Arch){0};
    char folder[MAX_PATH], file[MAX_PATH + 64];
    snprintf(folder, sizeof folder, "%s/arch", model_config_folder());
    bool plain = model_type[0] && strlen(model_type) < 32 && !strpbrk(model_type, "/.\\");
    snprintf(file, sizeof file, "%s/%s.json", folder, plain ? model_type : "");
    if (!plain || !io_exists(file)) {
        Text known = {0};
        list_families(folder, &known);
        error_set(error, known.failed ? ERROR_UNAVAILABLE : ERROR_BAD_INPUT,
                  "model_type: expected a supported family (%s): got \"%.64s\"",
                  known.length ? known.bytes : "none: the folder of arch files is missing", model_type);
        text_free(&known);
        return false;
    }
    arch->path = mem_copy_text(file, strlen(file));
    if (!arch->path) return error_out_of_memory(error, file, strlen(file));
    arch->document = json_read(arch->path, MAX_ARCH_BYTES, error);
    if (!arch->document) {
        arch_close(arch);
        return false;
    }
    arch->root = json_root(arch->document);
    arch->keys = json_member(&arch->root, "keys");
    arch->defaults = json_member(&arch->root, "defaults");
    arch->router = json_member(&arch->root, "router");
    arch->must_be = json_member(&arch->root, "must_be");
    arch->tensors = json_member(&arch->root, "tensors");
    return true;
}

void arch_close(Arch *arch) {
    json_free(arch->document);
    mem_free(arch->path);
    *arch = (Arch){0};
}

static const char *as_string(Json at) {
    const char *value = NULL;
    if (at.node && json_type(at) == JSON_STRING) json_string(at, &value, &(Error){0});
    return value;
}

const char *arch_string(const Json *section, const char *key) { return as_string(json_member(section, key)); }

Json arch_setting(const Arch *arch, const Json *config, const char *key) {
    Json at = json_member(config, key);
    if (at.node && json_type(at) != JSON_NULL) return at;
    Json otherwise = json_member(&arch->defaults, key);
    return otherwise.node ? otherwise : at;
}

const char *arch_tensor_pattern(const Arch *arch, const char *role, int64_t i) {
    Json at = json_member(&arch->tensors, role);
    if (json_type(at) != JSON_ARRAY) return i == 0 ? as_string(at) : NULL;
    for (Json entry = {0}; json_next(&at, &entry);)
        if (entry.index == i) return as_string(entry);
    return NULL;
}

bool arch_fill_name(const char *pattern, int64_t layer, int64_t expert, char *to, size_t capacity) {
    size_t used = 0;
    while (*pattern) {
        char number[24] = {*pattern, '\0'};
        bool is_layer = !strncmp(pattern, "{layer}", 7), is_expert = !strncmp(pattern, "{expert}", 8);
        if (is_layer || is_expert)
            snprintf(number, sizeof number, "%lld", (long long)(is_layer ? layer : expert));
        size_t n = strlen(number);
        if (used + n >= capacity) return false;
        memcpy(to + used, number, n + 1);
        used += n;
        pattern += is_layer ? 7 : is_expert ? 8 : 1;
    }
    return used > 0;
}

/* A device's file, configs/devices/NAME.json: its member "ranks" has what a plan on several of them needs,
 * each number as {"value": ., "source": "..."}. */
#include "json.h"
#include "rank_plan.h"
#include <stdio.h>

enum { MOST_FILE_BYTES = 1 << 20 };

/* A number without its source is refused. */
static bool read_number(const Json *object, const char *key, double *to, Error *error) {
    const Json entry = json_member(object, key), value = json_member(&entry, "value");
    const char *source;
    static const char *const known[] = {"value", "source"};
    if (!json_number(value, to, error) || !json_string(json_member(&entry, "source"), &source, error) ||
        !json_check_keys(&entry, known, 2, false, error))
        return false;
    return *to > 0 || json_error(value, error, "expected a number above 0: got %g", *to);
}

bool rank_device_read(const char *path, RankDevice *d, Error *error) {
    static const char *const keys[] = {"usable_bytes",     "flops_per_s",         "host_bytes_per_s",
                                       "node_bytes_per_s", "network_bytes_per_s", "per_node"};
    double per_node = 0;
    double *const to[] = {&d->usable_bytes,     &d->flops_per_s,         &d->host_bytes_per_s,
                          &d->node_bytes_per_s, &d->network_bytes_per_s, &per_node};
    enum { N_KEYS = sizeof keys / sizeof *keys };
    *d = (RankDevice){0};
    JsonDocument *document = json_read(path, MOST_FILE_BYTES, error);
    if (!document) return false;
    const Json root = json_root(document), ranks = json_member(&root, "ranks");
    const char *name;
    bool ok = json_string(json_member(&root, "name"), &name, error) &&
              read_number(&root, "dram_bytes_per_s", &d->dram_bytes_per_s, error);
    if (ok && (!ranks.node || json_type(ranks) != JSON_OBJECT))
        ok = error_set(error, ERROR_BAD_INPUT, "%s: ranks: expected an object: got %s", path,
                       ranks.node ? json_type_name(json_type(ranks)) : "none");
    for (size_t i = 0; ok && i < N_KEYS; i++) ok = read_number(&ranks, keys[i], to[i], error);
    ok = ok && json_check_keys(&ranks, keys, N_KEYS, false, error);
    if (ok) {
        snprintf(d->name, sizeof d->name, "%s", name);
        d->per_node = (int64_t)per_node;
        if (d->per_node < 1 || per_node > RANK_PLAN_MOST_RANKS || (double)d->per_node != per_node)
            ok = error_set(error, ERROR_BAD_INPUT,
                           "%s: ranks.per_node: expected an integer from 1 to %d: got %g", path,
                           RANK_PLAN_MOST_RANKS, per_node);
    }
    json_free(document);
    return ok;
}

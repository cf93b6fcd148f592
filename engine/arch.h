/* Arch: what a family's configs/arch/NAME.json states and config.json does not: which config keys hold what,
 * defaults of keys that a config may leave out, the router rule, the names of the tensors. Adding a family
 * whose maths exists is adding such a file.
 *
 *   architectures   classes that the config may name
 *   keys            config keys of n_experts, expert_size, dense_size
 *   defaults        values of config keys that are absent
 *   router          order; renormalize: true, false or a config key
 *   qk_norm         none, head or projection
 *   sliding_window  "always", or the config flag that switches it on
 *   must_be         config keys that may have one value alone
 *   tensors         role -> name, or a list of names to try */
#ifndef GATETAPE_ARCH_H
#define GATETAPE_ARCH_H
#include "json.h"

typedef struct {
    JsonDocument *document;
    Json root, keys, defaults, router, must_be, tensors;
    char *path;
} Arch;

/* The arch file of a model_type, which must not move while it is in use (its Json values point into it).
 * Error: unknown family, with the known ones. Caller closes. */
bool arch_open(const char *model_type, Arch *arch, Error *error);
void arch_close(Arch *arch);

/* The string at a key of a section (such as &arch->keys), or NULL when it is absent or no string. */
const char *arch_string(const Json *section, const char *key);

/* The config's value of a key; where that is absent or null, the family's default; absent when there is
 * none. */
Json arch_setting(const Arch *arch, const Json *config, const char *key);

/* Name number i (from 0) that the file gives for a role; NULL: there is none. */
const char *arch_tensor_pattern(const Arch *arch, const char *role, int64_t i);

/* A tensor-name pattern with {layer} and {expert} filled in. False: it does not fit. */
bool arch_fill_name(const char *pattern, int64_t layer, int64_t expert, char *to, size_t capacity);

#endif

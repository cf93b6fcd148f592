/* Arch: what a family's configs/arch/NAME.json states and config.json does not: which config keys hold what, the router
 * rule, the names of the tensors. Adding a family whose maths exists is adding such a file. */
#ifndef GATETAPE_ARCH_H
#define GATETAPE_ARCH_H
#include "json.h"

typedef struct {
    JsonDocument *document;
    Json root;
    char *path;
} Arch;

/* The arch file of a model_type. Error: unknown family, with the known ones. Caller closes. */
bool arch_open(const char *model_type, Arch *arch, Error *error);
void arch_close(Arch *arch);

/* The string at section.key, or NULL when it is absent or null. */
const char *arch_string(const Arch *arch, const char *section, const char *key);

/* A tensor-name pattern with {layer} and {expert} filled in. */
void arch_fill_name(const char *pattern, int64_t layer, int64_t expert, char *to, size_t capacity);

#endif

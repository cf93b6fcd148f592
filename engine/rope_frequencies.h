/* The frequencies by which rotary embeddings turn, from either spelling of the config: rope_theta +
 * rope_scaling, or rope_parameters. Kinds: default, linear, llama3, yarn; any other is refused by name. */
#ifndef GATETAPE_ROPE_FREQUENCIES_H
#define GATETAPE_ROPE_FREQUENCIES_H
#include "arch.h"
#include "model_config.h"

/* Fills rope_frequencies [n_rope], n_rope and rope_scale of a config whose head_size and max_positions are
 * known. */
bool rope_frequencies_read(const Json *root, const Arch *arch, ModelConfig *config, Error *error);

#endif

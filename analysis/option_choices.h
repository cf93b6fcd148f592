/* Private to option_table.c: the names of choices, in the order of the enumerations of options.h. */
#ifndef GATETAPE_OPTION_CHOICES_H
#define GATETAPE_OPTION_CHOICES_H
#include <stddef.h>

static const char *const devices[] = {"auto", "cpu", "cuda", NULL};
static const char *const computes[] = {"auto", "f32", "bf16", NULL};
static const char *const denses[] = {"own", "cublas", NULL};
static const char *const formats[] = {"auto", "jsonl", "csv", NULL};
static const char *const over_longs[] = {"refuse", "truncate_left", "truncate_right", "skip", NULL};
static const char *const empties[] = {"refuse", "skip", NULL};
static const char *const uses[] = {"any", "ranking", "tuning", "testing", NULL};
static const char *const counted[] = {"prompt",           "last", "target", "generated", "prompt+target",
                                      "prompt+generated", NULL};
static const char *const losses[] = {"prompt", "target", "generated", NULL};
static const char *const averages[] = {"prompts", "tokens", NULL};
static const char *const traces[] = {"none", "choices", "full", NULL};
static const char *const activation_scores[] = {"rate",        "layer_share",    "total_share",
                                                "probability", "combine_weight", NULL};
static const char *const gradient_scores[] = {"l2", "l1", "mean_abs", "logit_abs", NULL};
static const char *const dominants[] = {"share", "raw", NULL};
static const char *const layer_statistics[] = {"scores", "prompts", NULL};
static const char *const class_rules[] = {"ratio", "difference", "z", NULL};
static const char *const test_statistics[] = {"t", "difference", NULL};
static const char *const recomputes[] = {"auto", "always", "never", NULL};

static const char *const contrasts[] = {"continuations", "prefix", "matched", "adapter", NULL};
static const char *const contrast_tokens[] = {"all", "content", "last", "shared", NULL};
static const char *const pair_bys[] = {"auto", "id", "pair", "topic", NULL};
static const char *const js_logs[] = {"natural", "base2", NULL};
static const char *const rate_sides[] = {"both", "first", "second", NULL};

static const char *const rank_bys[] = {"difference", "ratio", "score", NULL};
static const char *const effects[] = {"none", "prompt", "prompt+target", NULL};
static const char *const rankings[] = {"rate", "probability", "gradient", NULL};
static const char *const controls[] = {"none", "random", "layer_matched", "random_any", "all", NULL};
static const char *const utility_measures[] = {"choices", "perplexity", NULL};
static const char *const normalizes[] = {"none", "tokens", "bytes", NULL};
static const char *const choice_forms[] = {"text", "letter", NULL};
static const char *const measured_texts[] = {"prompt", "target", NULL};
static const char *const schedules[] = {"constant", "linear", "cosine", NULL};
static const char *const applies[] = {"both", "prompt", "generated", NULL};

#endif

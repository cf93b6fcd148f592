/* The sentences of the methods text about what a training minimises. */
#include "methods.h"

enum { TUNE = 1 << STEP_TUNE };

#define STEP(option, value, text)                                                                            \
    { SCOPE_STEP, TUNE, option, value, text }

const MethodSentence objective_sentences[] = {
    STEP("objective", "nll",
         "The loss of an optimizer step is the negative log-likelihood of the targets' tokens, the mean over "
         "all of them in the step"),
    STEP("objective", "preference",
         "The loss of an optimizer step is that of DPO (arXiv 2305.18290) with the target preferred to the "
         "other target of the same prompt, -log sigmoid(beta (gain of the target - gain of the other)), a "
         "gain being what a continuation's log-likelihood, summed over its tokens, has over that of the "
         "model without the updates; the mean over the step's pairs"),
    STEP("beta", NULL, "The beta of a preference is {}"),
    STEP("router_kl", "0", "No divergence of the routers was added to it"),
    STEP("router_kl", NULL,
         "Added was {} times the KL divergence of the routers' softmax from that of the model without the "
         "updates, KL(frozen || trained) as in SafeMoE (arXiv 2509.22745), the mean over tokens and layers"),
    STEP("router_temperature", NULL, "For that divergence both routers' logits were divided by {}"),
    STEP("router_anchor", "0", "Routers were not drawn to the trained cells"),
    STEP("router_anchor", NULL,
         "Added was {} times the squared distance between the router's softmax and the one-hot vector of the "
         "layer's trained cell (SEUF, arXiv 2411.18797; several cells share the one in equal parts), the "
         "mean over tokens and layers with such cells"),
    STEP("gate_rows", "false", "The routers' own rows were frozen"),
    STEP("gate_rows", "true",
         "The rows of the routers that choose the trained cells were trained too (as in the second phase of "
         "RASA, arXiv 2602.04448, without its divergence between mean routings)"),
    STEP("gate_rate", NULL, "The largest learning rate of router rows was {}, on the same schedule"),
    STEP("dropout", "0", "There was no dropout"),
    STEP("dropout", NULL,
         "In training passes the share {} of what the updates read was left out at random, the rest scaled "
         "up"),
    STEP("router_tokens", "last", "Terms on routers counted the last token of each prompt"),
    STEP("router_tokens", "all", "Terms on routers counted all tokens of prompt and target"),
};
const int64_t n_objective_sentences = sizeof objective_sentences / sizeof *objective_sentences;

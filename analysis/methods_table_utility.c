/* The sentences of the methods text about a model with and without adapters: what is compared, and what
 * else it can do. */
#include "methods.h"

enum {
    CONTRAST = 1 << STEP_CONTRAST,
    INTERVENTION = 1 << STEP_INTERVENTION,
    TUNE = 1 << STEP_TUNE,
    UTILITY = 1 << STEP_UTILITY
};

#define STEP(kinds, option, value, text)                                                                     \
    { SCOPE_STEP, kinds, option, value, text }

const MethodSentence utility_sentences[] = {
    STEP(UTILITY, "kind", NULL,
         "The step measures what the model can do beside the behaviour that is studied"),
    STEP(UTILITY, "measure", "choices",
         "Accuracy is the share of the questions whose right choice is the likeliest of the question's "
         "choices, "
         "each teacher-forced as the reply, ties to the first; its interval is Wilson's"),
    STEP(UTILITY, "measure", "perplexity",
         "Likelihood is the mean over texts of the mean negative log-likelihood of their tokens, perplexity "
         "its "
         "exponential; the interval is a bootstrap over texts"),
    STEP(UTILITY, "normalize", "none", "Compared was the log-likelihood of the whole choice"),
    STEP(UTILITY, "normalize", "tokens",
         "Compared was the log-likelihood of a choice over its number of tokens"),
    STEP(UTILITY, "normalize", "bytes",
         "Compared was the log-likelihood of a choice over its number of bytes"),
    STEP(UTILITY, "choice_form", "text", "The question alone was asked, the choices were replies"),
    STEP(UTILITY, "choice_form", "letter",
         "The choices were listed as A, B, ... behind the question, the letters were replies"),
    STEP(UTILITY, "text", "prompt", "The texts were the prompts' own tokens behind the first"),
    STEP(UTILITY, "text", "target", "The texts were the targets"),
    STEP(UTILITY, "adapters", "[]", "No adapter was compared with the model as it is"),
    STEP(
        UTILITY, "adapters", NULL,
        "The model as it is and with the updates of each of {} was measured on the same prompts; changes are "
        "differences prompt by prompt, with a bootstrap interval over prompts and, of choices, McNemar's "
        "exact "
        "two-sided test"),
    STEP(INTERVENTION, "adapters", "[]", "No adapter was compared with the model as it is"),
    STEP(
        INTERVENTION, "adapters", NULL,
        "The model with the updates of each of {} was a condition too, without any edit, those trained on "
        "drawn cells as controls of the first that was not; replies of all are scored by the model as it is"),
    STEP(CONTRAST, "contrast", "adapter",
         "The texts of a pair are one text, prompt and target where there is one, without the adapter and "
         "with "
         "it, compared token by token: the drift of the routing"),
    STEP(TUNE, "control", "random_any",
         "In place of the chosen cells a random set of as many of all cells was trained"),
    STEP(TUNE, "control", "all", "All cells were trained"),
    STEP(TUNE, "draw", NULL, "The random set was draw {} of its kind"),
};
const int64_t n_utility_sentences = sizeof utility_sentences / sizeof *utility_sentences;

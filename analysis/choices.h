/* choices: questions of a multiple-choice file as texts of which one is likeliest.
 *
 * A line of the file (JSON lines) is an object with
 *   question (or prompt, messages; ARC's {"stem": ...}),
 *   choices: a list of texts (MMLU), a list of {"text", "label"}, or {"text": [...], "label": [...]} (ARC),
 *     which may also stand beside the stem,
 *   answer (or answerKey): the index of the right one from 0, or its label; without labels they are A, B, ...
 *
 * Each choice becomes a target behind the question. Of a model without chat template the prompt is
 * "Question: ...\nAnswer:" and a reply begins with a space. */
#ifndef GATETAPE_CHOICES_H
#define GATETAPE_CHOICES_H
#include "prompts.h"

enum { MOST_CHOICES = 26 };

typedef struct {
    int64_t first, n; /* prompts [first, first + n) of the texts are the choices */
    int64_t answer;   /* which of them is right */
} ChoiceQuestion;

typedef struct {
    PromptFile questions;
    PromptGroup texts; /* prompt: the question; target: a choice. entry->index and id are the question's */
    ChoiceQuestion *list;
    int64_t n, n_left_out; /* questions; those of which a choice was left out as too long */
} ChoiceSet;

/* Takes over *file (emptied), the questions of a group, and reads their choices from the file again. Errors
 * name file, line and key: no choices, fewer than two or more than MOST_CHOICES, an answer that is none of
 * them, an empty choice. Caller frees, also after an error. */
bool choices_read(const PromptEncoder *encoder, const PromptOptions *options, ChoiceForm form,
                  PromptFile *file, ChoiceSet *set, Error *error);
void choices_free(ChoiceSet *set);

#endif

/* Multiple-choice files: the spellings that are about, each question with its choices as targets. */
#include "choices.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include <string.h>

static const size_t max_file_bytes = (size_t)1 << 30;

/* ---- one line ---- */
typedef struct {
    const char *texts[MOST_CHOICES], *labels[MOST_CHOICES]; /* of the document; a label NULL: a letter */
    int64_t n, answer;
} Line;

static bool check_count(Json at, int64_t n, Error *error) {
    return (n >= 2 && n <= MOST_CHOICES) ||
           json_error(at, error, "expected 2 to %d choices: got %lld", MOST_CHOICES, (long long)n);
}

/* ["...", ...] or [{"text": "...", "label": "..."}, ...] */
static bool read_list(Json choices, Line *line, Error *error) {
    if (!check_count(choices, json_count(choices), error)) return false;
    Json at = {0};
    while (json_next(&choices, &at)) {
        const bool object = json_type(at) == JSON_OBJECT;
        Json label = object ? json_member(&at, "label") : (Json){0};
        if (!json_string(object ? json_member(&at, "text") : at, &line->texts[line->n], error)) return false;
        if (label.node && !json_string(label, &line->labels[line->n], error)) return false;
        line->n++;
    }
    return true;
}

/* {"text": [...], "label": [...]} */
static bool read_columns(Json choices, Line *line, Error *error) {
    Json texts = json_member(&choices, "text"), labels = json_member(&choices, "label"), at = {0};
    if (!texts.node || json_type(texts) != JSON_ARRAY)
        return json_error(texts, error, "expected an array of the choices' texts: got %s",
                          texts.node ? json_type_name(json_type(texts)) : "nothing");
    if (!check_count(texts, json_count(texts), error)) return false;
    while (json_next(&texts, &at))
        if (!json_string(at, &line->texts[line->n++], error)) return false;
    if (!labels.node) return true;
    if (json_type(labels) != JSON_ARRAY || json_count(labels) != line->n)
        return json_error(labels, error, "expected a label of each of the %lld choices: got %lld",
                          (long long)line->n, (long long)json_count(labels));
    at = (Json){0};
    while (json_next(&labels, &at))
        if (!json_string(at, &line->labels[at.index], error)) return false;
    return true;
}

static bool read_choices(Json root, Line *line, Error *error) {
    Json choices = json_member(&root, "choices"), question = json_member(&root, "question");
    if (!choices.node && question.node && json_type(question) == JSON_OBJECT)
        choices = json_member(&question, "choices");
    if (!choices.node) return json_error(choices, error, "expected a list of choices: got nothing");
    if (json_type(choices) == JSON_ARRAY) {
        if (!read_list(choices, line, error)) return false;
    } else if (json_type(choices) == JSON_OBJECT) {
        if (!read_columns(choices, line, error)) return false;
    } else {
        return json_error(choices, error, "expected a list of choices: got %s",
                          json_type_name(json_type(choices)));
    }
    for (int64_t i = 0; i < line->n; i++)
        if (!line->texts[i][0])
            return json_error(choices, error, "expected choices with text: number %lld is empty",
                              (long long)i);
    return true;
}

static void label_of(const Line *line, int64_t i, char to[40]) {
    if (line->labels[i])
        snprintf(to, 40, "%.39s", line->labels[i]);
    else
        snprintf(to, 40, "%c", (char)('A' + i));
}

static bool read_answer(Json root, Line *line, Error *error) {
    Json answer = json_member(&root, "answer"), key = json_member(&root, "answerKey");
    if (!answer.node && !key.node)
        return json_error(answer, error, "expected the right choice, its index or label: got nothing");
    if (answer.node && key.node) return json_error(key, error, "expected answer or answerKey: got both");
    if (key.node) answer = key;
    if (json_type(answer) == JSON_NUMBER) return json_integer(answer, 0, line->n - 1, &line->answer, error);
    const char *text;
    char label[40], last[40];
    if (!json_string(answer, &text, error)) return false;
    for (int64_t i = 0; i < line->n; i++) {
        label_of(line, i, label);
        if (strcmp(label, text) != 0) continue;
        line->answer = i;
        return true;
    }
    label_of(line, 0, label), label_of(line, line->n - 1, last);
    return json_error(answer, error, "expected a label of the choices, %s to %s: got \"%.40s\"", label, last,
                      text);
}

/* ---- texts ---- */
static bool put_text(PromptFile *to, Text *text, const char **put, size_t *length, Error *error) {
    if (text->failed) return error_out_of_memory(error, "a question", text->length);
    *length = text->length;
    *put = pool_put(&to->pool, text->bytes ? text->bytes : "", text->length, error);
    return *put != NULL;
}

/* How questions are asked. */
typedef struct {
    const PromptEncoder *encoder;
    ChoiceForm form;
} Asking;

/* The question as it is asked, in the place of the last message's text. */
static bool ask(const Asking *by, const Line *line, PromptFile *to, ChatMessage *last, Error *error) {
    const bool plain = !by->encoder->chat_template;
    Text text = {0};
    if (plain) text_put_string(&text, "Question: ");
    text_put(&text, last->content, last->length);
    for (int64_t i = 0; by->form == CHOICES_AS_LETTERS && i < line->n; i++)
        text_format(&text, "\n%c. %s", (char)('A' + i), line->texts[i]);
    if (plain || by->form == CHOICES_AS_LETTERS) text_put_string(&text, "\nAnswer:");
    const bool ok = put_text(to, &text, &last->content, &last->length, error);
    text_free(&text);
    return ok;
}

static bool reply(const Asking *by, const Line *line, int64_t i, PromptFile *to, PromptEntry *entry,
                  Error *error) {
    Text text = {0};
    if (!by->encoder->chat_template) text_put_string(&text, " ");
    if (by->form == CHOICES_AS_LETTERS)
        text_format(&text, "%c", (char)('A' + i));
    else
        text_put_string(&text, line->texts[i]);
    const bool ok = put_text(to, &text, &entry->target, &entry->target_length, error);
    text_free(&text);
    return ok;
}

static PromptEntry *add_entry(PromptFile *to, Error *error) {
    if (to->n == to->capacity) {
        const int64_t more = to->capacity ? 2 * to->capacity : 256;
        PromptEntry *entries = mem_resize(to->entries, (size_t)more, sizeof *entries);
        if (!entries) {
            error_out_of_memory(error, "choices", (size_t)more * sizeof *entries);
            return NULL;
        }
        to->entries = entries, to->capacity = more;
    }
    PromptEntry *entry = &to->entries[to->n++];
    *entry = (PromptEntry){0};
    return entry;
}

/* An entry of its own for each choice: question before it, choice as target. */
static bool put_question(const Asking *by, const PromptEntry *question, const Line *line, PromptFile *to,
                         Error *error) {
    for (int64_t i = 0; i < line->n; i++) {
        PromptEntry *entry = add_entry(to, error);
        if (!entry) return false;
        *entry = (PromptEntry){.index = question->index, .line = question->line, .id = question->id};
        entry->messages = mem_zeroed((size_t)question->n_messages, sizeof *entry->messages);
        if (!entry->messages) return error_out_of_memory(error, "a question", sizeof *entry->messages);
        entry->n_messages = question->n_messages;
        memcpy(entry->messages, question->messages, (size_t)question->n_messages * sizeof *entry->messages);
        ChatMessage *last = &entry->messages[entry->n_messages - 1];
        if (last->role != ROLE_USER)
            return error_set(error, ERROR_BAD_INPUT,
                             "expected a question of the user as the last message: got another role's");
        if (!ask(by, line, to, last, error) || !reply(by, line, i, to, entry, error)) return false;
    }
    return true;
}

/* ---- the file ---- */
static bool read_line(const Asking *by, const PromptEntry *question, const char *text, size_t n,
                      PromptFile *to, ChoiceQuestion *made, Error *error) {
    char name[600];
    Line line = {0};
    snprintf(name, sizeof name, "%s:%lld", to->file, (long long)question->line);
    JsonDocument *document = json_parse(text, n, name, error);
    bool ok = document && read_choices(json_root(document), &line, error) &&
              read_answer(json_root(document), &line, error) &&
              (put_question(by, question, &line, to, error) || error_add_place(error, "%s", name));
    *made = (ChoiceQuestion){.n = line.n, .answer = line.answer};
    json_free(document);
    return ok;
}

/* The lines of the questions, in their order. */
static bool read_lines(const Asking *by, const PromptFile *questions, const char *text, size_t length,
                       PromptFile *to, ChoiceQuestion *list, Error *error) {
    int64_t line = 1, at = 0;
    for (size_t begin = 0; begin < length && at < questions->n; line++) {
        const char *here = text + begin, *end = memchr(here, '\n', length - begin);
        const size_t n = end ? (size_t)(end - here) : length - begin;
        begin += n + 1;
        if (questions->entries[at].line != line) continue;
        if (!read_line(by, &questions->entries[at], here, n, to, &list[at], error)) return false;
        at++;
    }
    return at == questions->n ||
           error_set(error, ERROR_FAILED, "%s: expected the file as it was a moment ago", questions->file);
}

/* Which prompts are a question's; one of which a choice was left out goes as a whole. */
static void gather(ChoiceSet *set) {
    const PromptFile *questions = &set->questions;
    int64_t at = 0, n = 0;
    for (int64_t q = 0; q < questions->n; q++) {
        ChoiceQuestion one = set->list[q];
        one.first = at;
        while (at < set->texts.n && set->texts.prompts[at].entry->index == questions->entries[q].index) at++;
        if (at - one.first == one.n)
            set->list[n++] = one;
        else
            set->n_left_out++;
    }
    set->n = n;
}

bool choices_read(const PromptEncoder *encoder, const PromptOptions *options, ChoiceForm form,
                  PromptFile *file, ChoiceSet *set, Error *error) {
    PromptFile texts = {.file = mem_copy_text(options->path, strlen(options->path))};
    const EncodeNeeds needs = {.target = true, .n_prompt_least = 1};
    size_t length = 0;
    *set = (ChoiceSet){.questions = *file, .list = mem_zeroed((size_t)file->n + 1, sizeof *set->list)};
    *file = (PromptFile){0};
    char *text = io_read_all(options->path, max_file_bytes, &length, error);
    bool ok = text && ((texts.file && set->list) ||
                       error_out_of_memory(error, "questions", (size_t)set->questions.n * sizeof *set->list));
    memcpy(texts.hash, set->questions.hash, sizeof texts.hash);
    ok = ok &&
         read_lines(&(Asking){encoder, form}, &set->questions, text, length, &texts, set->list, error) &&
         prompts_encode(encoder, options, needs, &texts, &set->texts, error);
    if (ok) gather(set);
    if (ok && !set->n)
        ok = error_set(error, ERROR_BAD_INPUT,
                       "%s: expected at least one question of which no choice is too long: got none of %lld",
                       options->path, (long long)set->questions.n);
    mem_free(text);
    prompts_free(&texts);
    return ok;
}

void choices_free(ChoiceSet *set) {
    prompt_group_free(&set->texts);
    prompts_free(&set->questions);
    mem_free(set->list);
    *set = (ChoiceSet){0};
}

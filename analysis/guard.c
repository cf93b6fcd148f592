/* A guard's file, its questions as prompts, its answers as tokens, and what it thinks of them. */
#include "guard.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/json.h"
#include "../kernels/math.h"
#include "likelihood.h"
#include <string.h>

enum { MOST_GUARD_BYTES = 1 << 20, MOST_ANSWER = 200 };

struct Guard {
    char *path, *question, *system, *answers[N_LABELS]; /* system, answers: NULL: none */
    char hash[HASH_TEXT];
    int32_t *tokens[N_LABELS];
    int64_t n_tokens[N_LABELS];
    PromptEncoder encoder; /* that of the model, but its options are `plain` */
    ModelOptions plain;
};

void guard_free(Guard *guard) {
    if (!guard) return;
    for (int l = 0; l < N_LABELS; l++) mem_free(guard->answers[l]), mem_free(guard->tokens[l]);
    mem_free(guard->path);
    mem_free(guard->question);
    mem_free(guard->system);
    mem_free(guard);
}

bool guard_has(const Guard *guard, Label label) { return guard->answers[label] != NULL; }

int64_t guard_count(const Guard *guard) {
    int64_t n = 0;
    for (Label l = 0; l < N_LABELS; l++) n += guard_has(guard, l);
    return n;
}

/* ---- the file ---- */
static bool read_text(const Json *at, const char *key, bool optional, char **to, Error *error) {
    const Json member = json_member(at, key);
    const char *text;
    if (optional && !member.node) return true;
    if (!json_string(member, &text, error)) return false;
    if (!*text) return json_error(member, error, "expected a text: got an empty one");
    *to = mem_copy_text(text, strlen(text));
    return *to || error_out_of_memory(error, key, strlen(text));
}

static bool read_guard(Guard *guard, const Json *root, Error *error) {
    static const char *const keys[] = {"schema_version", "system", "question", "answers"};
    int64_t version;
    const Json question = json_member(root, "question"), answers = json_member(root, "answers");
    if (!json_check_keys(root, keys, sizeof keys / sizeof *keys, true, error) ||
        !json_integer(json_member(root, "schema_version"), 1, 1, &version, error) ||
        !read_text(root, "system", true, &guard->system, error) ||
        !read_text(root, "question", false, &guard->question, error))
        return false;
    if (!strstr(guard->question, "{response}"))
        return json_error(question, error, "expected {response} where the reply goes: got \"%.80s\"",
                          guard->question);
    if (!answers.node || json_type(answers) != JSON_OBJECT)
        return json_error(answers.node ? answers : *root, error,
                          "expected an object \"answers\" with restricted, compliant and maybe degraded");
    if (!json_check_keys(&answers, label_names, N_LABELS, true, error)) return false;
    for (Label l = 0; l < N_LABELS; l++) {
        if (!read_text(&answers, label_names[l], l == LABEL_DEGRADED, &guard->answers[l], error))
            return false;
        if (guard->answers[l] && strlen(guard->answers[l]) > MOST_ANSWER)
            return json_error(answers, error, "expected answers of at most %d bytes", MOST_ANSWER);
    }
    return true;
}

Guard *guard_read(const char *path, Error *error) {
    Guard *guard = mem_zeroed(1, sizeof *guard);
    JsonDocument *document = guard ? json_read(path, MOST_GUARD_BYTES, error) : NULL;
    bool ok = document && hash_file(path, guard->hash, error);
    if (ok) ok = (guard->path = mem_copy_text(path, strlen(path))) || error_out_of_memory(error, path, 0);
    if (ok) {
        const Json root = json_root(document);
        ok = read_guard(guard, &root, error);
    }
    if (!guard) error_out_of_memory(error, path, sizeof *guard);
    json_free(document);
    if (ok) return guard;
    guard_free(guard);
    return NULL;
}

/* ---- answers as tokens ---- */
static PromptOptions options_of(const Guard *guard) {
    return (PromptOptions){.name = "guard", .path = guard->path, .system = "", .format = FORMAT_JSONL};
}

/* What the tokens of an answer write must end in the answer. */
static bool check_written(const Guard *guard, Label label, Error *error) {
    Text text = {0};
    bool ok = tokenizer_decode(guard->encoder.tokenizer, guard->tokens[label], guard->n_tokens[label], true,
                               &text, error) &&
              (!text.failed || error_out_of_memory(error, "an answer", text.length));
    const char *answer = guard->answers[label], *got = text.bytes ? text.bytes : "";
    const size_t n = strlen(answer);
    if (ok && (text.length < n || memcmp(got + text.length - n, answer, n) != 0))
        ok =
            error_set(error, ERROR_BAD_INPUT,
                      "%s: answers.%s: expected a text that tokens of models.%s can write: got \"%s\", which "
                      "they write \"%.80s\"",
                      guard->path, label_names[label], guard->plain.name, answer, got);
    text_free(&text);
    return ok;
}

/* Encoded as targets are: apart from the question, as the begin of the assistant's reply. */
static bool encode_answer(Guard *guard, Label label, Error *error) {
    PromptOptions options = options_of(guard);
    PromptFile file = {0};
    PromptGroup group = {0};
    Text line = {0};
    text_put_string(&line, "{\"prompt\": \"a\", \"id\": \"answer\", \"target\": ");
    text_put_json(&line, guard->answers[label], strlen(guard->answers[label]));
    text_put_string(&line, "}\n");
    bool ok = (!line.failed || error_out_of_memory(error, "an answer", line.length)) &&
              prompts_parse(&options, line.bytes, line.length, &file, error) &&
              (prompts_encode(&guard->encoder, &options, (EncodeNeeds){.target_if_given = true}, &file,
                              &group, error) ||
               error_add_place(error, "%s: answers.%s", guard->path, label_names[label]));
    if (ok) {
        const EncodedPrompt *prompt = &group.prompts[0];
        const size_t n = (size_t)prompt->n_target;
        guard->n_tokens[label] = prompt->n_target;
        guard->tokens[label] = mem_zeroed(n + 1, sizeof *guard->tokens[label]);
        ok = guard->tokens[label] || error_out_of_memory(error, "an answer", n);
        if (ok && n) memcpy(guard->tokens[label], prompt->tokens + prompt->n_prompt, n * sizeof(int32_t));
    }
    text_free(&line);
    prompts_free(&file);
    prompt_group_free(&group);
    return ok && check_written(guard, label, error);
}

static bool check_distinct(const Guard *guard, Error *error) {
    for (Label a = 0; a < N_LABELS; a++)
        for (Label b = 0; b < a; b++) {
            if (!guard_has(guard, a) || !guard_has(guard, b)) continue;
            const int64_t n =
                guard->n_tokens[a] < guard->n_tokens[b] ? guard->n_tokens[a] : guard->n_tokens[b];
            if (memcmp(guard->tokens[a], guard->tokens[b], (size_t)n * sizeof(int32_t)) != 0) continue;
            return error_set(error, ERROR_BAD_INPUT,
                             "%s: answers.%s: expected tokens that neither are nor begin with those of "
                             "answers.%s, nor the other way: got \"%s\" and \"%s\"",
                             guard->path, label_names[a], label_names[b], guard->answers[a],
                             guard->answers[b]);
        }
    return true;
}

bool guard_open(Guard *guard, const PromptEncoder *encoder, Error *error) {
    if (!encoder->chat_template)
        return error_set(error, ERROR_BAD_INPUT,
                         "models.%s.chat_template: expected a chat template, since the model is asked as a "
                         "guard: got none",
                         encoder->options->name);
    guard->plain = *encoder->options;
    guard->plain.parse_special_in_content = false;
    guard->plain.generation_prompt = true;
    guard->encoder = *encoder;
    guard->encoder.options = &guard->plain;
    for (Label l = 0; l < N_LABELS; l++)
        if (guard_has(guard, l) && !encode_answer(guard, l, error)) return false;
    return check_distinct(guard, error);
}

/* ---- questions ---- */
const ChatMessage *guard_prompt(const PromptEntry *entry) {
    const ChatMessage *found = NULL;
    for (int64_t i = 0; i < entry->n_messages; i++)
        if (entry->messages[i].role == ROLE_USER) found = &entry->messages[i];
    return found;
}

/* The question with the texts in their places, once: what is put in is not looked at again. */
static void put_question(const Guard *guard, const GuardText *text, Text *to) {
    static const char prompt[] = "{prompt}", response[] = "{response}";
    for (const char *at = guard->question; *at;) {
        if (!strncmp(at, prompt, sizeof prompt - 1)) {
            text_put(to, text->prompt->content, text->prompt->length);
            at += sizeof prompt - 1;
        } else if (!strncmp(at, response, sizeof response - 1)) {
            text_put_string(to, text->response);
            at += sizeof response - 1;
        } else {
            text_put(to, at++, 1);
        }
    }
}

static void put_line(const Guard *guard, const GuardText *text, Text *to) {
    Text question = {0};
    put_question(guard, text, &question);
    text_put_string(to, "{\"id\": ");
    text_put_json(to, text->id, strlen(text->id));
    text_put_string(to, ", \"messages\": [");
    if (guard->system) {
        text_put_string(to, "{\"role\": \"system\", \"content\": ");
        text_put_json(to, guard->system, strlen(guard->system));
        text_put_string(to, "}, ");
    }
    text_put_string(to, "{\"role\": \"user\", \"content\": ");
    text_put_json(to, question.bytes ? question.bytes : "", question.length);
    text_put_string(to, "}]}\n");
    to->failed = to->failed || question.failed;
    text_free(&question);
}

bool guard_encode(const Guard *guard, const GuardText *texts, int64_t n, PromptGroup *group, Error *error) {
    static const PromptOptions plain = {
        .name = "guard", .path = "guard", .system = "", .format = FORMAT_JSONL};
    PromptFile file = {0};
    Text lines = {0};
    int64_t longest = 0;
    *group = (PromptGroup){0};
    for (int64_t i = 0; i < n; i++) put_line(guard, &texts[i], &lines);
    for (int l = 0; l < N_LABELS; l++)
        if (guard->n_tokens[l] > longest) longest = guard->n_tokens[l];
    bool ok =
        (!lines.failed || error_out_of_memory(error, "questions", lines.length)) &&
        prompts_parse(&plain, lines.bytes, lines.length, &file, error) &&
        prompts_encode(&guard->encoder, &plain, (EncodeNeeds){.n_reserved = longest}, &file, group, error);
    text_free(&lines);
    prompts_free(&file);
    return ok;
}

/* ---- answers ---- */
/* A question with one of the answers behind it. */
static ScoredText answer_text(const Guard *guard, const EncodedPrompt *question, int label) {
    return (ScoredText){.prompt = question,
                        .behind = guard->tokens[label],
                        .n_behind = guard->n_tokens[label],
                        .prompt_set = -1,
                        .behind_set = -1};
}

int64_t guard_question_tokens(const Guard *guard, const EncodedPrompt *question) {
    int64_t n = 0;
    for (int l = 0; l < N_LABELS; l++)
        if (guard->answers[l]) n += question->n_prompt + guard->n_tokens[l];
    return n;
}

int64_t guard_batch_size(const Guard *guard, const EncodedPrompt *questions, int64_t n, BatchLimits limits) {
    int64_t n_fit = 0, n_tokens = 0;
    for (; n_fit < n; n_fit++) {
        n_tokens += guard_question_tokens(guard, &questions[n_fit]);
        if (n_fit && !batch_fits(limits, n_fit + 1, n_tokens)) break;
    }
    return n_fit;
}

bool guard_ask(const Guard *guard, const Model *model, const EncodedPrompt *questions, int64_t n,
               double *log_p, Error *error) {
    const int64_t n_answers = guard_count(guard);
    ScoredText *texts = mem_zeroed((size_t)(n * n_answers), sizeof *texts);
    double *nll = mem_zeroed((size_t)(n * n_answers), sizeof *nll);
    bool ok =
        (texts && nll) || error_out_of_memory(error, "questions", (size_t)(n * n_answers) * sizeof *texts);
    int64_t k = 0;
    for (int64_t i = 0; ok && i < n; i++)
        for (int l = 0; l < N_LABELS; l++)
            if (guard->answers[l]) texts[k++] = answer_text(guard, &questions[i], l);
    ok = ok && likelihood_of_texts(model, NULL, texts, k, NULL, nll, error);
    k = 0;
    for (int64_t i = 0; ok && i < n; i++)
        for (int l = 0; l < N_LABELS; l++)
            if (guard->answers[l]) log_p[i * N_LABELS + l] = -nll[k++] * (double)guard->n_tokens[l];
    mem_free(texts);
    mem_free(nll);
    return ok;
}

GuardVerdict guard_verdict(const Guard *guard, const double log_p[N_LABELS]) {
    GuardVerdict v = {.label = LABEL_RESTRICTED};
    double sum = 0, said = 0;
    for (Label l = 0; l < N_LABELS; l++)
        if (guard_has(guard, l) && log_p[l] > log_p[v.label]) v.label = l;
    for (Label l = 0; l < N_LABELS; l++) {
        if (!guard_has(guard, l)) continue;
        sum += exp_f64(log_p[l] - log_p[v.label]);
        said += exp_f64(log_p[l]);
    }
    for (Label l = 0; l < N_LABELS; l++)
        v.probability[l] = guard_has(guard, l) ? exp_f64(log_p[l] - log_p[v.label]) / sum : NAN;
    v.other = said < 1 ? 1 - said : 0;
    return v;
}

/* ---- facts ---- */
void guard_put_facts(const Guard *guard, const char *model, Text *to) {
    const char *base = io_last_name(guard->path);
    text_put_string(to, "{\"model\": ");
    text_put_json(to, model, strlen(model));
    text_put_string(to, ", \"file\": ");
    text_put_json(to, base, strlen(base));
    text_format(to, ", \"sha256\": \"%s\", \"answers\": {", guard->hash);
    bool first = true;
    for (int l = 0; l < N_LABELS; l++) {
        if (!guard->answers[l]) continue;
        text_format(to, "%s\"%s\": {\"text\": ", first ? "" : ", ", label_names[l]);
        text_put_json(to, guard->answers[l], strlen(guard->answers[l]));
        text_put_string(to, ", \"tokens\": [");
        for (int64_t t = 0; t < guard->n_tokens[l]; t++)
            text_format(to, "%s%d", t ? ", " : "", (int)guard->tokens[l][t]);
        text_put_string(to, "]}");
        first = false;
    }
    text_put_string(to, "}}");
}

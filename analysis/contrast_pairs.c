/* The pairs of a contrast: two sides read as prompts are, then brought into one order. A prompt without
 * its partner is refused by name; one whose partner was left out as empty or too long goes with it, and
 * is counted. */
#include "contrast.h"
#include "../engine/alloc.h"
#include <stdlib.h>
#include <string.h>

void contrast_pairs_free(ContrastPairs *pairs) {
    for (int s = 0; s < 2; s++) prompt_group_free(&pairs->side[s]);
    *pairs = (ContrastPairs){0};
}

/* ---- what a step may ask for ---- */
const char *contrast_wrong_groups(const StepOptions *step) {
    int64_t n = step->groups.n;
    if (step->contrast == CONTRAST_CONTINUATIONS && n != 1 && n != 2)
        return "expected one group with target and other_target, or two with the targets of the same prompts";
    if (step->contrast == CONTRAST_PREFIX && n != 1) return "expected one group for contrast prefix";
    if (step->contrast == CONTRAST_ADAPTER && n != 1) return "expected one group for contrast adapter";
    if (step->contrast == CONTRAST_MATCHED && n != 2) return "expected two groups for contrast matched";
    return NULL;
}

const char *contrast_contradiction(const StepOptions *step, const char **key) {
    bool continuations = step->contrast == CONTRAST_CONTINUATIONS, prefix = step->contrast == CONTRAST_PREFIX,
         adapter = step->contrast == CONTRAST_ADAPTER;
    *key = "adapter";
    if (adapter && !step->adapter[0] && !step->adapter_path[0])
        return "expected an adapter (or adapter_path), without and with which texts are compared: got none";
    *key = "prefix";
    if (prefix && !step->prefix[0]) return "expected a text to put before the prompts: got none";
    if (!prefix && step->prefix[0]) return "expected contrast prefix, which alone has one";
    *key = "tokens";
    if ((continuations || adapter) && step->contrast_tokens >= CONTRAST_LAST)
        return "expected all or content with contrast continuations or adapter";
    if (!prefix && step->contrast_tokens == CONTRAST_SHARED)
        return "expected contrast prefix with tokens shared: other prompts need not end alike";
    *key = "pair_by";
    if (continuations && step->pair_by == PAIR_TOPIC)
        return "expected auto, id or pair with contrast continuations";
    if (step->groups.n == 1 && step->pair_by != PAIR_AUTO)
        return "expected auto with one group, whose prompts are paired with themselves";
    return NULL;
}

/* ---- one side ---- */
static bool place_entry(const PromptFile *file, const PromptEntry *entry, Error *error) {
    return error_add_place(error, "%s:%lld: prompt \"%.80s\"", file->file, (long long)entry->line, entry->id);
}

/* The second side of one group: the other target takes the target's place. */
static bool use_other_targets(PromptFile *file, Error *error) {
    for (int64_t i = 0; i < file->n; i++) {
        PromptEntry *entry = &file->entries[i];
        if (!entry->other_target) {
            error_set(error, ERROR_BAD_INPUT,
                      "expected other_target, which the contrast of one group sets against target: got none");
            return place_entry(file, entry, error);
        }
        entry->target = entry->other_target;
        entry->target_length = strlen(entry->target);
    }
    return true;
}

static bool put_prefix(PromptFile *file, const char *prefix, Error *error) {
    bool ok = true;
    for (int64_t i = 0; ok && i < file->n; i++) {
        ChatMessage *last = &file->entries[i].messages[file->entries[i].n_messages - 1];
        Text text = {0};
        text_put_string(&text, prefix);
        text_put(&text, last->content, last->length);
        ok = !text.failed || error_out_of_memory(error, "a prompt with its prefix", text.length);
        if (ok) {
            last->content = pool_put(&file->pool, text.bytes, text.length, error);
            last->length = text.length;
            ok = last->content != NULL;
        }
        text_free(&text);
    }
    return ok;
}

static bool read_side(const Job *job, const StepOptions *step, const PromptEncoder *encoder,
                      const Inputs *inputs, int s, PromptGroup *group, Error *error) {
    bool one_group = step->groups.n == 1, continuations = step->contrast == CONTRAST_CONTINUATIONS;
    const PromptOptions *options = job_prompts(job, step->groups.names[one_group ? 0 : s]);
    EncodeNeeds needs = {
        .target = continuations, .target_if_given = step->contrast == CONTRAST_ADAPTER, .n_prompt_least = 1};
    PromptFile file;
    bool ok = step_read_file(options, inputs, &file, error);
    if (ok && continuations && one_group && s == 1) ok = use_other_targets(&file, error);
    if (ok && step->contrast == CONTRAST_PREFIX && s == 0) ok = put_prefix(&file, step->prefix, error);
    ok = ok && prompts_encode(encoder, options, needs, &file, group, error);
    prompts_free(&file);
    return ok || error_add_place(error, "prompts.%s", options->name);
}

/* ---- partners ---- */
typedef struct {
    const char *key;
    int64_t place; /* in the group's prompts */
} Keyed;

typedef struct {
    int64_t place[2];
} Partners;

static const char *key_of(const PromptEntry *entry, int pair_by) {
    return pair_by == PAIR_ID ? entry->id : pair_by == PAIR_NAME ? entry->pair : entry->topic;
}

static int by_key(const void *a, const void *b) {
    const Keyed *x = a, *y = b;
    int order = strcmp(x->key, y->key);
    return order ? order : (x->place > y->place) - (x->place < y->place);
}

static int by_first_place(const void *a, const void *b) {
    const Partners *x = a, *y = b;
    return (x->place[0] > y->place[0]) - (x->place[0] < y->place[0]);
}

static const char *const key_names[] = {"id", "id", "pair", "topic"};

/* Keys of a side in ascending order, each once where they are not topics. */
static bool list_keys(const PromptGroup *group, int pair_by, Keyed *keys, Error *error) {
    for (int64_t i = 0; i < group->n; i++) {
        const PromptEntry *entry = group->prompts[i].entry;
        keys[i] = (Keyed){key_of(entry, pair_by), i};
        if (keys[i].key) continue;
        error_set(error, ERROR_BAD_INPUT, "expected a %s, by which prompts are paired: got none",
                  key_names[pair_by]);
        return place_entry(&group->file, entry, error);
    }
    qsort(keys, (size_t)group->n, sizeof *keys, by_key);
    for (int64_t i = 1; pair_by != PAIR_TOPIC && i < group->n; i++) {
        if (strcmp(keys[i].key, keys[i - 1].key) != 0) continue;
        error_set(error, ERROR_BAD_INPUT, "expected each %s once: got \"%.80s\" again", key_names[pair_by],
                  keys[i].key);
        return place_entry(&group->file, group->prompts[keys[i].place].entry, error);
    }
    return true;
}

/* A prompt without partner: fine where the other file has its key (left out, or more of a topic). */
static bool leave_out(const ContrastPairs *pairs, int pair_by, int s, const Keyed *keyed, int64_t *n_left,
                      Error *error) {
    const PromptGroup *own = &pairs->side[s], *other = &pairs->side[1 - s];
    for (int64_t i = 0; i < other->file.n; i++) {
        const char *key = key_of(&other->file.entries[i], pair_by);
        if (!key || strcmp(key, keyed->key) != 0) continue;
        ++*n_left;
        return true;
    }
    error_set(error, ERROR_BAD_INPUT, "expected its partner in prompts.%s, by %s \"%.80s\": got none",
              other->options->name, key_names[pair_by], keyed->key);
    return place_entry(&own->file, own->prompts[keyed->place].entry, error);
}

static bool match_keys(const ContrastPairs *pairs, int pair_by, Keyed *const keys[2], Partners *to,
                       int64_t *n, int64_t *n_left, Error *error) {
    int64_t at[2] = {0}, n_of[2] = {pairs->side[0].n, pairs->side[1].n};
    while (at[0] < n_of[0] || at[1] < n_of[1]) {
        const Keyed *x = keys[0] + at[0], *y = keys[1] + at[1];
        int order = at[0] == n_of[0] ? 1 : at[1] == n_of[1] ? -1 : strcmp(x->key, y->key);
        if (order == 0) {
            to[(*n)++] = (Partners){{x->place, y->place}};
            at[0]++, at[1]++;
            continue;
        }
        int s = order > 0;
        if (!leave_out(pairs, pair_by, s, s ? y : x, n_left, error)) return false;
        at[s]++;
    }
    qsort(to, (size_t)*n, sizeof *to, by_first_place);
    return true;
}

static bool match_groups(const ContrastPairs *pairs, int pair_by, Partners *to, int64_t *n, int64_t *n_left,
                         Error *error) {
    Keyed *keys[2] = {0};
    bool ok = true;
    for (int s = 0; ok && s < 2; s++) {
        keys[s] = mem_zeroed((size_t)pairs->side[s].n + 1, sizeof **keys);
        ok = keys[s] ||
             error_out_of_memory(error, "keys of prompts", (size_t)pairs->side[s].n * sizeof **keys);
        ok = ok && (list_keys(&pairs->side[s], pair_by, keys[s], error) ||
                    error_add_place(error, "prompts.%s", pairs->side[s].options->name));
    }
    ok = ok && match_keys(pairs, pair_by, keys, to, n, n_left, error);
    for (int s = 0; s < 2; s++) mem_free(keys[s]);
    return ok;
}

/* Both sides of one group hold the same entries, some of them left out. */
static void match_entries(const ContrastPairs *pairs, Partners *to, int64_t *n, int64_t *n_left) {
    int64_t at[2] = {0};
    while (at[0] < pairs->side[0].n && at[1] < pairs->side[1].n) {
        int64_t x = pairs->side[0].prompts[at[0]].entry->index,
                y = pairs->side[1].prompts[at[1]].entry->index;
        if (x == y)
            to[(*n)++] = (Partners){{at[0]++, at[1]++}};
        else
            at[x > y]++;
    }
    *n_left = pairs->side[0].n + pairs->side[1].n - 2 * *n;
}

/* The prompts of a side in the order of pairs; those without a place are freed. */
static bool order_side(ContrastPairs *pairs, int s, const Partners *partners, int64_t n, Error *error) {
    PromptGroup *group = &pairs->side[s];
    EncodedPrompt *ordered = mem_zeroed((size_t)n + 1, sizeof *ordered);
    if (!ordered) return error_out_of_memory(error, "pairs", (size_t)n * sizeof *ordered);
    for (int64_t i = 0; i < n; i++) {
        EncodedPrompt *from = &group->prompts[partners[i].place[s]];
        ordered[i] = *from;
        *from = (EncodedPrompt){0};
    }
    for (int64_t i = 0; i < group->n; i++) {
        mem_free(group->prompts[i].tokens);
        mem_free(group->prompts[i].roles);
    }
    mem_free(group->prompts);
    group->prompts = ordered;
    group->n = n;
    return true;
}

static int pair_by_of(const StepOptions *step, const ContrastPairs *pairs) {
    if (step->pair_by != PAIR_AUTO) return step->pair_by;
    if (step->contrast == CONTRAST_CONTINUATIONS) return PAIR_ID;
    return pairs->side[0].prompts[0].entry->pair ? PAIR_NAME : PAIR_TOPIC;
}

static bool match(const StepOptions *step, ContrastPairs *pairs, Text *notes, Error *error) {
    int64_t most = pairs->side[0].n, n_left = 0;
    Partners *partners = mem_zeroed((size_t)most + 1, sizeof *partners);
    bool ok = partners || error_out_of_memory(error, "pairs", (size_t)most * sizeof *partners);
    if (ok && step->groups.n == 1)
        match_entries(pairs, partners, &pairs->n, &n_left);
    else if (ok)
        ok = match_groups(pairs, pair_by_of(step, pairs), partners, &pairs->n, &n_left, error);
    if (ok && !pairs->n)
        ok = error_set(error, ERROR_BAD_INPUT, "prompts.%s: expected at least one pair: got none",
                       pairs->side[0].options->name);
    for (int s = 0; ok && s < 2; s++) ok = order_side(pairs, s, partners, pairs->n, error);
    if (ok && n_left)
        text_format(notes, "prompts left out because no partner of theirs is used: %lld\n",
                    (long long)n_left);
    mem_free(partners);
    return ok;
}

/* ---- what the contrast rests on ---- */
static bool pair_error(const ContrastPairs *pairs, int64_t i, Error *error, const char *what) {
    const PromptEntry *first = pairs->side[0].prompts[i].entry, *second = pairs->side[1].prompts[i].entry;
    return error_set(error, ERROR_BAD_INPUT, "prompts.%s: pair \"%.60s\", \"%.60s\": %s",
                     pairs->side[0].options->name, first->id, second->id, what);
}

static bool check_tokens(const StepOptions *step, const ContrastPairs *pairs, int64_t i, Error *error) {
    const EncodedPrompt *first = &pairs->side[0].prompts[i], *second = &pairs->side[1].prompts[i];
    int64_t counted[2], n_aligned;
    if (step->contrast == CONTRAST_CONTINUATIONS &&
        (first->n_prompt != second->n_prompt ||
         memcmp(first->tokens, second->tokens, (size_t)first->n_prompt * sizeof *first->tokens) != 0))
        return pair_error(
            pairs, i, error,
            "expected the same prompt tokens before both continuations: got others (other prompts, "
            "or cut to unlike lengths)");
    contrast_count_tokens(step, pairs, i, counted, &n_aligned);
    bool fine = counted[0] && counted[1] && (!contrast_by_token(step) || n_aligned);
    return fine || pair_error(pairs, i, error, "expected a counted token of both (tokens): got none");
}

static bool check_topics(const ContrastPairs *pairs, Error *error) {
    const char *topic = NULL;
    bool several = false;
    for (int64_t i = 0; i < pairs->n; i++) {
        for (int s = 0; s < 2; s++) {
            const PromptEntry *entry = pairs->side[s].prompts[i].entry;
            if (entry->topic) continue;
            error_set(error, ERROR_BAD_INPUT,
                      "expected a topic, for controls of other topics (or controls 0): got none");
            place_entry(&pairs->side[s].file, entry, error);
            return error_add_place(error, "prompts.%s", pairs->side[s].options->name);
        }
        const char *own = pairs->side[0].prompts[i].entry->topic;
        if (strcmp(own, pairs->side[1].prompts[i].entry->topic) != 0)
            return pair_error(pairs, i, error, "expected one topic of both: got two");
        several = several || (topic && strcmp(own, topic) != 0);
        topic = own;
    }
    return several || error_set(error, ERROR_BAD_INPUT,
                                "prompts.%s: expected at least two topics, for controls of other topics (or "
                                "controls 0): got \"%.80s\" alone",
                                pairs->side[0].options->name, topic);
}

static void note_sides(const ContrastPairs *pairs, Text *notes) {
    static const char *const names[] = {"first", "second"};
    for (int s = 0; s < 2; s++) {
        const PromptGroup *group = &pairs->side[s];
        if (group->n_truncated)
            text_format(notes, "%s side, group %s: %lld prompts were truncated (%s)\n", names[s],
                        group->options->name, (long long)group->n_truncated,
                        option_choice("over_long", SCOPE_PROMPTS, group->options->over_long));
        if (group->n_left_out)
            text_format(notes, "%s side, group %s: %lld prompts were left out as empty or too long\n",
                        names[s], group->options->name, (long long)group->n_left_out);
    }
}

bool contrast_pairs_read(const Job *job, const StepOptions *step, const PromptEncoder *encoder,
                         const Inputs *inputs, ContrastPairs *pairs, Text *notes, Error *error) {
    *pairs = (ContrastPairs){0};
    const ModelConfig *config = encoder->config;
    int64_t n_wanted;
    if (step->overlap_k > config->n_experts)
        return error_set(error, ERROR_BAD_INPUT,
                         "steps.%s.overlap_k: expected at most the model's %lld experts: got %lld",
                         step->name, (long long)config->n_experts, (long long)step->overlap_k);
    if (!contrast_count_wanted(step, config, &n_wanted, error))
        return error_add_place(error, "steps.%s", step->name);
    bool ok = true;
    for (int s = 0; ok && s < 2; s++) ok = read_side(job, step, encoder, inputs, s, &pairs->side[s], error);
    if (ok) note_sides(pairs, notes);
    ok = ok && match(step, pairs, notes, error);
    for (int64_t i = 0; ok && i < pairs->n; i++) ok = check_tokens(step, pairs, i, error);
    if (ok && !contrast_by_token(step) && step->controls) ok = check_topics(pairs, error);
    return ok;
}

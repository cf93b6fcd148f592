/* generate for the command line: the prompts of a file (or of the command line, made into such a file),
 * encoded as jobs encode them, decoded in batches. */
#include "replies.h"
#include "../engine/alloc.h"
#include "../engine/generate.h"
#include "progress.h"
#include <string.h>
#include <unistd.h>

typedef struct {
    const RepliesRequest *request;
    Model model;
    PromptEncoder encoder;
    PromptGroup group;
    int64_t max_new_tokens;
    FILE *to;
    Progress progress;
} Run;

/* Texts of the command line as the lines of a prompt file. */
static bool parse_texts(const RepliesRequest *request, PromptFile *file, Error *error) {
    Text lines = {0};
    for (int64_t i = 0; i < request->n_texts; i++) {
        text_put_string(&lines, "{\"prompt\": ");
        text_put_json(&lines, request->texts[i], strlen(request->texts[i]));
        text_put_string(&lines, "}\n");
    }
    PromptOptions options = request->prompts;
    options.path = "--prompt";
    options.format = FORMAT_JSONL;
    bool ok = !lines.failed || error_out_of_memory(error, "prompts", lines.length);
    ok = ok && prompts_parse(&options, lines.bytes, lines.length, file, error);
    text_free(&lines);
    return ok;
}

static bool read_prompts(Run *run, Error *error) {
    const RepliesRequest *request = run->request;
    PromptFile file = {0};
    bool ok = request->prompts.path ? prompts_read(&request->prompts, &file, error)
                                    : parse_texts(request, &file, error);
    EncodeNeeds needs = {.n_reserved = run->max_new_tokens, .n_prompt_least = 1};
    ok = ok && prompts_encode(&run->encoder, &request->prompts, needs, &file, &run->group, error);
    prompts_free(&file);
    return ok;
}

static bool put_tokens(const Run *run, const char *key, const int32_t *tokens, int64_t n, bool skip_special,
                       Text *line, Error *error) {
    Text text = {0};
    bool ok = tokenizer_decode(run->encoder.tokenizer, tokens, n, skip_special, &text, error);
    text_format(line, ", \"%s\": ", key);
    if (ok) text_put_json(line, text.bytes ? text.bytes : "", text.length);
    line->failed = line->failed || text.failed;
    text_free(&text);
    return ok;
}

static bool put_line(const Run *run, const EncodedPrompt *prompt, const int32_t *tokens, int64_t n,
                     bool stopped, Error *error) {
    Text line = {0};
    text_put_string(&line, "{\"id\": ");
    text_put_json(&line, prompt->entry->id, strlen(prompt->entry->id));
    bool ok = !run->request->show_prompt ||
              put_tokens(run, "prompt", prompt->tokens, prompt->n_prompt, false, &line, error);
    ok = ok && put_tokens(run, "reply", tokens, n, true, &line, error);
    text_put_string(&line, ", \"tokens\": [");
    for (int64_t i = 0; i < n; i++) text_format(&line, "%s%d", i ? ", " : "", (int)tokens[i]);
    text_format(&line, "], \"stopped\": %s}\n", stopped ? "true" : "false");
    if (ok && line.failed) ok = error_out_of_memory(error, "a reply", line.length);
    if (ok && (fwrite(line.bytes, 1, line.length, run->to) != line.length || fflush(run->to) != 0))
        ok = error_set(error, ERROR_FAILED, "standard output: expected to write a reply: it failed");
    text_free(&line);
    return ok;
}

/* The prompts [first, first + n) of the group, packed. */
static bool generate_batch(Run *run, int64_t first, int64_t n, Generation *made, Error *error) {
    const RepliesRequest *request = run->request;
    const ModelConfig *config = &run->model.config;
    int64_t n_tokens = 0, n_known = tokenizer_size(run->encoder.tokenizer);
    for (int64_t p = 0; p < n; p++) n_tokens += run->group.prompts[first + p].n_prompt;
    int64_t *offsets = mem_zeroed((size_t)n + 1, sizeof *offsets),
            *keys = mem_zeroed((size_t)n, sizeof *keys);
    int32_t *tokens = mem_zeroed((size_t)n_tokens, sizeof *tokens);
    bool ok = (offsets && keys && tokens) ||
              error_out_of_memory(error, "a batch", (size_t)n_tokens * sizeof *tokens);
    for (int64_t p = 0; ok && p < n; p++) {
        const EncodedPrompt *prompt = &run->group.prompts[first + p];
        memcpy(tokens + offsets[p], prompt->tokens, (size_t)prompt->n_prompt * sizeof *tokens);
        offsets[p + 1] = offsets[p] + prompt->n_prompt;
        keys[p] = prompt->entry->index;
    }
    PromptBatch batch = {n, offsets, tokens};
    GenerateOptions options = {
        .max_new_tokens = run->max_new_tokens,
        .rule = {.temperature = (float)request->temperature,
                 .top_k = (int32_t)request->top_k,
                 .top_p = (float)request->top_p,
                 .n_valid = n_known < config->vocab_size ? n_known : config->vocab_size,
                 .seed = (uint64_t)request->seed},
        .prompt_keys = keys,
        .stop_tokens = config->eos_tokens,
        .n_stop_tokens = config->n_eos_tokens};
    ok = ok && generate(&run->model, &batch, &options, NULL, made, error);
    mem_free(offsets);
    mem_free(keys);
    mem_free(tokens);
    return ok;
}

static bool run_batches(Run *run, Error *error) {
    int64_t n_done = 0, n_tokens = 0;
    bool ok = progress_begin(&run->progress, "generate", run->group.n, 0, "prompts", error);
    while (ok && n_done < run->group.n) {
        int64_t n = run->group.n - n_done;
        if (n > run->request->batch_prompts) n = run->request->batch_prompts;
        Generation made = {0};
        ok = generate_batch(run, n_done, n, &made, error);
        for (int64_t p = 0; ok && p < n; p++)
            ok = put_line(run, &run->group.prompts[n_done + p], made.tokens + made.offsets[p],
                          made.offsets[p + 1] - made.offsets[p], made.stopped[p], error);
        n_tokens += ok ? made.offsets[n] : 0;
        generation_free(&made);
        n_done += n;
        ok = ok && progress_update(&run->progress, n_done, n_tokens, error);
    }
    return ok && progress_end(&run->progress, error);
}

bool replies_run(const RepliesRequest *request, FILE *to, Error *error) {
    Run run = {.request = request, .to = to, .progress = progress_new(NULL)};
    if (isatty(fileno(to))) run.progress.to = NULL; /* the replies are what is looked at */
    if (!model_open(request->model.path, request->device, request->compute, &run.model, error)) return false;
    int64_t half = run.model.config.max_positions / 2;
    run.max_new_tokens = request->max_new_tokens ? request->max_new_tokens : half < 256 ? half : 256;
    bool ok = prompt_encoder_open(&request->model, &run.model.config, &run.encoder, error);
    if (ok) {
        ok = read_prompts(&run, error) && run_batches(&run, error);
        prompt_group_free(&run.group);
        prompt_encoder_close(&run.encoder);
    }
    model_close(&run.model);
    return ok;
}

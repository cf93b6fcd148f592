/* The program: verbs, and what their exit code is. Everything it can do is in the table of verbs. */
#include "analyze.h"
#include "arguments.h"
#include "conform_verb.h"
#include "definitions.h"
#include "devices.h"
#include "diff.h"
#include "inspect.h"
#include "judge_folder.h"
#include "options.h"
#include "replies.h"
#include "report.h"
#include "run.h"
#include "tokenize.h"
#include "verify_adapter.h"
#include "../bench/verb.h"
#include "../engine/alloc.h"
#include "../engine/rank_plan.h"
#include "../engine/text.h"
#include <stdlib.h>
#include <string.h>

static const char version[] = GATETAPE_VERSION;

/* ---- run ---- */
static const Flag run_flags[] = {
    {"--out", "FOLDER", "the run folder (runs/NAME for a job NAME.json)", false},
    {"--set", "a.b=VALUE", "one option of the job, over what the file says", true},
    {"--dry-run", NULL, "print the plan (work, memory, time, files) and touch nothing", false},
    {"--ranks", "N", "--dry-run plans for so many ranks: --set ranks=N", false},
    {"--comm", "NAME", "how ranks talk: auto (several under mpirun or srun, else one), self, mpi or nccl",
     false},
    {"--deadline", "SECONDS", "a rank that gives no sign of life for so long ends all (600)", false},
    {0},
};

static bool run_run(const Arguments *a, Error *error) {
    const char *sets[MAX_ARGUMENTS + 1];
    char ranks[40];
    int64_t n_sets = arguments_values(a, "--set", sets), n_ranks = 0;
    CommOptions options = {.kind = arguments_value(a, "--comm", "auto"), .deadline_s = 600};
    Comm comm;
    if (!arguments_integer(a, "--ranks", 1, RANK_PLAN_MOST_RANKS, &n_ranks, error) ||
        !arguments_number(a, "--deadline", 1, 1e6, &options.deadline_s, error) ||
        !comm_open(&options, &comm, error))
        return false;
    snprintf(ranks, sizeof ranks, "ranks=%lld", (long long)n_ranks);
    if (n_ranks) sets[n_sets++] = ranks;
    RunRequest request = {.job = a->operand,
                          .out = arguments_value(a, "--out", NULL),
                          .sets = sets,
                          .n_sets = n_sets,
                          .dry_run = arguments_have(a, "--dry-run"),
                          .version = version,
                          .to = stdout,
                          .comm = &comm};
    bool ok = run_job(&request, error);
    /* rank 0 says it, and before the others leave: a launcher ends those who come after a failed one */
    if (comm.size > 1 && comm.rank == 0 && error->text[0]) text_print_error(error);
    if (comm.size > 1) error->text[0] = 0;
    comm_close(&comm);
    return ok;
}

/* ---- analyze ---- */
static const Flag analyze_flags[] = {
    {"--out", "FOLDER", "where statistics.json goes", false},
    {"--set", "OPTION=VALUE", "thresholds, top_sets, bootstraps, ...: those of statistics in `options`",
     true},
    {"--seed", "N", "of all random draws (0)", false},
    {0},
};

static bool run_analyze(const Arguments *a, Error *error) {
    const char *sets[MAX_ARGUMENTS];
    AnalyzeRequest request = {.counts = a->operand,
                              .out = arguments_value(a, "--out", NULL),
                              .sets = sets,
                              .n_sets = arguments_values(a, "--set", sets)};
    if (!request.out) return error_set(error, ERROR_BAD_INPUT, "--out: expected a folder: got none");
    if (!arguments_integer(a, "--seed", 0, INT64_C(1) << 53, &request.seed, error) ||
        !analyze_run(&request, error))
        return false;
    Progress progress = progress_new(NULL);
    progress_note(&progress, "statistics: %s/statistics.json", request.out);
    return true;
}

/* ---- report ---- */
static bool run_report(const Arguments *a, Error *error) {
    Progress progress = progress_new(NULL);
    return report_write(a->operand, &progress, error);
}

/* ---- diff ---- */
/* As diff(1): 1 says that they differ. */
static bool run_diff(const Arguments *a, Error *error) {
    bool same = false;
    return diff_runs(a->operand, a->second, stdout, &same, error) && same;
}

/* ---- inspect ---- */
static bool run_inspect(const Arguments *a, Error *error) {
    bool supported;
    return inspect_run(a->operand, stdout, &supported, error);
}

/* ---- generate ---- */
static const Flag generate_flags[] = {
    {"--prompt", "TEXT", "a prompt (a user's text)", true},
    {"--prompts", "FILE", "prompts from JSON lines or CSV, as jobs read them", false},
    {"--first", "N", "entries of the file to pass over", false},
    {"--limit", "N", "most entries of the file to take", false},
    {"--system", "TEXT", "system text before every prompt that has none", false},
    {"--chat", "NAME", "chat template: auto (the family's), none (plain text), or a name", false},
    {"--date", "YYYY-MM-DD", "for templates with a date", false},
    {"--thinking", NULL, "qwen3: no empty think block before the reply", false},
    {"--max-new-tokens", "N", "longest reply (256, or half of what the model can take)", false},
    {"--temperature", "X", "0: greedy (the default)", false},
    {"--top-k", "N", "sample from the N likeliest tokens; 0: all (the default)", false},
    {"--top-p", "X", "sample from the likeliest tokens that hold this mass; 1: all (the default)", false},
    {"--seed", "N", "of sampling (0)", false},
    {"--batch", "N", "most prompts decoded at once (32); no reply depends on it", false},
    {"--show-prompt", NULL, "write the rendered prompt too", false},
    {"--device", "NAME", "auto, cpu or cuda", false},
    {"--compute", "NAME", "auto, f32 or bf16: how activations are stored", false},
    {0},
};

static bool read_generate_numbers(const Arguments *a, RepliesRequest *r, Error *error) {
    const int64_t many = INT64_C(1) << 40;
    return arguments_integer(a, "--first", 0, many, &r->prompts.first, error) &&
           arguments_integer(a, "--limit", 0, many, &r->prompts.limit, error) &&
           arguments_integer(a, "--max-new-tokens", 1, 1 << 24, &r->max_new_tokens, error) &&
           arguments_integer(a, "--top-k", 0, INT32_MAX, &r->top_k, error) &&
           arguments_integer(a, "--seed", 0, INT64_MAX, &r->seed, error) &&
           arguments_integer(a, "--batch", 1, 1 << 20, &r->batch_prompts, error) &&
           arguments_number(a, "--temperature", 0, 1000, &r->temperature, error) &&
           arguments_number(a, "--top-p", 1e-9, 1, &r->top_p, error);
}

static bool run_generate(const Arguments *a, Error *error) {
    const char *texts[MAX_ARGUMENTS];
    TextPool pool = {0};
    RepliesRequest r = {.texts = texts, .batch_prompts = 32, .top_p = 1};
    r.n_texts = arguments_values(a, "--prompt", texts);
    bool ok = options_preset(SCOPE_MODEL, &r.model, &pool, error) &&
              options_preset(SCOPE_PROMPTS, &r.prompts, &pool, error);
    r.model.name = "MODEL";
    r.model.path = a->operand;
    r.model.thinking = arguments_have(a, "--thinking");
    r.show_prompt = arguments_have(a, "--show-prompt");
    r.prompts.name = "PROMPTS";
    r.prompts.path = arguments_value(a, "--prompts", NULL);
    if (ok) {
        r.model.chat_template = arguments_value(a, "--chat", r.model.chat_template);
        r.model.date = arguments_value(a, "--date", r.model.date);
        r.prompts.system = arguments_value(a, "--system", r.prompts.system);
    }
    if (ok && (r.n_texts > 0) == (r.prompts.path != NULL))
        ok = error_set(error, ERROR_BAD_INPUT, "generate: expected either --prompt or --prompts: got %s",
                       r.n_texts ? "both" : "neither");
    ok = ok && read_generate_numbers(a, &r, error) &&
         devices_pick_named(arguments_value(a, "--device", "auto"), &r.device, error) &&
         devices_compute_named(arguments_value(a, "--compute", "auto"), r.device, &r.compute, error) &&
         replies_run(&r, stdout, error);
    pool_free(&pool);
    return ok;
}

/* ---- tokenize ---- */
static const Flag tokenize_flags[] = {
    {"--decode", NULL, "the other way: arrays of ids in, strings out", false},
    {0},
};

static bool run_tokenize(const Arguments *a, Error *error) {
    return tokenize_run(a->operand, arguments_have(a, "--decode"), error);
}

/* ---- conform ---- */
static bool run_conform(const Arguments *a, Error *error) { return conform_verb(a, version, error); }

/* ---- verify-adapter ---- */
static const Flag verify_flags[] = {
    {"--model", "FOLDER", "the checkpoint that the adapter belongs to", false},
    {"--merged", "FOLDER", "write the merged checkpoint there and compare it with the unmerged", false},
    {"--logits", "FILE", "write logits of some ids there, with the adapter and without (safetensors)", false},
    {"--peft-layout", "NAME", "0.18 or 0.19.1: which way round a fused file is, where nothing tells", false},
    {"--b-order", "NAME", "rank_major (the default) or expert_major: columns of B in a fused file", false},
    {"--device", "NAME", "auto, cpu or cuda: for the comparison", false},
    {0},
};

static bool run_verify(const Arguments *a, Error *error) {
    VerifyRequest r = {.adapter = a->operand,
                       .model = arguments_value(a, "--model", NULL),
                       .merged = arguments_value(a, "--merged", NULL),
                       .logits = arguments_value(a, "--logits", NULL)};
    const char *order = arguments_value(a, "--b-order", "rank_major");
    r.reading.layout = arguments_value(a, "--peft-layout", NULL);
    r.reading.expert_major = !strcmp(order, "expert_major");
    if (!r.model) return error_set(error, ERROR_BAD_INPUT, "--model: expected a checkpoint folder: got none");
    if (r.reading.layout && strcmp(r.reading.layout, "0.18") != 0 && strcmp(r.reading.layout, "0.19.1") != 0)
        return error_set(error, ERROR_BAD_INPUT, "--peft-layout: expected 0.18 or 0.19.1: got \"%s\"",
                         r.reading.layout);
    if (!r.reading.expert_major && strcmp(order, "rank_major") != 0)
        return error_set(error, ERROR_BAD_INPUT, "--b-order: expected rank_major or expert_major: got \"%s\"",
                         order);
    return devices_pick_named(arguments_value(a, "--device", "auto"), &r.device, error) &&
           verify_adapter(&r, stdout, error);
}

/* ---- judge ---- */
static const Flag judge_flags[] = {
    {"--rules", "FILE", "phrases and limits (configs/judge/refusals_en.json)", false},
    {"--labels", "FILE", "labels of people: CSV with condition, group, id and label (or human)", false},
    {"--resamples", "N", "of the prompts, for intervals (2000)", false},
    {"--seed", "N", "of the resamples (0)", false},
    {"--perplexity-limit", "X",
     "replies are degraded whose perplexity under the unedited model is more than X times the reference; 0: "
     "no such test (the default)",
     false},
    {"--perplexity-reference", "NAME",
     "largest (the default) or median of the baseline's replies, or absolute: 1", false},
    {0},
};

static bool find_reference(const char *name, int *reference, Error *error) {
    for (*reference = 0; perplexity_reference_names[*reference]; ++*reference)
        if (!strcmp(perplexity_reference_names[*reference], name)) return true;
    return error_set(error, ERROR_BAD_INPUT,
                     "--perplexity-reference: expected largest, median or absolute: got \"%s\"", name);
}

static bool run_judge(const Arguments *a, Error *error) {
    JudgeFolder request = {.folder = a->operand,
                           .rules = arguments_value(a, "--rules", NULL),
                           .labels = arguments_value(a, "--labels", NULL),
                           .resamples = JUDGE_RESAMPLES};
    if (!arguments_integer(a, "--resamples", 1, 1 << 20, &request.resamples, error) ||
        !arguments_integer(a, "--seed", 0, INT64_MAX, &request.seed, error) ||
        !arguments_number(a, "--perplexity-limit", 0, 1e9, &request.perplexity_limit, error) ||
        !find_reference(arguments_value(a, "--perplexity-reference", "largest"),
                        &request.perplexity_reference, error) ||
        !judge_folder(&request, error))
        return false;
    printf("labels: %s/labels.csv, outcomes: %s/outcomes.csv\n", a->operand, a->operand);
    return true;
}

/* ---- bench ---- */
static bool run_bench(const Arguments *a, Error *error) {
    const Device *device;
    DType compute = DTYPE_F32;
    return devices_pick_named(arguments_value(a, "--device", "auto"), &device, error) &&
           devices_compute_named(arguments_value(a, "--compute", "auto"), device, &compute, error) &&
           bench_verb(a, device, compute, error);
}

/* ---- options, definitions ---- */
static bool print_document(void document(Text *), Error *error) {
    Text text = {0};
    document(&text);
    bool ok = !text.failed || error_out_of_memory(error, "a document", text.length);
    if (ok) fwrite(text.bytes, 1, text.length, stdout);
    text_free(&text);
    return ok;
}

static bool run_options(const Arguments *a, Error *error) {
    (void)a;
    return print_document(options_document, error);
}

static bool run_definitions(const Arguments *a, Error *error) {
    (void)a;
    return print_document(definitions_document, error);
}

static const Verb verbs[] = {
    {"run", "JOB", "run a job, or go on with it where it was interrupted",
     "JOB is a JSON file; `gatetape options` says what can stand in it. The run folder gets the tables, the "
     "resolved\n"
     "job, a manifest and report.html. A folder of the same job is resumed, one of another job is refused.\n",
     run_flags, run_run},
    {"analyze", "COUNTS.csv", "statistics of a table of counts, from whatever tool it came",
     "The header is layer,expert,group,selected,tokens and optionally prompt: in that group (and prompt) "
     "`selected` of\n"
     "`tokens` tokens chose the expert. Writes FOLDER/statistics.json, as jobs do; without a column prompt, "
     "what needs\n"
     "prompts (intervals, tests, reliability) is null. `gatetape definitions` says what each number means.\n",
     analyze_flags, run_analyze},
    {"report", "FOLDER", "draw the figures and write report.html of a run folder",
     "Needs gnuplot for the figures; without it the page is written with the tables alone.\n", NULL,
     run_report},
    {"diff", "RUN RUN", "compare two run folders: options, inputs, tables, responses",
     "Rows are compared by condition, group, index, layer and expert, numbers with their largest difference. "
     "Program,\n"
     "device and options that cannot change a number are noted only. Exit code 0 when they are the same, 1 "
     "when they\n"
     "differ, 2 when one is no run folder.\n",
     NULL, run_diff},
    {"inspect", "MODEL", "say what a checkpoint is, what it needs, and what of it is unsupported", NULL, NULL,
     run_inspect},
    {"generate", "MODEL", "write a model's replies to prompts, one JSON object a line",
     "Each line holds id, reply, tokens (the end token included) and whether an end token stopped it.\n",
     generate_flags, run_generate},
    {"tokenize", "FOLDER", "turn strings into token ids",
     "Standard input: one JSON string a line. Standard output: one JSON array of ids a line. Special tokens "
     "in the text\n"
     "are recognised, none are added. FOLDER holds tokenizer.json.\n",
     tokenize_flags, run_tokenize},
    {"conform", "CASE", "compare the engine with a golden case, tensor by tensor",
     "CASE holds a checkpoint and expected.safetensors, what the reference implementation computes on it. "
     "Prints the\n"
     "largest error of each tensor, as a share of its largest magnitude, beside its bound, and whether "
     "packed, one by\n"
     "one, split and recomputed passes give the same bits. Exit code 1 when a bound is exceeded. Under "
     "mpirun or srun\n"
     "the ranks share the prompts.\n",
     conform_flags, run_conform},
    {"verify-adapter", "ADAPTER", "say what a LoRA adapter changes in a model",
     "ADAPTER is a folder as PEFT writes it, per expert or fused. Prints which experts' matrices it updates "
     "and by how\n"
     "much. Exit code 1 when it changes nothing, 2 when it is no adapter of the model's experts alone.\n",
     verify_flags, run_verify},
    {"judge", "FOLDER", "label the replies of an intervention step, and compare its conditions",
     "FOLDER is RUN/STEP. Writes labels.csv, outcomes.csv (transitions, exact McNemar, intervals, controls) "
     "and judge.json\n"
     "there, and agreement.csv where people have labelled. Labels of people go before the rules'. A guard "
     "model is asked\n"
     "by a job's step of kind judge.\n",
     judge_flags, run_judge},
    {"bench", "WHAT", "measure the speed of ops or of a whole model, on random data",
     "WHAT is ops, model, checkpoint (writes a random one in the dtype of --compute) or counters (what the "
     "GPU's\n"
     "kernels move and multiply, on the emulated device of `make emulated`; exit code 1 when a bound is "
     "broken). bench/\n"
     "in the repository puts peers beside the rows.\n",
     bench_flags, run_bench},
    {"options", NULL, "print every option of a job, with values, defaults and meaning", NULL, NULL,
     run_options},
    {"definitions", NULL, "print what every number of statistics.json means", NULL, NULL, run_definitions},
    {0},
};

/* True when the first word is answered without a verb. */
static bool answer_first_word(const char *word) {
    if (!strcmp(word, "--help") || !strcmp(word, "-h") || !strcmp(word, "help"))
        verbs_print_help(verbs, stdout);
    else if (!strcmp(word, "--version"))
        printf("gatetape %s\n", version);
    else
        return false;
    return true;
}

static bool answer(int n, char **texts, Error *error) {
    if (n < 2) {
        verbs_print_help(verbs, stderr);
        return error_set(error, ERROR_BAD_INPUT, "expected a verb: got nothing");
    }
    if (answer_first_word(texts[1])) return true;
    Arguments arguments;
    const Verb *verb = verb_find(verbs, texts[1], error);
    if (!verb || !arguments_read(verb, n - 2, texts + 2, &arguments, error)) return false;
    if (arguments.help) {
        verb_print_help(verb, stdout);
        return true;
    }
    return verb->run(&arguments, error);
}

int main(int n, char **texts) {
    Error error = {0};
    bool ok = answer(n, texts, &error);
    if (ok && (fflush(stdout) != 0 || ferror(stdout)))
        ok = error_set(&error, ERROR_FAILED, "standard output: expected to write all of it: it failed");
    if (error.text[0]) text_print_error(&error);
    return ok ? 0 : error.code != ERROR_NONE ? (int)error.code : 1;
}

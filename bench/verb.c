/* The verb's arguments, and which bench they ask for. */
#include "verb.h"
#include "bench.h"
#include <stdlib.h>
#include <string.h>

const Flag bench_flags[] = {
    {"--device", "NAME", "auto, cpu or cuda", false},
    {"--compute", "NAME", "auto, f32 or bf16: how activations are stored", false},
    {"--list", NULL, "ops: print the names of the cases, run none", false},
    {"--cases", "-", "ops: names from standard input, each answered by its row", false},
    {"--memory", "GIB", "ops: memory of the device for operands and results (24)", false},
    {"--model", "FOLDER", "model: the checkpoint to run; checkpoint: where to write one", false},
    {"--shape", "NAME", "checkpoint: bench (default), mixtral, qwen3", false},
    {"--layers", "N", "checkpoint: how many (4)", false},
    {"--prompts", "N", "model: prompts of a pass (16)", false},
    {"--tokens", "N", "model: tokens of a prompt (128)", false},
    {"--streamed", "N", "model: layers whose experts are streamed from the host (0)", false},
    {"--batch", "N", "model: prompts decoded at once (1, 16 and 100)", true},
    {"--steps", "N", "model: decoding steps that are timed (24)", false},
    {"--limits", "FILE", "counters: a device by its limits (configs/devices/h100.json)", false},
    {"--out", "FILE", "counters: write the rows there as CSV", false},
    {0},
};

enum { MOST_BATCHES = 8 };

/* The values of --batch, ended by 0; 1, 16 and 100 where none is given. */
static bool read_batches(const Arguments *a, int64_t batches[MOST_BATCHES + 1], Error *error) {
    const char *given[MAX_ARGUMENTS];
    const int64_t n = arguments_values(a, "--batch", given);
    if (n > MOST_BATCHES)
        return error_set(error, ERROR_BAD_INPUT, "--batch: expected it at most %d times: got %lld",
                         MOST_BATCHES, (long long)n);
    for (int64_t i = 0; i < n; i++) {
        char *end;
        batches[i] = strtoll(given[i], &end, 10);
        if (batches[i] < 1 || batches[i] > 1 << 20 || *end)
            return error_set(error, ERROR_BAD_INPUT, "--batch: expected 1 to %d: got \"%s\"", 1 << 20,
                             given[i]);
    }
    if (n == 0) batches[0] = 1, batches[1] = 16, batches[2] = 100;
    return true;
}

static bool run_bench_model(const Arguments *a, BenchModel *r, Error *error) {
    int64_t batches[MOST_BATCHES + 1] = {0};
    r->batches = batches;
    return read_batches(a, batches, error) &&
           arguments_integer(a, "--prompts", 1, 1 << 20, &r->prompts, error) &&
           arguments_integer(a, "--tokens", 2, 1 << 20, &r->tokens, error) &&
           arguments_integer(a, "--steps", 1, 1 << 20, &r->decode_tokens, error) &&
           arguments_integer(a, "--streamed", 0, 1 << 20, &r->streamed, error) && bench_model(r, error);
}

static bool run_bench_ops(const Arguments *a, const Device *device, DType compute, Error *error) {
    const char *cases = arguments_value(a, "--cases", NULL);
    int64_t memory = 24;
    if (cases && strcmp(cases, "-"))
        return error_set(error, ERROR_BAD_INPUT, "--cases: expected - (standard input): got \"%s\"", cases);
    return arguments_integer(a, "--memory", 1, 1 << 20, &memory, error) &&
           bench_ops(&(BenchOps){device, compute, arguments_have(a, "--list"), cases ? stdin : NULL, stdout,
                                 memory},
                     error);
}

static bool run_bench_counters(const Arguments *a, Error *error) {
    bool kept = false;
    return bench_counters(&(BenchCounters){arguments_value(a, "--limits", NULL),
                                           arguments_value(a, "--out", NULL), stdout},
                          &kept, error) &&
           kept;
}

bool bench_verb(const Arguments *a, const Device *device, DType compute, Error *error) {
    if (!strcmp(a->operand, "counters")) return run_bench_counters(a, error);
    const char *folder = arguments_value(a, "--model", NULL);
    if (!strcmp(a->operand, "ops")) return run_bench_ops(a, device, compute, error);
    if (!folder) return error_set(error, ERROR_BAD_INPUT, "--model: expected a folder: got none");
    if (!strcmp(a->operand, "model"))
        return run_bench_model(a, &(BenchModel){folder, device, compute, 0, 16, 128, 24, NULL, stdout},
                               error);
    const char *name = arguments_value(a, "--shape", "bench");
    const BenchShape *shape = bench_shape(name);
    int64_t layers = 4;
    if (!shape || strcmp(a->operand, "checkpoint"))
        return error_set(error, ERROR_BAD_INPUT,
                         "bench: expected ops, model, counters or checkpoint of a known shape: got %s, %s",
                         a->operand, name);
    return arguments_integer(a, "--layers", 1, 1024, &layers, error) &&
           bench_checkpoint(shape, layers, compute, folder, error);
}

/* What the command line says becomes ConformOptions; ranks are started, compared and ended here. */
#include "conform_verb.h"
#include "../engine/alloc.h"
#include "../engine/io.h"
#include "../engine/text.h"
#include "conform.h"
#include "devices.h"
#include "ranks.h"
#include <string.h>

const Flag conform_flags[] = {
    {"--device", "NAME", "auto, cpu or cuda", false},
    {"--compute", "NAME", "f32 (the default) or bf16: how activations are stored", false},
    {"--model", "FOLDER", "the checkpoint, where it does not lie in CASE", false},
    {"--out", "FOLDER", "write actual*.safetensors there, and what was trained: adapter-*, merged", false},
    {"--once", NULL, "each pass once, packed: no second one for the same bits, no training", false},
    {"--residency", "NAME",
     "experts: auto (the default: each rank has all), or spread over ranks: resident, streamed or peers",
     false},
    {"--comm", "NAME", "how ranks talk: auto (several under mpirun or srun, else one), self, mpi or nccl",
     false},
    {"--deadline", "SECONDS", "a rank that gives no sign of life for so long ends all (600)", false},
    {0},
};

static bool find_residency(const char *name, Residency *residency, Error *error) {
    for (int r = 0; residency_names[r]; r++)
        if (!strcmp(residency_names[r], name)) {
            *residency = (Residency)r;
            return true;
        }
    return error_set(error, ERROR_BAD_INPUT,
                     "--residency: expected auto, resident, streamed or peers: got \"%.40s\"", name);
}

static bool read_options(const Arguments *a, ConformOptions *options, Error *error) {
    const char *device = arguments_value(a, "--device", "auto");
    if (strcmp(device, "cpu") != 0 && !ranks_set_gpu(options->comm, error)) return false;
    return find_residency(arguments_value(a, "--residency", "auto"), &options->residency, error) &&
           devices_pick_named(device, &options->device, error) &&
           devices_compute_named(arguments_value(a, "--compute", "f32"), options->device, &options->compute,
                                 error);
}

/* Whether all ranks are to compute the same: the files of the case and of its model, and how. */
static bool check_alike(const ConformOptions *options, const char *version, Error *error) {
    static const char *const more[] = {"lora.json", "interventions.json"};
    RunFacts facts = {.version = version,
                      .device = options->device == cuda_device(NULL) ? "cuda" : "cpu",
                      .isa = options->device->name,
                      .compute = dtype_name(options->compute)};
    Inputs inputs = {0};
    Text text = {0};
    Hash hash;
    if (options->comm->size == 1) return true;
    bool ok = inputs_add_model(&inputs, "case", options->folder, error) &&
              (!options->model || inputs_add_model(&inputs, "model", options->model, error));
    text_format(&text, "%s %d\n", residency_names[options->residency], options->once);
    for (int64_t i = 0; i < inputs.n; i++)
        text_format(&text, "%s %s\n", inputs.files[i].name, inputs.files[i].hash);
    for (size_t i = 0; ok && i < sizeof more / sizeof *more; i++) {
        char *path = io_join(options->folder, more[i]), of_file[HASH_TEXT] = "none";
        ok = path ? !io_exists(path) || hash_file(path, of_file, error)
                  : error_out_of_memory(error, "a path", strlen(more[i]));
        text_format(&text, "%s %s\n", more[i], of_file);
        mem_free(path);
    }
    if (text.failed) ok = error_out_of_memory(error, "a case's identity", text.length);
    hash_begin(&hash);
    if (ok) hash_add(&hash, text.bytes, text.length);
    hash_end(&hash, facts.identity);
    text_free(&text);
    inputs_free(&inputs);
    return comm_agree(options->comm, ok, error) && ranks_check_alike(options->comm, &facts, error);
}

/* Rank 0 prints; the others say the same to nobody. */
static bool run_and_print(const ConformOptions *options, bool *agrees, Error *error) {
    FILE *to = options->comm->rank ? fopen("/dev/null", "w") : stdout;
    bool ok = to || error_set(error, ERROR_FAILED, "/dev/null: expected to write to it: it failed");
    comm_phase("conform");
    ok = comm_agree(options->comm, ok, error) && conform_run(options, to, agrees, error);
    if (to && to != stdout) fclose(to);
    return ok;
}

bool conform_verb(const Arguments *a, const char *version, Error *error) {
    CommOptions comm_options = {.kind = arguments_value(a, "--comm", "auto"), .deadline_s = 600};
    Comm comm;
    bool agrees = false;
    if (!arguments_number(a, "--deadline", 1, 1e6, &comm_options.deadline_s, error) ||
        !comm_open(&comm_options, &comm, error))
        return false;
    ConformOptions options = {.folder = a->operand,
                              .model = arguments_value(a, "--model", NULL),
                              .out = comm.rank == 0 ? arguments_value(a, "--out", NULL) : NULL,
                              .once = arguments_have(a, "--once"),
                              .comm = &comm};
    bool ok = comm_agree(&comm, read_options(a, &options, error), error) &&
              comm_use_device(&comm, options.device, false, error) && check_alike(&options, version, error) &&
              run_and_print(&options, &agrees, error);
    /* rank 0 says it, and before the others leave: a launcher ends those who come after a failed one */
    if (comm.size > 1 && comm.rank == 0 && error->text[0]) text_print_error(error);
    if (comm.size > 1 && comm.rank == 0) fflush(stdout);
    if (comm.size > 1) error->text[0] = 0;
    comm_close(&comm);
    return ok && agrees;
}

/* adapter_config_parse, and of what it accepts the questions that reading an adapter asks. */
#include "engine/adapter_parts.h"
#include "kernels/check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const modules[] = {"model.layers.3.mlp.experts.5.gate_proj",
                                          "model.layers.0.mlp.experts.gate_up_proj"};
    Error error = {0};
    AdapterConfig config;
    if (!adapter_config_parse((const char *)data, size, "f", &config, &error)) {
        check(error.code == ERROR_BAD_INPUT && error.text[0], "%d %s", error.code, error.text);
        adapter_config_close(&config);
        return 0;
    }
    check(adapter_config_version(&config) >= -1, "version");
    for (size_t i = 0; i < sizeof modules / sizeof *modules; i++) {
        int64_t rank = 0;
        double scale = 0;
        adapter_config_targets(&config, modules[i]);
        error = (Error){0};
        if (adapter_config_scale(&config, modules[i], &rank, &scale, &error))
            check(rank >= 1 && rank <= 1 << 20, "rank %lld", (long long)rank);
        else
            check(error.code == ERROR_BAD_INPUT && error.text[0], "%d %s", error.code, error.text);
    }
    adapter_config_close(&config);
    return 0;
}

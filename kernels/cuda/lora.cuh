/* What lora.cu and lora_sums.cu share: low-rank updates of chosen experts, and where their rows stand. */
#ifndef GATETAPE_CUDA_LORA_CUH
#define GATETAPE_CUDA_LORA_CUH
#include "device.cuh"
#include "row_threads.cuh"
#include "row_tiles.cuh"

constexpr int LORA_ROWS = 32, LORA_THREADS = 256, LORA_BLOCKS = 132 * 16;

/* What all kernels read. */
struct Cells {
    const int32_t *experts, *offsets, *pairs, *rows;
    const float *a, *b, *scales;
    int64_t in, out;
    int n_cells, rank, choices;
    bool down;
};

static inline Cells cells_of(Lora lora, MoePlan plan) {
    const Cells c = {
        ints(lora.experts), ints(plan.offsets),   ints(plan.pairs),     ints(plan.rows),
        reals(lora.a),      reals(lora.b),        reals(lora.scales),   lora.a.shape[2],
        lora.b.shape[1],    (int)lora.a.shape[0], (int)lora.a.shape[1], (int)tensor_columns(plan.rows),
        lora.down};
    check(lora.b.shape[2] == c.rank && c.rank <= LORA_MOST_RANK && c.choices <= 32,
          "a of rank %d, b of rank %lld, %d choices", c.rank, (long long)lora.b.shape[2], c.choices);
    return c;
}

/* lora_sums.cu: the gradients of A and B, from scratch [M,2R] = g, u of the adapted rows. */
void lora_sums(const Call &call, LoraSums sums, Tensor scratch, Tensor dy, Tensor x, Lora lora,
               Tensor weights, const Cells &c);

#endif

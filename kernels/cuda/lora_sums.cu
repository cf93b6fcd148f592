/* The gradients of A and B: da += g x and db += dy u of the rows of a cell, example by example, each
 * example's sum into a counter (LoraSums).
 *
 * A block has 64 columns of x (or of dy), 16 or 64 ranks, and walks all rows of its cell, 32 at a time: every
 * element of x and dy is read once, g and u from L2 once for 64 columns. The next rows come to registers
 * while those in shared memory are multiplied, a thread 4 x 4; with 16 ranks four groups of threads take the
 * rows in turn, and their sums are added in order. An example's rows are cut where the example begins and in
 * blocks of 256, so its bits do not depend on what else is in the call. Bound by the f32 rate. */
#include "lora.cuh"

constexpr int COLUMNS = 64, LINE = COLUMNS + 4, SUM_TILES = 256 / LORA_ROWS;

struct Sums {
    float *slots;
    const int32_t *offsets;
    const float *ranks, *weights; /* ranks: g or u, rows 2R apart */
    int64_t first, size, width;   /* size: of a slot; width: columns of A or rows of B */
    int64_t wide_columns;
    int n_examples;
    bool by_token; /* the wide operand has a row for every token */
};

template <int RANKS> struct Split {
    static constexpr int RANK_FOURS = RANKS / 4, GROUP = COLUMNS / 4 * RANK_FOURS,
                         GROUPS = LORA_THREADS / GROUP;
    static constexpr int R_LINE = RANKS + 4,
                         R_PACKS = (LORA_ROWS * RANK_FOURS + LORA_THREADS - 1) / LORA_THREADS;
    static constexpr int MINE =
        4 / GROUPS; /* of a thread's four rows of sums, those that it adds to the counter */
};

/* ---- up to 32 rows of one example, on their way through registers to shared memory ---- */
template <class T, bool OF_B, int RANKS, bool WIDE_PACKED, bool RANKS_PACKED> struct Rows32 {
    typedef Split<RANKS> S;
    static constexpr int N = WIDEST<T>, PER_ROW = COLUMNS / N, X_PACKS = LORA_ROWS * PER_ROW / LORA_THREADS;
    int n; /* rows; fewer than 32: the example ends with them */
    Pack<T, N> x[X_PACKS];
    Pack<float, 4> ranks[S::R_PACKS];
    float factor[X_PACKS > S::R_PACKS ? X_PACKS : S::R_PACKS];

    /* pair: of row m + lane, -1 beyond the cell's; last: the example's tokens end before it */
    __device__ __forceinline__ void fetch(const Sums &s, const T *wide, const Cells &c, int m, int pair,
                                          int last, int64_t column, int r0, float scale) {
        n = __popc(__ballot_sync(~0u, pair >= 0 && pair / c.choices < last));
#pragma unroll
        for (int i = 0; i < X_PACKS; i++) {
            const int at = (int)threadIdx.x + i * LORA_THREADS, row = at / PER_ROW;
            const int64_t j = column + at % PER_ROW * N;
            const int own = __shfl_sync(~0u, pair, row);
            x[i] = {};
            if (row < n && j < s.width)
                x[i] = read_part<WIDE_PACKED, T, N>(
                    &wide[(s.by_token ? own / c.choices : m + row) * s.wide_columns + j], s.width - j);
            if (OF_B) factor[i] = row < n ? factor_of(s, c, own, scale) : 0;
        }
#pragma unroll
        for (int i = 0; i < S::R_PACKS; i++) {
            const int at = (int)threadIdx.x + i * LORA_THREADS, row = at / S::RANK_FOURS % LORA_ROWS;
            const int r = r0 + at % S::RANK_FOURS * 4;
            const int own = __shfl_sync(~0u, pair, row);
            ranks[i] = {};
            if (at < LORA_ROWS * S::RANK_FOURS && row < n && r < c.rank)
                ranks[i] = read_part<RANKS_PACKED, float, 4>(&s.ranks[(int64_t)(m + row) * 2 * c.rank + r],
                                                             c.rank - r);
            if (!OF_B) factor[i] = row < n ? factor_of(s, c, own, scale) : 0;
        }
    }

    static __device__ __forceinline__ float factor_of(const Sums &s, const Cells &c, int pair, float scale) {
        return c.down ? scale * load(&s.weights[pair]) : scale;
    }

    __device__ __forceinline__ void put(float *x_rows, float *r_rows) {
#pragma unroll
        for (int i = 0; i < X_PACKS; i++) {
            const int at = (int)threadIdx.x + i * LORA_THREADS;
            float value[N];
            unpack<T, N>(value, x[i]);
#pragma unroll
            for (int j = 0; j < N; j += 4) {
                float four[4];
#pragma unroll
                for (int k = 0; k < 4; k++) four[k] = OF_B ? factor[i] * value[j + k] : value[j + k];
                store_pack<float, 4>(&x_rows[at / PER_ROW * LINE + at % PER_ROW * N + j], four);
            }
        }
#pragma unroll
        for (int i = 0; i < S::R_PACKS; i++) {
            const int at = (int)threadIdx.x + i * LORA_THREADS;
            float four[4];
#pragma unroll
            for (int k = 0; k < 4; k++)
                four[k] = OF_B ? ranks[i].element[k] : factor[i] * ranks[i].element[k];
            if (at < LORA_ROWS * S::RANK_FOURS)
                store_pack<float, 4>(&r_rows[at / S::RANK_FOURS * S::R_LINE + at % S::RANK_FOURS * 4], four);
        }
    }
};

/* part[i][j] += the rows of this thread's group; i: of A a rank and j a column, of B the other way round */
template <bool OF_B, int RANKS>
DEVICE void multiply_rows(float (&part)[4][4], const float *x_rows, const float *r_rows, int group, int n) {
    typedef Split<RANKS> S;
#pragma unroll 8
    for (int row = 0; row < LORA_ROWS / S::GROUPS; row++) {
        if (row * S::GROUPS + group >= n) break;
        float x[4], r[4];
        load_pack<float, 4>(x, &x_rows[(row * S::GROUPS + group) * LINE]);
        load_pack<float, 4>(r, &r_rows[(row * S::GROUPS + group) * S::R_LINE]);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                part[i][j] = OF_B ? fmaf(x[i], r[j], part[i][j]) : fmaf(r[i], x[j], part[i][j]);
    }
}

/* An example's four neighbouring elements, of which `left` are there, into the counter. */
template <bool PACKED>
DEVICE void push_example(float (&sum)[4], const Sums &s, int64_t at, int64_t left, int64_t example) {
    float *to = &s.slots[at];
    for (; example & 1; example >>= 1, to += s.size) {
        float slot[4];
        load_part<PACKED, float, 4>(slot, to, left);
#pragma unroll
        for (int k = 0; k < 4; k++) sum[k] = slot[k] + sum[k];
    }
    store_part<PACKED, float, 4>(to, sum, left);
}

/* wide: x (of A), or dy from its first column on (of B). PACKED: of the wide operand; of the ranks */
template <class T, bool OF_B, int RANKS, bool WIDE_PACKED, bool RANKS_PACKED>
static __global__ void __launch_bounds__(LORA_THREADS, sizeof(T) == 4 ? 1 : 2)
    sum_rows(Sums s, const T *wide, Cells c) {
    typedef Split<RANKS> S;
    SHARED(float, x_rows, LORA_ROWS *LINE);
    SHARED(float, r_rows, LORA_ROWS *S::R_LINE);
    SHARED(float, parts, S::GROUPS > 1 ? 16 * LORA_THREADS : 1);
    const int lane = threadIdx.x % 32, thread = threadIdx.x % S::GROUP, group = threadIdx.x / S::GROUP;
    const int four = thread % S::RANK_FOURS * 4, across = thread / S::RANK_FOURS * 4;
    const int64_t column = (int64_t)blockIdx.x * COLUMNS;
    const int cell = blockIdx.z, r0 = blockIdx.y * RANKS, expert = load(&c.experts[cell]);
    const int end = load(&c.offsets[expert + 1]);
    const float scale = load(&c.scales[cell]);
    int m = load(&c.offsets[expert]), example = 0, n_tiles = 0;
    float total[4][4] = {}, part[4][4] = {};
    Rows32<T, OF_B, RANKS, WIDE_PACKED, RANKS_PACKED> rows;
    int pair = m + lane < end ? load(&c.pairs[m + lane]) : -1;
    rows.fetch(s, wide, c, m, pair, load(&s.offsets[1]), column, r0, scale);
    m += rows.n;
    pair = m + lane < end ? load(&c.pairs[m + lane]) : -1;
    while (example < s.n_examples) {
        const int n = rows.n;
        const bool ends = n < LORA_ROWS;
        rows.put(x_rows, r_rows);
        __syncthreads();
        if (example + ends < s.n_examples) {
            rows.fetch(s, wide, c, m, pair, load(&s.offsets[example + ends + 1]), column, r0, scale);
            m += rows.n;
            pair = m + lane < end ? load(&c.pairs[m + lane]) : -1;
        }
        if (r0 + four < c.rank && column + across < s.width)
            multiply_rows<OF_B, RANKS>(part, &x_rows[across], &r_rows[four], group, n);
        if (++n_tiles % SUM_TILES == 0 || ends)
#pragma unroll
            for (int i = 0; i < 16; i++) {
                float *from = &part[i / 4][i % 4];
                total[i / 4][i % 4] += *from, *from = 0;
                if (ends && S::GROUPS > 1)
                    store(&parts[i * LORA_THREADS + (int)threadIdx.x], total[i / 4][i % 4]);
            }
        __syncthreads();
        if (!ends) continue;
#pragma unroll
        for (int mine = 0; mine < S::MINE; mine++) {
            const int i = S::GROUPS > 1 ? group : mine;
            float sum[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                sum[j] = S::GROUPS > 1 ? 0 : total[mine][j];
#pragma unroll
                for (int k = 0; S::GROUPS > 1 && k < S::GROUPS; k++)
                    sum[j] += load(&parts[(i * 4 + j) * LORA_THREADS + k * S::GROUP + thread]);
            }
            const int64_t r = r0 + four + (OF_B ? 0 : i), j = column + across + (OF_B ? i : 0);
            if (r < c.rank && j < s.width)
                push_example<OF_B ? RANKS_PACKED : WIDE_PACKED>(
                    sum, s, OF_B ? (cell * s.width + j) * c.rank + r : (cell * c.rank + r) * s.width + j,
                    OF_B ? c.rank - r : s.width - j, s.first + example);
        }
#pragma unroll
        for (int i = 0; i < 16; i++) total[i / 4][i % 4] = 0;
        example++, n_tiles = 0;
    }
}

template <class T, bool OF_B>
static void launch_sums(const Call &call, Tensor slots, const LoraSums &sums, Sums s, const T *wide,
                        const Cells &c) {
    if (!slots.data) return;
    s.slots = reals(slots);
    s.size = c.n_cells * s.width * c.rank;
    s.by_token = OF_B == c.down; /* x of gate and up, dy of down */
    check((sums.first + s.n_examples) >> slots.shape[0] == 0, "%lld examples, %lld slots",
          (long long)(sums.first + s.n_examples), (long long)slots.shape[0]);
    const bool aligned = (uintptr_t)s.slots % 16 == 0;
    const bool wide_packed =
        aligned && (uintptr_t)wide % 16 == 0 && s.width % 8 == 0 && s.wide_columns % 8 == 0;
    const bool ranks_packed = aligned && (uintptr_t)s.ranks % 16 == 0 && c.rank % 4 == 0;
    const unsigned columns = s.n_examples > 0 ? blocks_for(s.width, COLUMNS) : 0;
    const auto with = [&](auto wide_is, auto ranks_are) {
        constexpr bool W = decltype(wide_is)::value, R = decltype(ranks_are)::value;
        if (c.rank <= 16)
            LAUNCH(call, dim3(columns, 1, (unsigned)c.n_cells), LORA_THREADS, 0,
                   (sum_rows<T, OF_B, 16, W, R>), s, wide, c);
        else
            LAUNCH(call, dim3(columns, blocks_for(c.rank, 64), (unsigned)c.n_cells), LORA_THREADS, 0,
                   (sum_rows<T, OF_B, 64, W, R>), s, wide, c);
    };
    struct Yes {
        enum { value = true };
    };
    struct No {
        enum { value = false };
    };
    if (wide_packed && ranks_packed)
        with(Yes{}, Yes{});
    else
        with(No{}, No{});
}

void lora_sums(const Call &call, LoraSums sums, Tensor scratch, Tensor dy, Tensor x, Lora lora,
               Tensor weights, const Cells &c) {
    if (!sums.a.data && !sums.b.data) return;
    const int n_examples = (int)tensor_count(sums.offsets) - 1;
    const Sums of_a = {nullptr, ints(sums.offsets), reals(scratch), reals(weights), sums.first, 0, c.in,
                       c.in,    n_examples,         false};
    Sums of_b = of_a;
    of_b.ranks += c.rank, of_b.width = c.out, of_b.wide_columns = tensor_columns(dy);
    with_act(x.dtype, [&](auto act) {
        using T = decltype(act);
        launch_sums<T, false>(call, sums.a, sums, of_a, elements<T>(x), c);
        launch_sums<T, true>(call, sums.b, sums, of_b, elements<T>(dy) + lora.column, c);
    });
}

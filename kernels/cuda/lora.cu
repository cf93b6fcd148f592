/* Low-rank updates of chosen experts: lora, lora_bwd.
 *
 *   project   u = a x, or g = b^T dy: 32 rows of a cell a block, 16 or 64 ranks; x is read once for them. A
 *             warp has 16 ranks and a share of k, a thread 4 x 4 sums; the shares are added in order.
 *   apply     += scale b u, or scale a^T g: 32 rows and 256 columns a block, a thread 4 x 8 of them, so that
 *             y is read and written once and what is shared of b comes from L2.
 *   dx        of tokens is apply where a row's block also adds the other adapted choices of its token, and
 *             the first of them does: no two blocks write a row.
 *
 * A row's result depends on the row alone. Blocks walk over what the plan on the device gives them, so that
 * the experts without a cell cost nothing. Bound by the memory of x, dy and y up to rank 16, then by the f32
 * rate. u of the forward pass stands in the queue's workspace, as many rows at a time as fit. */
#include "lora.cuh"

/* The tile number `tile` of the cells' rows within [first, end); a group is a cell. */
DEVICE bool find_tile(const Cells &c, int64_t tile, int64_t first, int64_t end, RowTile &at) {
    return find_row_tile<LORA_ROWS>(c.n_cells, (int)tile, at, [&](int cell, int &begin, int &stop) {
        const int expert = load(&c.experts[cell]);
        begin = (int)max((int64_t)load(&c.offsets[expert]), first);
        stop = (int)min((int64_t)load(&c.offsets[expert + 1]), end);
    });
}

/* The cell whose rows `row` is one of; -1: its expert has none. */
DEVICE int cell_of(const Cells &c, int row) {
    int low = 0, high = c.n_cells;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (load(&c.offsets[load(&c.experts[middle])]) <= row)
            low = middle;
        else
            high = middle;
    }
    const int expert = load(&c.experts[low]);
    return load(&c.offsets[expert]) <= row && row < load(&c.offsets[expert + 1]) ? low : -1;
}

/* ---- project: to[m - first, r] = sum over k of x[row, k] w[r, k], or with BACK of x[row, k] w[k, r] ---- */
template <class T> struct Projection {
    float *to;      /* rows to_columns apart, of row `first` on */
    const T *x;     /* from its first column on, rows x_columns apart */
    const float *w; /* of cell 0 */
    int64_t to_columns, x_columns, depth, first, end;
    bool by_token; /* x has a row for every token */
};

/* How 8 warps share 32 rows x RANKS x a step of k. */
template <int RANKS> struct Shares {
    static constexpr int RANK_GROUPS = RANKS / 16, K_GROUPS = 8 / RANK_GROUPS, SLICE = 16,
                         STEP = SLICE * K_GROUPS;
    static constexpr int LINE = STEP + 4, SUMS = K_GROUPS * LORA_ROWS * RANKS,
                         BUFFER = (LORA_ROWS + RANKS) * LINE;
    static constexpr int LARGER = SUMS > BUFFER ? SUMS : BUFFER, W_PACKS = RANKS * STEP / 4 / LORA_THREADS;
};

/* Where a thread's pack i of w stands in the step. Back, neighbours read 8 ranks of one k. */
template <bool BACK, int RANKS> DEVICE void place_w(int i, int &rank, int &k) {
    constexpr int STEP = Shares<RANKS>::STEP;
    const int at = (int)threadIdx.x + i * LORA_THREADS;
    rank = BACK ? at / (2 * STEP) * 8 + at % 2 * 4 : at / (STEP / 4);
    k = BACK ? at / 2 % STEP : at % (STEP / 4) * 4;
}

template <class T, bool BACK, int RANKS, bool PACKED> struct Feed {
    typedef Shares<RANKS> S;
    static constexpr int N = WIDEST<T>, PER_ROW = S::STEP / N,
                         X_PACKS = (LORA_ROWS * PER_ROW + LORA_THREADS - 1) / LORA_THREADS;
    const T *row[X_PACKS]; /* NULL: none */
    const float *w;
    int64_t depth;
    int r0, ranks;
    Pack<T, N> x_pack[X_PACKS];
    Pack<float, 4> w_pack[S::W_PACKS];

    __device__ __forceinline__ Feed(const Projection<T> &p, const Cells &c, const RowTile &at, int from)
        : w(&p.w[(int64_t)at.group * c.rank * p.depth]), depth(p.depth), r0(from), ranks(c.rank) {
#pragma unroll
        for (int i = 0; i < X_PACKS; i++) {
            const int m = at.first + ((int)threadIdx.x + i * LORA_THREADS) / PER_ROW;
            const bool exists = m < at.end && m < at.first + LORA_ROWS;
            row[i] = nullptr;
            if (exists) row[i] = &p.x[(p.by_token ? load(&c.pairs[m]) / c.choices : m) * p.x_columns];
        }
    }

    /* The step that begins at `from`, to registers. */
    __device__ __forceinline__ void fetch(int64_t from) {
#pragma unroll
        for (int i = 0; i < X_PACKS; i++) {
            const int64_t k = from + ((int)threadIdx.x + i * LORA_THREADS) % PER_ROW * N;
            x_pack[i] = {};
            if (row[i] && k < depth) x_pack[i] = read_part<PACKED, T, N>(&row[i][k], depth - k);
        }
#pragma unroll
        for (int i = 0; i < S::W_PACKS; i++) {
            int rank, inside;
            place_w<BACK, RANKS>(i, rank, inside);
            const int r = r0 + rank;
            const int64_t k = from + inside;
            w_pack[i] = {};
            if (r < ranks && k < depth)
                w_pack[i] = read_part<PACKED, float, 4>(&w[BACK ? k * ranks + r : r * depth + k],
                                                        BACK ? ranks - r : depth - k);
        }
    }

    /* From registers to shared memory, k by k in both. */
    __device__ __forceinline__ void put(float *x_rows, float *w_rows) {
#pragma unroll
        for (int i = 0; i < X_PACKS; i++) {
            const int at = (int)threadIdx.x + i * LORA_THREADS;
            if (at >= LORA_ROWS * PER_ROW) break;
            float wide[N];
            unpack<T, N>(wide, x_pack[i]);
#pragma unroll
            for (int j = 0; j < N; j += 4) {
                const float four[4] = {wide[j], wide[j + 1], wide[j + 2], wide[j + 3]};
                store_pack<float, 4>(&x_rows[at / PER_ROW * S::LINE + at % PER_ROW * N + j], four);
            }
        }
#pragma unroll
        for (int i = 0; i < S::W_PACKS; i++) {
            int rank, k;
            place_w<BACK, RANKS>(i, rank, k);
            if constexpr (BACK) {
#pragma unroll
                for (int j = 0; j < 4; j++) store(&w_rows[(rank + j) * S::LINE + k], w_pack[i].element[j]);
            } else {
                store_pack<float, 4>(&w_rows[rank * S::LINE + k], w_pack[i].element);
            }
        }
    }
};

/* sum += this warp's slice of the step: rows row + 8 i, ranks rank + 4 j */
DEVICE void multiply_slice(float (&sum)[4][4], const float *x, const float *w, int line) {
#pragma unroll
    for (int k = 0; k < 16; k += 4) {
        float left[4][4], right[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) load_pack<float, 4>(left[i], &x[8 * i * line + k]);
#pragma unroll
        for (int j = 0; j < 4; j++) load_pack<float, 4>(right[j], &w[4 * j * line + k]);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int n = 0; n < 4; n++) sum[i][j] = fmaf(left[i][n], right[j][n], sum[i][j]);
    }
}

template <class T, bool BACK, int RANKS, bool PACKED>
static __global__ void __launch_bounds__(LORA_THREADS, sizeof(T) == 4 ? 1 : 2)
    project(Projection<T> p, Cells c) {
    typedef Shares<RANKS> S;
    SHARED(float, buffer, S::LARGER);
    float *x_rows = buffer, *w_rows = &buffer[LORA_ROWS * S::LINE];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, slice = warp / S::RANK_GROUPS;
    const int row = lane % 8, rank = warp % S::RANK_GROUPS * 16 + lane / 8;
    const int passes = (c.rank + RANKS - 1) / RANKS;
    RowTile at;
    for (int64_t n = blockIdx.x; find_tile(c, n / passes, p.first, p.end, at); n += gridDim.x) {
        const int r0 = (int)(n % passes) * RANKS;
        float sum[4][4] = {};
        Feed<T, BACK, RANKS, PACKED> feed(p, c, at, r0);
        feed.fetch(0);
        for (int64_t k = 0; k < p.depth; k += S::STEP) {
            __syncthreads(); /* what stands there has been read */
            feed.put(x_rows, w_rows);
            __syncthreads();
            if (k + S::STEP < p.depth) feed.fetch(k + S::STEP);
            if (k + slice * S::SLICE < p.depth && at.first + row < at.end)
                multiply_slice(sum, &x_rows[row * S::LINE + slice * S::SLICE],
                               &w_rows[rank * S::LINE + slice * S::SLICE], S::LINE);
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                store(&buffer[(slice * LORA_ROWS + row + 8 * i) * RANKS + rank + 4 * j], sum[i][j]);
        __syncthreads();
        for (int i = threadIdx.x; i < LORA_ROWS * RANKS; i += LORA_THREADS) {
            const int m = at.first + i / RANKS, r = r0 + i % RANKS;
            float total = 0;
#pragma unroll
            for (int s = 0; s < S::K_GROUPS; s++) total += load(&buffer[s * LORA_ROWS * RANKS + i]);
            if (m < at.end && r < c.rank) store(&p.to[(m - p.first) * p.to_columns + r], total);
        }
    }
}

template <class T, bool BACK>
static void launch_project(const Call &call, const Projection<T> &p, const Cells &c, bool packed) {
    if (p.end <= p.first || c.n_cells == 0) return;
    const int64_t tiles = (p.end - p.first + LORA_ROWS - 1) / LORA_ROWS + c.n_cells;
    const unsigned blocks = (unsigned)min(tiles, (int64_t)LORA_BLOCKS);
    if (c.rank <= 16 && packed)
        LAUNCH(call, blocks, LORA_THREADS, 0, (project<T, BACK, 16, true>), p, c);
    else if (c.rank <= 16)
        LAUNCH(call, blocks, LORA_THREADS, 0, (project<T, BACK, 16, false>), p, c);
    else if (packed)
        LAUNCH(call, blocks, LORA_THREADS, 0, (project<T, BACK, 64, true>), p, c);
    else
        LAUNCH(call, blocks, LORA_THREADS, 0, (project<T, BACK, 64, false>), p, c);
}

/* ---- apply: y[row, j] += scale times sum over r of u[m, r] w[j, r], or OF_A of u[m, r] w[r, j] ---- */
template <class T> struct Update {
    T *y;           /* from its first column on, rows y_columns apart */
    const float *u; /* of row `first` on, rows u_columns apart */
    const float *w; /* of cell 0 */
    const float *g; /* by_token: what u is, of all rows */
    int64_t y_columns, u_columns, width, first, end;
    bool by_token; /* y has a row for every token, and takes the other adapted choices of it too */
};

constexpr int COLUMNS = 256, RANK_STEP = 16, ODD = 136, LINE_W = 268, LINE_U = 36, W_PACKS = 4;

/* Column j of a block in shared memory: odd packs of four behind the even ones, so that threads that have
 * eight columns read without bank conflicts. */
DEVICE int place_column(int j) { return j / 4 % 2 * ODD + j / 8 * 4 + j % 4; }

/* 16 ranks from r0 on of 256 columns, and of the tile's rows, rank by rank; zeros beyond. */
template <class T, bool OF_A, bool PACKED>
DEVICE void put_ranks(float *w_ranks, float *u_ranks, const Update<T> &p, const float *w, int ranks,
                      const RowTile &at, int64_t column, int r0) {
    Pack<float, 4> pack[W_PACKS], u_pack = {};
#pragma unroll
    for (int i = 0; i < W_PACKS; i++) {
        const int n = (int)threadIdx.x + i * LORA_THREADS;
        const int r = r0 + (OF_A ? n / 64 : n / 512 * 8 + n % 2 * 4);
        const int64_t j = column + (OF_A ? n % 64 * 4 : n / 2 % COLUMNS);
        pack[i] = {};
        if (r < ranks && j < p.width)
            pack[i] = read_part<PACKED, float, 4>(&w[OF_A ? r * p.width + j : j * ranks + r],
                                                  OF_A ? p.width - j : ranks - r);
    }
    const int row = (int)threadIdx.x / 2 % LORA_ROWS,
              first = (int)threadIdx.x / 64 * 8 + (int)threadIdx.x % 2 * 4;
    if (first < RANK_STEP && r0 + first < ranks && at.first + row < at.end)
        u_pack = read_part<PACKED, float, 4>(&p.u[(at.first + row - p.first) * p.u_columns + r0 + first],
                                             ranks - r0 - first);
    __syncthreads(); /* what stands there has been read */
#pragma unroll
    for (int i = 0; i < W_PACKS; i++) {
        const int n = (int)threadIdx.x + i * LORA_THREADS;
        if constexpr (OF_A) {
            store_pack<float, 4>(&w_ranks[n / 64 * LINE_W + place_column(n % 64 * 4)], pack[i].element);
        } else {
            const int r = n / 512 * 8 + n % 2 * 4;
#pragma unroll
            for (int k = 0; k < 4; k++)
                store(&w_ranks[(r + k) * LINE_W + place_column(n / 2 % COLUMNS)], pack[i].element[k]);
        }
    }
    if (first < RANK_STEP)
#pragma unroll
        for (int k = 0; k < 4; k++) store(&u_ranks[(first + k) * LINE_U + row], u_pack.element[k]);
    __syncthreads();
}

DEVICE void multiply_ranks(float (&sum)[4][8], const float *w_ranks, const float *u_ranks, int n_ranks) {
    const int columns = (int)threadIdx.x % 32 * 4, rows = (int)threadIdx.x / 32 * 4;
#pragma unroll
    for (int r = 0; r < RANK_STEP; r++) {
        if (r % 4 == 0 && r >= n_ranks) break;
        float u[4], w[2][4];
        load_pack<float, 4>(u, &u_ranks[r * LINE_U + rows]);
        load_pack<float, 4>(w[0], &w_ranks[r * LINE_W + columns]);
        load_pack<float, 4>(w[1], &w_ranks[r * LINE_W + ODD + columns]);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 8; j++) sum[i][j] = fmaf(u[i], w[j / 4][j % 4], sum[i][j]);
    }
}

/* The row of y that row m goes to, and a bit for each other choice to add to it; -1: none, or another row's
 * block has it. */
template <class T>
DEVICE int target_of(const Update<T> &p, const Cells &c, int m, int end, unsigned &others) {
    others = 0;
    if (m >= end) return -1;
    if (!p.by_token) return m;
    const int pair = load(&c.pairs[m]), token = pair / c.choices;
    for (int k = 0; k < c.choices; k++)
        if (cell_of(c, load(&c.rows[(int64_t)token * c.choices + k])) >= 0) others |= 1u << k;
    if (__ffs(others) - 1 != pair % c.choices) return -1;
    others &= others - 1;
    return token;
}

/* sum[j] += scale times g a of the other choices, in order */
template <bool PACKED, class T>
DEVICE void add_others(float (&sum)[8], const Update<T> &p, const Cells &c, int token, unsigned others,
                       int64_t column) {
#pragma unroll 1
    for (; others; others &= others - 1) {
        const int row = load(&c.rows[(int64_t)token * c.choices + __ffs(others) - 1]), cell = cell_of(c, row);
        const float *g = &p.g[row * p.u_columns], *a = &c.a[(int64_t)cell * c.rank * c.in + column];
        const float scale = load(&c.scales[cell]);
        float part[8] = {};
#pragma unroll 1
        for (int r = 0; r < c.rank; r++) {
            const float of_rank = load(&g[r]);
#pragma unroll
            for (int j = 0; j < 8; j += 4) {
                float four[4];
                load_part<PACKED, float, 4>(four, &a[r * c.in + j], p.width - column - j);
#pragma unroll
                for (int k = 0; k < 4; k++) part[j + k] = fmaf(of_rank, four[k], part[j + k]);
            }
        }
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += scale * part[j];
    }
}

template <class T, bool OF_A, bool PACKED>
static __global__ void __launch_bounds__(LORA_THREADS, sizeof(T) == 4 ? 1 : 2) apply(Update<T> p, Cells c) {
    SHARED(float, w_ranks, RANK_STEP *LINE_W);
    SHARED(float, u_ranks, RANK_STEP *LINE_U);
    SHARED(int, target, LORA_ROWS);
    SHARED(unsigned, others, LORA_ROWS);
    constexpr int N = WIDEST<T>, N_PACKS = 8 / N;
    const int64_t parts = (p.width + COLUMNS - 1) / COLUMNS;
    const int own = (int)threadIdx.x / 32 * 4;
    RowTile at;
    for (int64_t n = blockIdx.x; find_tile(c, n / parts, p.first, p.end, at); n += gridDim.x) {
        const int64_t block_column = n % parts * COLUMNS, column = block_column + threadIdx.x % 32 * 8;
        const float *w = &p.w[(int64_t)at.group * c.rank * p.width], scale = load(&c.scales[at.group]);
        __syncthreads(); /* the last tile's targets have been read */
        if (threadIdx.x < LORA_ROWS) {
            unsigned more;
            store(&target[threadIdx.x], target_of(p, c, at.first + (int)threadIdx.x, at.end, more));
            store(&others[threadIdx.x], more);
        }
        __syncthreads();
        Pack<T, N> old[4][N_PACKS];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = load(&target[own + i]);
#pragma unroll
            for (int j = 0; j < N_PACKS; j++)
                if (row >= 0 && column + j * N < p.width)
                    old[i][j] = read_part<PACKED, T, N>(&p.y[row * p.y_columns + column + j * N],
                                                        p.width - column - j * N);
        }
        float sum[4][8] = {};
        for (int r0 = 0; r0 < c.rank; r0 += RANK_STEP) {
            put_ranks<T, OF_A, PACKED>(w_ranks, u_ranks, p, w, c.rank, at, block_column, r0);
            if (at.first + own < at.end && column < p.width)
                multiply_ranks(sum, w_ranks, u_ranks, c.rank - r0);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = load(&target[own + i]);
            if (row < 0 || column >= p.width) continue;
#pragma unroll
            for (int j = 0; j < 8; j++) sum[i][j] = scale * sum[i][j];
            if constexpr (OF_A) add_others<PACKED>(sum[i], p, c, row, load(&others[own + i]), column);
#pragma unroll
            for (int j = 0; j < N_PACKS; j++) {
                if (column + j * N >= p.width) break;
                float y[N];
                unpack<T, N>(y, old[i][j]);
#pragma unroll
                for (int k = 0; k < N; k++) y[k] += sum[i][j * N + k];
                store_part<PACKED, T, N>(&p.y[row * p.y_columns + column + j * N], y,
                                         p.width - column - j * N);
            }
        }
    }
}

template <class T, bool OF_A>
static void launch_apply(const Call &call, const Update<T> &p, const Cells &c, bool packed) {
    if (p.end <= p.first || c.n_cells == 0) return;
    const int64_t tiles = (p.end - p.first + LORA_ROWS - 1) / LORA_ROWS + c.n_cells;
    const int64_t all = tiles * ((p.width + COLUMNS - 1) / COLUMNS);
    const unsigned blocks = (unsigned)min(all, (int64_t)LORA_BLOCKS);
    if (packed)
        LAUNCH(call, blocks, LORA_THREADS, 0, (apply<T, OF_A, true>), p, c);
    else
        LAUNCH(call, blocks, LORA_THREADS, 0, (apply<T, OF_A, false>), p, c);
}

/* ---- the ops ---- */
/* Whether x, its rows so many elements apart, and the ranks can be read 16 bytes at a time. */
template <class T> static bool packs(const T *x, int64_t columns, int64_t width, const float *w, int rank) {
    const int64_t n = WIDEST<T>;
    return (uintptr_t)x % 16 == 0 && columns % n == 0 && width % 8 == 0 && (uintptr_t)w % 16 == 0 &&
           rank % 4 == 0;
}

extern "C" void cuda_lora(Queue *q, Tensor y, Tensor x, Lora lora, MoePlan plan) {
    const Call call(q, "lora", y, x, lora.a, lora.b, plan.pairs);
    const Cells c = cells_of(lora, plan);
    const int64_t n_rows = tensor_count(plan.pairs), columns = tensor_columns(y);
    const int64_t at_once = WORKSPACE_BYTES / (c.rank * (int64_t)sizeof(float));
    float *u = static_cast<float *>(queue_workspace(q));
    if (!u) return;
    with_act(y.dtype, [&](auto act) {
        using T = decltype(act);
        const T *from = elements<T>(x);
        T *to = elements<T>(y) + lora.column;
        for (int64_t first = 0; first < n_rows; first += at_once) {
            const int64_t end = min(first + at_once, n_rows);
            launch_project<T, false>(call, {u, from, c.a, c.rank, c.in, c.in, first, end, !c.down}, c,
                                     packs(from, c.in, c.in, c.a, 4));
            launch_apply<T, false>(call, {to, u, c.b, nullptr, columns, c.rank, c.out, first, end, false}, c,
                                   packs((const T *)to, columns, c.out, c.b, c.rank));
        }
    });
}

extern "C" void cuda_lora_bwd(Queue *q, Tensor dx, LoraSums sums, Tensor scratch, Tensor dy, Tensor x,
                              Lora lora, Tensor weights, MoePlan plan) {
    const Call call(q, "lora_bwd", dx, sums.a, sums.b, scratch, dy, x, lora.a, lora.b, weights, plan.pairs);
    const Cells c = cells_of(lora, plan);
    const int64_t columns = tensor_columns(dy), n_rows = tensor_count(plan.pairs), wide = 2 * c.rank;
    float *g = reals(scratch);
    const bool scratch_packed = (uintptr_t)g % 16 == 0;
    with_act(x.dtype, [&](auto act) {
        using T = decltype(act);
        const T *from = elements<T>(x), *back = elements<T>(dy) + lora.column;
        launch_project<T, true>(call, {g, back, c.b, wide, columns, c.out, 0, n_rows, c.down}, c,
                                packs(back, columns, c.out, c.b, c.rank));
        launch_project<T, false>(call, {g + c.rank, from, c.a, wide, c.in, c.in, 0, n_rows, !c.down}, c,
                                 packs(from, c.in, c.in, c.a, 4));
        if (dx.data && c.down)
            launch_apply<float, true>(call, {reals(dx), g, c.a, g, c.in, wide, c.in, 0, n_rows, false}, c,
                                      scratch_packed && packs(reals(dx), c.in, c.in, c.a, c.rank));
        else if (dx.data)
            launch_apply<T, true>(call, {elements<T>(dx), g, c.a, g, c.in, wide, c.in, 0, n_rows, true}, c,
                                  scratch_packed && packs(elements<T>(dx), c.in, c.in, c.a, c.rank));
    });
    lora_sums(call, sums, scratch, dy, x, lora, weights, c);
}

/* The choice of the next token: argmax, and a draw with top-k and top-p. A block has a row.
 *
 * Candidates have codes of 64 bits, the logit's order above the inverted id, so that larger comes first and
 * no two are equal; NaN counts as -infinity. They come BATCH at a time: by rank, the next ones are found by
 * bisecting the code at which few enough are left above (each step reads the row once, from L2), and sorted
 * in shared memory; by id, they just follow. So nothing is written to memory; the op's scratch is not used.
 *
 * Masses are computed by all threads and added by one, f64, in the order of kernels/cpu/sample.c, so the ids
 * are the CPU's. That chain is the limit: an addition after the other, over all ids where no top-k cuts. */
#include "device.cuh"
#include "../random.h"

enum { THREADS = 512, WARPS = THREADS / 32, BATCH = 1024, SMALL_BATCH = BATCH / 8, UNROLL = 8 };

/* Over the block; combine is exact, so the order does not matter. */
template <class T, class F> DEVICE T block_reduce(T x, F combine) {
    SHARED(T, part, WARPS);
#pragma unroll
    for (int d = 16; d; d /= 2) x = combine(x, __shfl_xor_sync(~0u, x, d));
    __syncthreads(); /* the last parts have been read */
    if (threadIdx.x % 32 == 0) store(&part[threadIdx.x / 32], x);
    __syncthreads();
    x = load(&part[0]);
#pragma unroll
    for (int w = 1; w < WARPS; w++) x = combine(x, load(&part[w]));
    return x;
}

DEVICE float number_of(float x) { return x == x ? x : -INFINITY; }
DEVICE uint64_t code_of(float x, int id) {
    return (uint64_t)ordered_bits(number_of(x)) << 32 | ~(uint32_t)id;
}
DEVICE int id_of(uint64_t code) { return (int)~(uint32_t)code; }

DEVICE uint64_t first_code(const float *row, int n) {
    uint64_t best = 0;
#pragma unroll 8
    for (int i = threadIdx.x; i < n; i += THREADS) best = max(best, code_of(load(&row[i]), i));
    return block_reduce(best, [](uint64_t a, uint64_t b) { return max(a, b); });
}

static __global__ void __launch_bounds__(THREADS)
    choose_largest(int32_t *ids, const float *logits, int64_t columns, int n) {
    const uint64_t best = first_code(&logits[blockIdx.x * columns], n);
    if (threadIdx.x == 0) store(&ids[blockIdx.x], id_of(best));
}

extern "C" void cuda_argmax(Queue *q, Tensor ids, Tensor logits, int64_t n_valid) {
    const Call call(q, "argmax", ids, logits);
    const int64_t rows = tensor_rows(logits), columns = tensor_columns(logits);
    check(rows == 0 || (n_valid >= 1 && n_valid <= columns), "%lld of %lld ids", (long long)n_valid,
          (long long)columns);
    LAUNCH(call, blocks_for(rows, 1), THREADS, 0, choose_largest, ints(ids), reals(logits), columns,
           (int)n_valid);
}

/* ---- a row's candidates in an order, those from `first` on in shared memory ---- */
struct Candidates {
    const float *row;
    int n;
    bool by_rank;
    double temperature, largest;
    uint64_t *codes; /* of the batch; by_rank only */
    double *masses;
    uint64_t bound;   /* the batch's codes lie below the bound before it and not below this */
    int first, count; /* count < 0: no batch yet */

    __device__ __forceinline__ int id(int i) const { return by_rank ? id_of(load(&codes[i])) : first + i; }
    __device__ __forceinline__ uint64_t code(int v) const { return code_of(load(&row[v]), v); }
};

/* The code down to which the next batch reaches, all below `upper` if they fit. */
DEVICE uint64_t batch_bound(const Candidates &c, uint64_t upper, int n_left) {
    uint64_t low = 0, high = upper; /* too many lie in [low, upper), too few in [high, upper) */
    while (n_left > BATCH) {
        const uint64_t middle = low + (high - low) / 2;
        int n = 0;
#pragma unroll 8
        for (int v = threadIdx.x; v < c.n; v += THREADS) {
            const uint64_t code = c.code(v);
            n += code >= middle && code < upper;
        }
        n = block_reduce(n, [](int a, int b) { return a + b; });
        if (n >= SMALL_BATCH && n <= BATCH) return middle;
        if (n > BATCH)
            low = middle;
        else
            high = middle;
    }
    return 0;
}

/* Codes in [c.bound, upper) into the batch, in no order; returns how many. */
DEVICE int gather(const Candidates &c, uint64_t upper) {
    SHARED(int, n, 1);
    if (threadIdx.x == 0) store(n, 0);
    __syncthreads();
    for (int v = threadIdx.x; v < c.n; v += THREADS) {
        const uint64_t code = c.code(v);
        if (code >= c.bound && code < upper) store(&c.codes[atomicAdd(n, 1)], code);
    }
    __syncthreads();
    return load(n);
}

/* Largest first: a code's place is the number of larger ones. */
DEVICE void sort(uint64_t *codes, int n) {
    const int first = threadIdx.x;
    uint64_t own[BATCH / THREADS] = {};
    int place[BATCH / THREADS] = {};
#pragma unroll
    for (int k = 0; k < BATCH / THREADS; k++)
        if (first + k * THREADS < n) own[k] = load(&codes[first + k * THREADS]);
#pragma unroll 4
    for (int i = 0; i < (first < n ? n : 0); i++) {
        const uint64_t code = load(&codes[i]);
#pragma unroll
        for (int k = 0; k < BATCH / THREADS; k++) place[k] += code > own[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < BATCH / THREADS; k++)
        if (first + k * THREADS < n) store(&codes[place[k]], own[k]);
    __syncthreads();
}

/* The batch that begins at `first`, which is 0 or where the present one ends. */
DEVICE void load_batch(Candidates &c, int first) {
    if (c.count >= 0 && c.first == first) return;
    const int n_left = c.n - first;
    if (c.by_rank) {
        const uint64_t upper = first ? c.bound : ~(uint64_t)0;
        c.bound = batch_bound(c, upper, n_left);
        c.count = gather(c, upper);
        sort(c.codes, c.count);
    } else {
        c.count = min((int)BATCH, n_left);
    }
    c.first = first;
    for (int i = threadIdx.x; i < c.count; i += THREADS) {
        const double logit = number_of(load(&c.row[c.id(i)]));
        store(&c.masses[i], logit == c.largest ? 1 : exp_f64((logit - c.largest) / c.temperature));
    }
    __syncthreads();
}

/* Where a walk over the candidates ended. */
struct Reached {
    double sum; /* mass up to and with the candidate */
    int place, id;
};

/* Thread 0 goes on over the batch; true: no further. */
DEVICE bool walk(const Candidates &c, double bound, int n, Reached *r) {
    const int end = min(c.count, n - c.first);
    int last = -1, i = 0;
    bool stops = c.first + c.count >= n;
    while (i < end && r->sum <= bound) {
        if (i + UNROLL <= end) { /* several, unless the bound lies among them */
            double mass[UNROLL], sum = r->sum;
            int heaviest = last;
#pragma unroll
            for (int k = 0; k < UNROLL; k++) mass[k] = load(&c.masses[i + k]);
#pragma unroll
            for (int k = 0; k < UNROLL; k++) {
                sum += mass[k];
                if (mass[k] > 0) heaviest = i + k;
            }
            if (sum <= bound) {
                r->sum = sum, last = heaviest, i += UNROLL;
                if (!c.by_rank || mass[UNROLL - 1] > 0) continue;
                stops = true; /* the others have none either */
                break;
            }
        }
        const double mass = load(&c.masses[i]);
        r->sum += mass;
        if (mass > 0) last = i;
        i++;
    }
    if (last >= 0) r->place = c.first + last, r->id = c.id(last);
    return stops || r->sum > bound;
}

/* The first candidate at which the mass so far exceeds `bound`, else the last of the first n that has any;
 * bound, n and the result are thread 0's. */
DEVICE Reached reach(Candidates &c, bool by_rank, double bound, int n) {
    if (c.by_rank != by_rank) c.by_rank = by_rank, c.count = -1;
    Reached r = {0, 0, 0};
    int first = 0;
    bool stops;
    do {
        load_batch(c, first);
        first += c.count;
        stops = threadIdx.x == 0 && walk(c, bound, n, &r);
    } while (!__syncthreads_or(stops));
    return r;
}

/* Walks over a row's candidates: for the mass that top_k leaves, that top_p leaves, and for the choice. */
enum { ADDS_UP, CUTS, DRAWS };

static __global__ void __launch_bounds__(THREADS)
    draw_ids(int32_t *ids, const float *logits, const int64_t *keys, int64_t columns, SampleRule rule) {
    SHARED(uint64_t, codes, BATCH);
    SHARED(double, masses, BATCH);
    const int64_t i = blockIdx.x;
    const float *row = &logits[i * columns];
    const int n = (int)rule.n_valid;
    const double largest = number_of(load(&row[id_of(first_code(row, n))]));
    if (largest == -INFINITY) {
        if (threadIdx.x == 0) store(&ids[i], 0);
        return;
    }
    Candidates c = {row, n, false, rule.temperature, largest, codes, masses, 0, 0, -1};
    int kept = rule.top_k > 0 ? min(n, rule.top_k) : n;
    const bool cuts_k = kept < n, cuts_p = rule.top_p < 1;
    const double uniform =
        random_uniform(rule.seed, RANDOM_SAMPLE, load(&keys[2 * i]), load(&keys[2 * i + 1]));
    Reached r = {0, 0, 0};
#pragma unroll 1
    for (int pass = ADDS_UP; pass <= DRAWS; pass++) {
        if (pass == CUTS && !cuts_p) continue;
        const bool by_rank = cuts_k || (cuts_p && pass != ADDS_UP);
        const double bound = pass == ADDS_UP ? (double)INFINITY
                             : pass == CUTS  ? nextafter((double)rule.top_p * r.sum, 0.0)
                                             : uniform * r.sum;
        r = reach(c, by_rank, bound, kept);
        if (pass == CUTS) kept = r.place + 1;
    }
    if (threadIdx.x == 0) store(&ids[i], r.id);
}

extern "C" void cuda_sample(Queue *q, Tensor ids, Tensor scratch, Tensor logits, Tensor keys,
                            SampleRule rule) {
    const Call call(q, "sample", ids, scratch, logits, keys);
    const int64_t rows = tensor_rows(logits), columns = tensor_columns(logits);
    check(rows == 0 || (rule.n_valid >= 1 && rule.n_valid <= columns), "%lld of %lld ids",
          (long long)rule.n_valid, (long long)columns);
    if (rule.temperature <= 0)
        LAUNCH(call, blocks_for(rows, 1), THREADS, 0, choose_largest, ints(ids), reals(logits), columns,
               (int)rule.n_valid);
    else
        LAUNCH(call, blocks_for(rows, 1), THREADS, 0, draw_ids, ints(ids), reals(logits), longs(keys),
               columns, rule);
}

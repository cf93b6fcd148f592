/* Rotary position embedding (arXiv 2104.09864): pairs of head elements turned by an angle that grows with
 * the position; the backward turns the other way and adds.
 *
 * Mapping: one block a token. Its threads begin to read what they turn first, then compute the sines and
 * cosines of the pairs in f64, once for all heads, into shared memory; then each thread takes N pairs,
 * keeps their sines and cosines in registers and goes through the heads. A head is cut into items: those of
 * two packs that turn (half a head apart, or side by side), then those of one pack that stay.
 * Traffic: x in, y out (backward: dx in too). Limit: memory. Requires: at most MOST_PAIRS frequencies. */
#include "device.cuh"

enum { MOST_PAIRS = 512, MOST_THREADS = 256 };

struct Heads {
    int64_t count, size;
    int pairs;
    int packs_stay; /* of a head, to be written too; 0 in place */
    float sine_scale, cosine_scale;
    bool adds; /* y += the turned x */
};

template <class T, int N> DEVICE void put(T *y, float (&v)[N], bool adds) {
    if (adds) {
        float sum[N];
        load_pack<T, N>(sum, y);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] += sum[i];
    }
    store_pack<T, N>(y, v);
}

template <class T, int N, RopeKind KIND>
static __global__ void __launch_bounds__(MOST_THREADS, 3)
    turn_heads(T *y, const T *x, const int32_t *positions, const float *frequencies, Heads heads) {
    SHARED(float, sines, MOST_PAIRS);
    SHARED(float, cosines, MOST_PAIRS);
    constexpr bool HALVES = KIND == ROPE_HALVES;
    const int64_t token = blockIdx.x;
    const int threads = (int)blockDim.x, thread = (int)threadIdx.x;
    /* A thread keeps to its item of every abreast-th head. */
    const int turning = heads.pairs / N, items = turning + heads.packs_stay;
    const int wide = min(items, threads), abreast = threads / wide;
    const bool present = thread < wide * abreast && thread / wide < heads.count;
    Pack<T, N> ahead[2] = {};
    const auto places = [&](int item) { /* in a head: of the one pack or of both */
                                        if (item >= turning)
                                            return int2{2 * heads.pairs + (item - turning) * N, 0};
                                        return HALVES ? int2{item * N, item * N + heads.pairs}
                                                      : int2{item * 2 * N, item * 2 * N + N};
    };
    const auto read = [&](int item, int64_t head) {
        const int64_t first = (token * heads.count + head) * heads.size;
        const int2 at = places(item);
        ahead[0].word = load(&reinterpret_cast<const Pack<T, N> *>(&x[first + at.x])->word);
        if (item < turning)
            ahead[1].word = load(&reinterpret_cast<const Pack<T, N> *>(&x[first + at.y])->word);
    };
    if (present) read(thread % wide, thread / wide); /* on its way while sines are computed */
    const float position = (float)load(&positions[token]);
    for (int i = thread; i < heads.pairs; i += threads) {
        double sine, cosine;
        sincos_f64((double)(position * load(&frequencies[i])), &sine, &cosine);
        store(&sines[i], (float)sine * heads.sine_scale);
        store(&cosines[i], (float)cosine * heads.cosine_scale);
    }
    __syncthreads();
    if (!present) return;
    for (int item = thread % wide; item < items; item += wide) {
        const bool turns = item < turning;
        const int2 at = places(item);
        float sine[N], cosine[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            sine[i] = turns ? load(&sines[item * N + i]) : 0;
            cosine[i] = turns ? load(&cosines[item * N + i]) : 1;
        }
        for (int64_t head = thread / wide; head < heads.count; head += abreast) {
            const int64_t first = (token * heads.count + head) * heads.size;
            if (item != thread % wide || head != thread / wide) read(item, head);
            float v[2][N];
#pragma unroll
            for (int i = 0; i < N; i++)
                v[0][i] = to_f32(ahead[0].element[i]), v[1][i] = to_f32(ahead[1].element[i]);
            if (turns) {
#pragma unroll
                for (int i = 0; i < N; i++) {
                    float &even = v[HALVES ? 0 : 2 * i / N][HALVES ? i : 2 * i % N];
                    float &odd = v[HALVES ? 1 : (2 * i + 1) / N][HALVES ? i : (2 * i + 1) % N];
                    const float p = even, q = odd;
                    even = fmaf(-q, sine[i], p * cosine[i]);
                    odd = fmaf(p, sine[i], q * cosine[i]);
                }
                put<T, N>(&y[first + at.y], v[1], heads.adds);
            }
            put<T, N>(&y[first + at.x], v[0], heads.adds);
        }
    }
}

template <class T, int N>
static void launch_turn(const Call &call, Tensor y, Tensor x, Tensor positions, Tensor frequencies,
                        Heads heads, RopeKind kind) {
    const bool in_place = y.data == x.data && !heads.adds;
    heads.packs_stay = in_place ? 0 : (int)((heads.size - 2 * heads.pairs) / N);
    const int64_t items = heads.pairs / N + heads.packs_stay;
    if (items * heads.count == 0) return;
    const int64_t work = max(items * heads.count, (int64_t)heads.pairs);
    const unsigned threads = (unsigned)min((work + 31) / 32 * 32, (int64_t)MOST_THREADS);
    const unsigned tokens = blocks_for(x.shape[0], 1);
    if (kind == ROPE_HALVES)
        LAUNCH(call, tokens, threads, 0, (turn_heads<T, N, ROPE_HALVES>), elements<T>(y), elements<T>(x),
               ints(positions), reals(frequencies), heads);
    else
        LAUNCH(call, tokens, threads, 0, (turn_heads<T, N, ROPE_INTERLEAVED>), elements<T>(y), elements<T>(x),
               ints(positions), reals(frequencies), heads);
}

/* y = turned x, or y += turned x. heads begins with what the direction decides. */
static void turn_all(const Call &call, Tensor y, Tensor x, Tensor positions, Tensor frequencies, Heads heads,
                     RopeKind kind) {
    const int64_t tokens = x.shape[0], pairs = tensor_count(frequencies);
    heads.size = tensor_columns(x);
    heads.count = tokens ? tensor_rows(x) / tokens : 0;
    heads.pairs = (int)pairs;
    check(2 * pairs <= heads.size && pairs <= MOST_PAIRS && heads.size <= INT32_MAX,
          "%lld frequencies for heads of %lld", (long long)pairs, (long long)heads.size);
    check(tensor_count(positions) == tokens && tensor_count(y) == tensor_count(x), "%lld tokens",
          (long long)tokens);
    with_act(x.dtype, [&](auto act) {
        using T = decltype(act);
        constexpr int N = WIDEST<T>;
        if (pairs % N == 0 && rows_are_packed(N, heads.size, y, x))
            launch_turn<T, N>(call, y, x, positions, frequencies, heads, kind);
        else
            launch_turn<T, 1>(call, y, x, positions, frequencies, heads, kind);
    });
}

extern "C" void cuda_rope(Queue *q, Tensor y, Tensor x, Tensor positions, Tensor frequencies, float scale,
                          RopeKind kind) {
    const Call call(q, "rope", y, x, positions, frequencies);
    Heads heads = {};
    heads.sine_scale = heads.cosine_scale = scale;
    turn_all(call, y, x, positions, frequencies, heads, kind);
}

extern "C" void cuda_rope_bwd(Queue *q, Tensor dx, Tensor dy, Tensor positions, Tensor frequencies,
                              float scale, RopeKind kind) {
    const Call call(q, "rope_bwd", dx, dy, positions, frequencies);
    Heads heads = {};
    heads.sine_scale = -scale;
    heads.cosine_scale = scale;
    heads.adds = true;
    turn_all(call, dx, dy, positions, frequencies, heads, kind);
}

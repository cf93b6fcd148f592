/* The router: softmax and top-k in either order, edited or not, and their gradient.
 *
 * A token is four lanes. Of every sixteen experts (a chunk) a lane has four neighbours, read and written as
 * one 16-byte word; a lane keeps four sums, so that sums have the order of kernels/cpu/lanes.h and results
 * its bits. Kept in registers is the largest logit left of each of the lane's chunks: a choice is a maximum
 * over them and over the four lanes, then the lowest expert that has it, whose chunk alone is looked through
 * again. Logits come from memory once, later from L1; probs are written once. Instructions are the limit
 * beyond a few choices. exp and division take short forms with the same bits where the logits are not far
 * apart. Where fewer than K experts are numbers above -infinity, -infinity, NaN and at last masked ones
 * follow, each in order of index (the CPU refuses the last), so that ids are distinct and valid whatever the
 * logits hold. */
#include "device.cuh"
#include <type_traits>

enum { THREADS = 128, QUAD = 4, PACK = 4, CHUNK = QUAD * PACK, TOKENS = THREADS / QUAD };

/* ---- four lanes ---- */
DEVICE float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
DEVICE int quad_min(int x) {
    x = min(x, __shfl_xor_sync(~0u, x, 1));
    return min(x, __shfl_xor_sync(~0u, x, 2));
}
/* Element i of a row is in sum i % 4 of lane i % 16 / 4: the total of kernels/cpu/lanes.h. */
DEVICE float quad_sum(float (&x)[PACK]) {
#pragma unroll
    for (int c = 0; c < PACK; c++) {
        x[c] += __shfl_xor_sync(~0u, x[c], 2);
        x[c] += __shfl_xor_sync(~0u, x[c], 1);
    }
    return (x[0] + x[2]) + (x[1] + x[3]);
}
DEVICE float largest_of(const float (&x)[PACK]) { return fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])); }

/* ---- exp(x - largest), and its quotient ---- */
/* Where x is at most this far below, exp is beyond 2^-70: scaling by a power of two is an addition to the
 * exponent, and a quotient by the sum is a product with its inverse, corrected twice, which rounds as a
 * division does (Markstein's theorem; nothing underflows on the way). */
constexpr float NEAR = -48.0f, LEAST_NEAR = 0x1p-70f;

/* exp_f32 of NEAR <= x <= 0, without the ends. */
DEVICE float exp_near(float x) {
    const float t = fmaf(x, 0x1.715476p0f, 0x1.8p23f), n = t - 0x1.8p23f;
    float r = fmaf(n, -0x1.62e43p-1f, x);
    r = fmaf(n, 0x1.05c61p-29f, r);
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    return __uint_as_float(__float_as_uint(p) + (__float_as_uint(t) << 23));
}

/* x = exp(x - largest) */
DEVICE void exp_below(float (&x)[PACK], float largest) {
#pragma unroll
    for (int c = 0; c < PACK; c++) x[c] -= largest;
    if (x[0] >= NEAR && x[1] >= NEAR && x[2] >= NEAR && x[3] >= NEAR) {
#pragma unroll
        for (int c = 0; c < PACK; c++) x[c] = exp_near(x[c]);
    } else {
#pragma unroll
        for (int c = 0; c < PACK; c++) x[c] = exp_f32(x[c]);
    }
}

/* x /= by; inverse = 1 / by */
DEVICE void divide(float (&x)[PACK], float by, float inverse) {
    if (x[0] >= LEAST_NEAR && x[1] >= LEAST_NEAR && x[2] >= LEAST_NEAR && x[3] >= LEAST_NEAR) {
#pragma unroll
        for (int c = 0; c < PACK; c++) {
            float q = x[c] * inverse;
            q = fmaf(fmaf(-q, by, x[c]), inverse, q);
            x[c] = fmaf(fmaf(-q, by, x[c]), inverse, q);
        }
    } else {
#pragma unroll
        for (int c = 0; c < PACK; c++) x[c] = x[c] / by;
    }
}

/* ---- route ---- */
struct Router {
    float *probs, *weights;
    int32_t *ids;
    const float *logits, *edit_values;
    const int32_t *edit_modes, *edit_rows;
    int64_t tokens;
    int experts, choices;
    bool packed; /* rows can be read in packs */
    RouterRule rule;
};

/* One token's logits as its edits leave them. */
template <bool EDITED> struct Logits {
    const float *row, *values;
    const int32_t *modes; /* nullptr: none */
    float largest, least; /* of the row, before any edit; set where there are edits */
    int n;                /* 0: no token */
    bool packed;

    __device__ __forceinline__ int mode(int e) const { return EDITED && modes ? load(&modes[e]) : EDIT_NONE; }
    __device__ __forceinline__ float edited(int e, float x) const {
        const int how = mode(e);
        if (!EDITED || how == EDIT_NONE) return x;
        if (how == EDIT_MASK) return -INFINITY;
        const float value = load(&values[e]);
        if (how == EDIT_BIAS) return x + value;
        return how == EDIT_PROMOTE ? largest + value : how == EDIT_DEMOTE ? least - value : x;
    }
    __device__ __forceinline__ float one(int e) const { return edited(e, load(&row[e])); }
    /* Those of the experts from `first` on; -infinity beyond the last. */
    __device__ __forceinline__ void read(float (&x)[PACK], int first) const {
        if (packed && first < n) {
            load_pack(x, &row[first]);
        } else {
#pragma unroll
            for (int c = 0; c < PACK; c++) x[c] = first + c < n ? load(&row[first + c]) : -INFINITY;
        }
        if constexpr (EDITED) {
#pragma unroll
            for (int c = 0; c < PACK; c++)
                if (modes && first + c < n) x[c] = edited(first + c, x[c]);
        }
    }
};

template <bool EDITED> DEVICE Logits<EDITED> token_logits(const Router &a, int64_t t) {
    const bool present = t < a.tokens;
    Logits<EDITED> z = {&a.logits[t * a.experts], nullptr, nullptr, 0, 0, present ? a.experts : 0, a.packed};
    const int row = EDITED && present ? load(&a.edit_rows[t]) : -1;
    if (row < 0) return z;
    z.modes = &a.edit_modes[(int64_t)row * a.experts];
    z.values = &a.edit_values[(int64_t)row * a.experts];
    return z;
}

/* Sets the row's extremes and stores the experts that are forced; true when there are any. */
DEVICE bool read_edits(Logits<true> &z, int32_t *ids) {
    float high = -INFINITY, low = INFINITY;
    int forced = 0;
    for (int first = threadIdx.x % QUAD * PACK; z.modes && first < z.n; first += CHUNK)
        for (int e = first; e < min(first + (int)PACK, z.n); e++) {
            const float x = load(&z.row[e]);
            high = fmaxf(high, x), low = fminf(low, x);
            if (load(&z.modes[e]) != EDIT_FORCE) continue;
            store(&ids[(int)load(&z.values[e])], e);
            forced = -1;
        }
    z.largest = quad_max(high), z.least = -quad_max(-low);
    return quad_min(forced) < 0;
}
DEVICE bool read_edits(Logits<false> &, int32_t *) { return false; }

/* Fills the places from n_chosen on, which no number above -infinity is left for. */
template <bool EDITED>
DEVICE void choose_others(const Logits<EDITED> &z, int32_t *ids, int n_chosen, int choices) {
    for (int kind = 0; kind < 3; kind++)
        for (int e = 0; e < z.n && n_chosen < choices; e++) {
            const float x = z.one(e);
            const int own = z.mode(e) == EDIT_MASK ? 2 : x != x ? 1 : x == -INFINITY ? 0 : -1;
            if (own == kind) store(&ids[n_chosen++], e);
        }
}

/* The weights that an edit sets to zero, by one lane. */
template <bool EDITED>
DEVICE void edit_weights(const Logits<EDITED> &z, float *weights, const int32_t *ids, int choices) {
    float all = 0, left = 0;
    bool makes_up = false;
    for (int k = 0; k < choices; k++) {
        const int mode = z.mode(load(&ids[k]));
        const float w = mode == EDIT_ZERO ? 0 : load(&weights[k]);
        const bool zero = mode == EDIT_ZERO || mode == EDIT_ZERO_RENORMALIZE;
        all += w;
        left += zero ? 0 : w;
        makes_up |= mode == EDIT_ZERO_RENORMALIZE;
        if (zero) store(&weights[k], 0.0f);
    }
    for (int k = 0; makes_up && left > 0 && k < choices; k++)
        store(&weights[k], load(&weights[k]) * all / left);
}

/* WHOLE: a row has at most GROUPS chunks. Else its chunks are GROUPS runs of neighbours, and the exponentials
 * wait in probs. AT_ONCE (whole, not edited, packed): all chunks are on their way before the first is looked
 * at, and a choice's logit stays in a register. */
template <int GROUPS, bool WHOLE, bool EDITED, bool AT_ONCE>
static __global__ void __launch_bounds__(THREADS, AT_ONCE &&GROUPS <= 8 ? 8 : 4) route_tokens(Router a) {
    const int lane = threadIdx.x % QUAD;
    const int64_t t = (int64_t)blockIdx.x * TOKENS + threadIdx.x / QUAD;
    Logits<EDITED> z = token_logits<EDITED>(a, t);
    const int n = z.n, n_chosen = n ? a.choices : 0; /* lanes without a token take part in the shuffles */
    const int chunks = (a.experts + CHUNK - 1) / CHUNK, span = (chunks + GROUPS - 1) / GROUPS;
    float *probs = &a.probs[t * a.experts], *weights = &a.weights[t * a.choices];
    int32_t *ids = &a.ids[t * a.choices];
    const bool forced = read_edits(z, ids);
    auto each_chunk = [&](int group, auto f) {
        if constexpr (WHOLE)
            f(group * CHUNK + lane * PACK);
        else
            for (int j = group * span; j < min((group + 1) * span, chunks); j++) f(j * CHUNK + lane * PACK);
    };
    float x[PACK], rest[GROUPS], y[WHOLE ? GROUPS : 1][PACK];
    auto read_all = [&] {
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            const int first = g * CHUNK + lane * PACK;
            float(&own)[PACK] = y[WHOLE ? g : 0];
            own[0] = own[1] = own[2] = own[3] = -INFINITY;
            if (first < n) load_pack(own, &z.row[first]);
        }
    };

    /* The choice. */
    z.packed |= AT_ONCE;
    if (AT_ONCE) read_all();
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        rest[g] = AT_ONCE ? fmaxf(-INFINITY, largest_of(y[WHOLE ? g : 0])) : -INFINITY; /* not NaN */
        if (!AT_ONCE)
            each_chunk(g, [&](int first) {
                z.read(x, first);
                rest[g] = fmaxf(rest[g], largest_of(x));
            });
    }
    float largest = 0, before = INFINITY, low = 0, high = 0; /* this lane's choices, of the first eight */
    int chosen = -1, n_found = 0;
    for (int k = 0; k < a.choices; k++) {
        float best = rest[0];
#pragma unroll
        for (int g = 1; g < GROUPS; g++) best = fmaxf(best, rest[g]);
        best = quad_max(best);
        if (k == 0) largest = best;
        int at = -1, own = INT32_MAX;
#pragma unroll
        for (int g = GROUPS - 1; g >= 0; g--)
            if (rest[g] == best) at = g;
        const int passed = best == before ? chosen : -1; /* of equal ones, those up to here went before */
        if (at >= 0)
            each_chunk(at, [&](int first) {
                z.read(x, first);
#pragma unroll
                for (int c = PACK - 1; c >= 0; c--)
                    if (x[c] == best && first + c > passed && first + c < own) own = first + c;
            });
        chosen = quad_min(own);
        before = best;
        if (own == chosen && at >= 0) {
            float next = -INFINITY;
            each_chunk(at, [&](int first) {
                if (!WHOLE) z.read(x, first);
#pragma unroll
                for (int c = 0; c < PACK; c++)
                    if (x[c] < best || (x[c] == best && first + c > chosen)) next = fmaxf(next, x[c]);
            });
#pragma unroll
            for (int g = 0; g < GROUPS; g++)
                if (g == at) rest[g] = next;
        }
        if (!(best > -INFINITY)) continue;
        n_found++;
        if (AT_ONCE && k % QUAD == lane) (k < QUAD ? low : high) = best;
        if (!forced && lane == k % QUAD) store(&ids[k], chosen);
    }
    if (n_found < n_chosen && !forced && lane == 0) choose_others(z, ids, n_found, n_chosen);

    /* The softmax over all. */
    float sum[PACK] = {0, 0, 0, 0};
    if (AT_ONCE) read_all();
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        each_chunk(g, [&](int first) {
            if (first >= n) return;
            AT_ONCE ? (void)memcpy(x, y[WHOLE ? g : 0], sizeof x) : z.read(x, first);
            exp_below(x, largest);
#pragma unroll
            for (int c = 0; c < PACK; c++) {
                sum[c] += x[c];
                if (WHOLE)
                    y[WHOLE ? g : 0][c] = x[c];
                else if (first + c < n)
                    store(&probs[first + c], x[c]);
            }
        });
    const float total = quad_sum(sum), inverse = 1.0f / total;
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        each_chunk(g, [&](int first) {
            if (first >= n) return;
#pragma unroll
            for (int c = 0; c < PACK; c++)
                x[c] = WHOLE ? y[WHOLE ? g : 0][c] : first + c < n ? load(&probs[first + c]) : 0;
            divide(x, total, inverse);
            if (a.packed) return store_pack(&probs[first], x);
#pragma unroll
            for (int c = 0; c < PACK; c++)
                if (first + c < n) store(&probs[first + c], x[c]);
        });

    /* Weights: choice k is lane k % 4's. */
    __syncwarp(); /* ids that another lane has stored */
    float shift = largest, divisor = total, kept = 1;
    const bool kept_all = AT_ONCE && n_found == n_chosen && n_chosen <= 2 * QUAD;
    auto value = [&](int k) { return kept_all ? k < QUAD ? low : high : z.one(load(&ids[k])); };
    auto raw = [&](int k) { return exp_f32(value(k) - shift) / divisor; };
    if (a.rule.order == ROUTER_TOPK_SOFTMAX) {
        shift = -INFINITY;
        for (int k = lane; k < n_chosen; k += QUAD) shift = fmaxf(shift, value(k));
        shift = quad_max(shift);
        divisor = 1;
        float part[PACK] = {0, 0, 0, 0};
        for (int from = lane; from < n_chosen; from += CHUNK)
#pragma unroll
            for (int c = 0; c < PACK; c++)
                if (from + c * QUAD < n_chosen) part[c] += raw(from + c * QUAD);
        divisor = (part[0] + part[2]) + (part[1] + part[3]);
        divisor += __shfl_xor_sync(~0u, divisor, 2);
        divisor += __shfl_xor_sync(~0u, divisor, 1);
    } else if (a.rule.renormalize) {
        kept = 0;
        for (int from = 0; from < a.choices; from += QUAD) {
            const float w = from + lane < n_chosen ? raw(from + lane) : 0;
            for (int l = 0; l < min((int)QUAD, a.choices - from); l++)
                kept += __shfl_sync(~0u, w, threadIdx.x % 32 / QUAD * QUAD + l);
        }
    }
    for (int k = lane; k < n_chosen; k += QUAD) store(&weights[k], raw(k) / kept * a.rule.scale);
    if (!EDITED) return;
    __syncwarp();
    if (z.modes && lane == 0) edit_weights(z, weights, ids, n_chosen);
}

/* Calls f with GROUPS and WHOLE as constants. */
template <class F> static void with_groups(int64_t experts, F f) {
    const std::true_type whole;
    if (experts <= CHUNK) return f(std::integral_constant<int, 1>{}, whole);
    if (experts <= 2 * CHUNK) return f(std::integral_constant<int, 2>{}, whole);
    if (experts <= 4 * CHUNK) return f(std::integral_constant<int, 4>{}, whole);
    if (experts <= 8 * CHUNK) return f(std::integral_constant<int, 8>{}, whole);
    if (experts <= 16 * CHUNK) return f(std::integral_constant<int, 16>{}, whole);
    f(std::integral_constant<int, 8>{}, std::false_type{});
}

extern "C" void cuda_route(Queue *q, Tensor probs, Tensor ids, Tensor weights, Tensor logits,
                           RouteEdits edits, RouterRule rule) {
    const Call call(q, "route", probs, ids, weights, logits, edits.modes, edits.values, edits.rows);
    const int64_t tokens = tensor_rows(logits), experts = tensor_columns(logits),
                  choices = tensor_columns(ids);
    check(choices >= 1 && choices <= experts && experts < INT32_MAX / 2, "%lld of %lld experts",
          (long long)choices, (long long)experts);
    const Router a = {reals(probs),
                      reals(weights),
                      ints(ids),
                      reals(logits),
                      reals(edits.values),
                      ints(edits.modes),
                      ints(edits.rows),
                      tokens,
                      (int)experts,
                      (int)choices,
                      rows_are_packed(PACK, experts, logits, probs),
                      rule};
    const unsigned blocks = blocks_for(tokens, TOKENS);
    with_groups(experts, [&](auto groups, auto whole) {
        if (a.edit_modes)
            LAUNCH(call, blocks, THREADS, 0, (route_tokens<groups, whole, true, false>), a);
        else if (whole && a.packed)
            LAUNCH(call, blocks, THREADS, 0, (route_tokens<groups, whole, false, whole>), a);
        else
            LAUNCH(call, blocks, THREADS, 0, (route_tokens<groups, whole, false, false>), a);
    });
}

/* ---- route_bwd; the formulas are kernels/cpu/route.c's ---- */
enum { GRADIENT_THREADS = 256, LANES = 16, ROWS = GRADIENT_THREADS / LANES };

struct RouterGradient {
    float *dlogits;
    const float *dweights, *probs, *logits;
    const int32_t *ids, *edit_modes, *edit_rows;
    int64_t tokens;
    int experts, choices;
    float scale;
    bool weights_are_probs;
};

/* What the edits of one token do to gradients. */
struct EditGradient {
    const int32_t *modes; /* nullptr: nothing */
    int high, low;        /* the experts with the largest and the least logit */
    bool makes_up;
    float mean, ratio;

    __device__ __forceinline__ int mode(int e) const { return modes ? load(&modes[e]) : EDIT_NONE; }
    /* Where the gradient of an expert's edited logit goes. */
    __device__ __forceinline__ int source(int e) const {
        const int how = mode(e);
        return how == EDIT_PROMOTE ? high : how == EDIT_DEMOTE ? low : e;
    }
    /* The gradient of the weight of expert e, as the rule gave it, from the one after the edits. */
    __device__ __forceinline__ float weight(int e, float g) const {
        const int how = mode(e);
        if (how == EDIT_ZERO) return 0;
        if (how == EDIT_ZERO_RENORMALIZE) return makes_up ? mean : 0;
        return makes_up ? fmaf(ratio, g - mean, mean) : g;
    }
};

template <class Id, class P, class G>
DEVICE EditGradient edit_gradient(const RouterGradient &a, int64_t t, Id id, P p, G g) {
    EditGradient s = {nullptr, 0, 0, false, 0, 0};
    const int row = a.edit_modes ? load(&a.edit_rows[t]) : -1;
    if (row < 0) return s;
    s.modes = &a.edit_modes[(int64_t)row * a.experts];
    float largest = -INFINITY, least = INFINITY, all = 0, left = 0, kept = 0;
    for (int e = 0; e < a.experts; e++) {
        const float x = load(&a.logits[t * a.experts + e]);
        if (x > largest) largest = x, s.high = e;
        if (x < least) least = x, s.low = e;
    }
    for (int k = 0; k < a.choices; k++) {
        const int how = s.mode(id(k));
        if (how == EDIT_ZERO) continue;
        all += p(k);
        s.makes_up |= how == EDIT_ZERO_RENORMALIZE;
        if (how == EDIT_ZERO_RENORMALIZE) continue;
        left += p(k);
        kept = fmaf(g(k), p(k), kept);
    }
    s.makes_up &= left > 0;
    if (s.makes_up) s.mean = kept / left, s.ratio = all / left;
    return s;
}

static __global__ void __launch_bounds__(GRADIENT_THREADS) route_gradient(RouterGradient a) {
    const int lane = threadIdx.x % LANES, experts = a.experts, choices = a.choices;
    const int64_t t = (int64_t)blockIdx.x * ROWS + threadIdx.x / LANES;
    if (t >= a.tokens) return;
    float *dlogits = &a.dlogits[t * experts];
    auto id = [&](int k) { return load(&a.ids[t * choices + k]); };
    auto prob = [&](int e) { return load(&a.probs[t * experts + e]); };
    auto p = [&](int k) { return prob(id(k)); };
    auto given = [&](int k) { return a.scale * load(&a.dweights[t * choices + k]); };
    const EditGradient edits = edit_gradient(a, t, id, p, given);
    auto g = [&](int k) { return edits.weight(id(k), given(k)); };
    float sum = 0;
    if (a.weights_are_probs) {
        for (int k = 0; k < choices; k++) sum = fmaf(p(k), g(k), sum);
        for (int e = lane; e < experts; e += LANES) {
            float d = load(&dlogits[e]);
            for (int k = 0; k < choices; k++)
                if (edits.source(id(k)) == e) d = fmaf(p(k), g(k), d);
            const bool takes_others = edits.modes && (e == edits.high || e == edits.low);
            for (int i = takes_others ? 0 : e; i < (takes_others ? experts : e + 1); i++)
                if (edits.source(i) == e) d = fmaf(-prob(i), sum, d);
            store(&dlogits[e], d);
        }
        return;
    }
    for (int k = 0; k < choices; k++) sum += p(k);
    auto chosen = [&](int k) { /* the gradient of choice k's edited logit */
                               const float v = p(k) / sum, own = g(k);
                               float d = 0;
                               for (int j = 0; j < choices; j++) d = fmaf(v * (p(j) / sum), own - g(j), d);
                               return d;
    };
    if (edits.modes) { /* several choices may have one source: in order, by the lane of the source */
        for (int k = 0; k < choices; k++) {
            const int e = edits.source(id(k));
            if (e % LANES == lane) store(&dlogits[e], load(&dlogits[e]) + chosen(k));
        }
        return;
    }
    for (int k = lane; k < choices; k += LANES) {
        float *to = &dlogits[id(k)];
        store(to, load(to) + chosen(k));
    }
}

extern "C" void cuda_route_bwd(Queue *q, Tensor dlogits, Tensor dweights, Tensor probs, Tensor ids,
                               Tensor weights, Tensor logits, RouteEdits edits, RouterRule rule) {
    const Call call(q, "route_bwd", dlogits, dweights, probs, ids, weights, logits, edits.modes, edits.rows);
    const RouterGradient a = {reals(dlogits),
                              reals(dweights),
                              reals(probs),
                              reals(logits),
                              ints(ids),
                              ints(edits.modes),
                              ints(edits.rows),
                              tensor_rows(probs),
                              (int)tensor_columns(probs),
                              (int)tensor_columns(ids),
                              rule.scale,
                              rule.order == ROUTER_SOFTMAX_TOPK && !rule.renormalize};
    LAUNCH(call, blocks_for(a.tokens, ROWS), GRADIENT_THREADS, 0, route_gradient, a);
}

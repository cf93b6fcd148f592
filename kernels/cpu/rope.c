/* Rotary position embedding (arXiv 2104.09864): pairs of head elements turned by an angle that grows with
 * the position.
 *
 * The angle positions[t] * frequencies[i] is rounded to f32, as the reference implementations do; its sine
 * and cosine are computed in f64 once per token and serve all heads. The backward turns the other way. */
#include "../math.h"
#include "lanes.h"

enum { ROPE_MOST = 512 }; /* pairs per head */

typedef struct {
    real sine[ROPE_MOST], cosine[ROPE_MOST];
} Turn;

typedef struct {
    Tensor positions, frequencies;
    real scale, sign; /* sign: 1 forward, -1 backward */
    RopeKind kind;
} Rope;

static void turn_of_position(Turn *turn, const Rope *rope, int64_t t) {
    int64_t n = tensor_count(rope->frequencies);
    real frequency[ROPE_MOST];
    read_piece(frequency, rope->frequencies, 0, n);
    float position = (float)ints(rope->positions)[t];
    for (int64_t i = 0; i < n; i++) {
        double s, c;
        sincos_f64((double)(position * (float)frequency[i]), &s, &c);
        turn->sine[i] = (real)s * rope->scale * rope->sign;
        turn->cosine[i] = (real)c * rope->scale;
    }
}

/* The first 2n elements of a head, in place. */
static void turn_head(real *x, const Turn *turn, int64_t n, RopeKind kind) {
    int64_t step = kind == ROPE_HALVES ? 1 : 2, other = kind == ROPE_HALVES ? n : 1;
    for (int64_t i = 0; i < n; i++) {
        real a = x[i * step], b = x[i * step + other];
        x[i * step] = fma_real(-b, turn->sine[i], a * turn->cosine[i]);
        x[i * step + other] = fma_real(a, turn->sine[i], b * turn->cosine[i]);
    }
}

/* y = turned x, or y += turned x. */
static void turn_all(Tensor y, Tensor x, const Rope *rope, bool adds) {
    int64_t n = tensor_count(rope->frequencies), tokens = x.shape[0], size = tensor_columns(x);
    int64_t heads = tokens ? tensor_rows(x) / tokens : 0;
    check(2 * n <= size && n <= ROPE_MOST, "%lld frequencies for heads of %lld", (long long)n,
          (long long)size);
    check(tensor_count(rope->positions) == tokens && tensor_count(y) == tensor_count(x), "%lld tokens",
          (long long)tokens);
#pragma omp parallel for schedule(static) if (tokens * heads * size > WORTH_THREADS)
    for (int64_t t = 0; t < tokens; t++) {
        Turn turn;
        real head[2 * ROPE_MOST], sum[2 * ROPE_MOST];
        turn_of_position(&turn, rope, t);
        for (int64_t h = 0; h < heads; h++) {
            int64_t first = (t * heads + h) * size;
            read_piece(head, x, first, 2 * n);
            turn_head(head, &turn, n, rope->kind);
            if (adds) {
                read_piece(sum, y, first, 2 * n);
                for (int64_t i = 0; i < 2 * n; i++) head[i] += sum[i];
            }
            write_piece(y, first, head, 2 * n);
            for (int64_t c = 2 * n; c < size && (adds || y.data != x.data); c += PIECE) {
                int64_t m = least(PIECE, size - c);
                read_piece(head, x, first + c, m);
                if (adds) read_piece(sum, y, first + c, m);
                for (int64_t i = 0; adds && i < m; i++) head[i] += sum[i];
                write_piece(y, first + c, head, m);
            }
        }
    }
}

void CPU_OP(rope)(Queue *q, Tensor y, Tensor x, Tensor positions, Tensor frequencies, float scale,
                  RopeKind kind) {
    if (q->failed_op) return;
    turn_all(y, x, &(Rope){positions, frequencies, (real)scale, 1, kind}, false);
}

void CPU_OP(rope_bwd)(Queue *q, Tensor dx, Tensor dy, Tensor positions, Tensor frequencies, float scale,
                      RopeKind kind) {
    if (q->failed_op) return;
    turn_all(dx, dy, &(Rope){positions, frequencies, (real)scale, -1, kind}, true);
}

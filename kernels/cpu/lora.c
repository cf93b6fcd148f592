/* Low-rank updates of chosen experts: added to what the frozen products made, and taken back.
 *
 * Work goes by blocks of rows of one cell (forward, g and u), by tokens (dx of tokens), and by tiles of a
 * cell's A or B (their gradients): a tile walks the examples in order and adds each to its binary counter, so
 * no sum depends on how examples are packed, split or shared among threads. u and g of a row are computed
 * from the row alone. */
#include "lanes.h"

enum { ROW_BLOCK = 32, SUM_ROWS = 256, TILE_RANKS = 8, TILE = TILE_RANKS * PIECE };

typedef struct {
    int64_t n_cells, rank, in, out;
    int64_t n_choices;
} Shape;

static Shape shape_of(Lora lora, MoePlan plan) {
    Shape s = {lora.a.shape[0], lora.a.shape[1], lora.a.shape[2], lora.b.shape[1], tensor_columns(plan.rows)};
    check(lora.b.shape[0] == s.n_cells && lora.b.shape[2] == s.rank && s.rank <= LORA_MOST_RANK &&
              tensor_count(lora.experts) == s.n_cells && tensor_count(lora.scales) == s.n_cells,
          "%lld cells, a of rank %lld, b of rank %lld", (long long)s.n_cells, (long long)s.rank,
          (long long)lora.b.shape[2]);
    return s;
}

/* The rows [*first, return value) of cell n's expert. */
static int64_t cell_rows(Lora lora, MoePlan plan, int64_t n, int64_t *first) {
    int64_t expert = ints(lora.experts)[n];
    check(expert >= 0 && expert + 1 < tensor_count(plan.offsets), "expert %lld", (long long)expert);
    *first = ints(plan.offsets)[expert];
    return ints(plan.offsets)[expert + 1];
}

/* Up to ROW_BLOCK rows of one cell. */
typedef struct {
    int64_t cell, first, end;
} Block;

static int64_t count_blocks(Lora lora, MoePlan plan, int64_t n_cells) {
    int64_t n_blocks = 0, first;
    for (int64_t n = 0; n < n_cells; n++) {
        int64_t end = cell_rows(lora, plan, n, &first);
        n_blocks += (end - first + ROW_BLOCK - 1) / ROW_BLOCK;
    }
    return n_blocks;
}

static Block block_at(Lora lora, MoePlan plan, int64_t i) {
    Block b = {0};
    for (;; b.cell++) {
        int64_t end = cell_rows(lora, plan, b.cell, &b.first);
        int64_t n_blocks = (end - b.first + ROW_BLOCK - 1) / ROW_BLOCK;
        if (i < n_blocks) {
            b.first += i * ROW_BLOCK;
            b.end = least(end, b.first + ROW_BLOCK);
            return b;
        }
        i -= n_blocks;
    }
}

static int64_t token_of(MoePlan plan, int64_t n_choices, int64_t row) {
    return ints(plan.pairs)[row] / n_choices;
}

/* u[r] = a[r,:] . x[row,:] */
static void project_row(real *u, Tensor x, int64_t row, const real *a, const Shape *s) {
    Lanes sums[LORA_MOST_RANK];
    real piece[PIECE];
    memset(sums, 0, (size_t)s->rank * sizeof *sums);
    for (int64_t c = 0; c < s->in; c += PIECE) {
        int64_t n = least(PIECE, s->in - c);
        read_piece(piece, x, row * s->in + c, n);
        for (int64_t r = 0; r < s->rank; r++) lanes_dot(&sums[r], piece, a + r * s->in + c, n);
    }
    for (int64_t r = 0; r < s->rank; r++) u[r] = lanes_total(&sums[r]);
}

/* to[r][i] = b[j + i][r] */
static void transpose_piece(real *to, const real *b, int64_t rank, int64_t j, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < rank; r++) to[r * PIECE + i] = b[(j + i) * rank + r];
}

/* sum[i] = sum over r in order of u[r] rows[r * stride + i] */
static void combine_rows(real *sum, const real *u, const real *rows, int64_t stride, int64_t rank,
                         int64_t n) {
    for (int64_t i = 0; i < n; i++) sum[i] = 0;
    for (int64_t r = 0; r < rank; r++)
        for (int64_t i = 0; i < n; i++) sum[i] = fma_real(u[r], rows[r * stride + i], sum[i]);
}

/* ---- forward ---- */
static void forward_block(Queue *q, Tensor y, Tensor x, Lora lora, MoePlan plan, const Shape *s, Block b) {
    real *u = cpu_scratch(q), *columns = u + ROW_BLOCK * LORA_MOST_RANK;
    const real *weights_a = reals(lora.a) + b.cell * s->rank * s->in;
    const real *weights_b = reals(lora.b) + b.cell * s->out * s->rank;
    real scale = reals(lora.scales)[b.cell], sum[PIECE], old[PIECE];
    for (int64_t m = b.first; m < b.end; m++)
        project_row(u + (m - b.first) * s->rank, x, lora.down ? m : token_of(plan, s->n_choices, m),
                    weights_a, s);
    for (int64_t j = 0; j < s->out; j += PIECE) {
        int64_t n = least(PIECE, s->out - j);
        transpose_piece(columns, weights_b, s->rank, j, n);
        for (int64_t m = b.first; m < b.end; m++) {
            int64_t at = m * tensor_columns(y) + lora.column + j;
            combine_rows(sum, u + (m - b.first) * s->rank, columns, PIECE, s->rank, n);
            read_piece(old, y, at, n);
            for (int64_t i = 0; i < n; i++) old[i] = fma_real(scale, sum[i], old[i]);
            write_piece(y, at, old, n);
        }
    }
}

void CPU_OP(lora)(Queue *q, Tensor y, Tensor x, Lora lora, MoePlan plan) {
    if (q->failed_op) return;
    Shape s = shape_of(lora, plan);
    check(tensor_columns(x) == s.in && lora.column + s.out <= tensor_columns(y),
          "%lld to %lld of %lld + %lld", (long long)s.in, (long long)s.out, (long long)lora.column,
          (long long)tensor_columns(y));
    int64_t n_blocks = count_blocks(lora, plan, s.n_cells);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < n_blocks; i++) forward_block(q, y, x, lora, plan, &s, block_at(lora, plan, i));
}

/* ---- backward: g and u of the rows, into scratch [M,2R] ---- */
/* g[r] = sum over j of dy[row, column + j] b[j,r] */
static void pull_row(real *g, Tensor dy, int64_t row, const real *b, const Lora *lora, const Shape *s) {
    real piece[PIECE], part[LORA_MOST_RANK];
    for (int64_t r = 0; r < s->rank; r++) g[r] = 0;
    for (int64_t j = 0; j < s->out; j += PIECE) {
        int64_t n = least(PIECE, s->out - j);
        read_piece(piece, dy, row * tensor_columns(dy) + lora->column + j, n);
        for (int64_t r = 0; r < s->rank; r++) part[r] = 0;
        for (int64_t i = 0; i < n; i++)
            for (int64_t r = 0; r < s->rank; r++)
                part[r] = fma_real(piece[i], b[(j + i) * s->rank + r], part[r]);
        for (int64_t r = 0; r < s->rank; r++) g[r] += part[r];
    }
}

static void backward_block(Tensor scratch, Tensor dy, Tensor x, Lora lora, MoePlan plan, const Shape *s,
                           Block b) {
    const real *weights_a = reals(lora.a) + b.cell * s->rank * s->in;
    const real *weights_b = reals(lora.b) + b.cell * s->out * s->rank;
    for (int64_t m = b.first; m < b.end; m++) {
        int64_t token = token_of(plan, s->n_choices, m);
        real *g = reals(scratch) + m * 2 * s->rank;
        pull_row(g, dy, lora.down ? token : m, weights_b, &lora, s);
        project_row(g + s->rank, x, lora.down ? m : token, weights_a, s);
    }
}

/* ---- backward: dx ---- */
/* sum[i] += scale times g a, columns [c, c + n) of a row */
static void add_input_grad(real *sum, Tensor scratch, int64_t row, int64_t cell, const Lora *lora,
                           const Shape *s, int64_t c, int64_t n) {
    real part[PIECE], scale = reals(lora->scales)[cell];
    combine_rows(part, reals(scratch) + row * 2 * s->rank, reals(lora->a) + cell * s->rank * s->in + c, s->in,
                 s->rank, n);
    for (int64_t i = 0; i < n; i++) sum[i] += scale * part[i]; /* rows stand for themselves: no fma */
}

static void row_input_grad(Tensor dx, Tensor scratch, Lora lora, const Shape *s, Block b) {
    real sum[PIECE], old[PIECE];
    for (int64_t m = b.first; m < b.end; m++)
        for (int64_t c = 0; c < s->in; c += PIECE) {
            int64_t n = least(PIECE, s->in - c);
            memset(sum, 0, sizeof sum);
            add_input_grad(sum, scratch, m, b.cell, &lora, s, c, n);
            read_piece(old, dx, m * s->in + c, n);
            for (int64_t i = 0; i < n; i++) old[i] += sum[i];
            write_piece(dx, m * s->in + c, old, n);
        }
}

/* The cell whose rows `row` is one of; -1: its expert has none. */
static int64_t cell_of(Lora lora, MoePlan plan, int64_t n_cells, int64_t row) {
    int64_t low = 0, high = n_cells, first;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        cell_rows(lora, plan, middle, &first);
        *(first <= row ? &low : &high) = middle;
    }
    if (n_cells == 0) return -1;
    int64_t end = cell_rows(lora, plan, low, &first);
    return first <= row && row < end ? low : -1;
}

static void token_input_grad(Tensor dx, Tensor scratch, Lora lora, MoePlan plan, const Shape *s, int64_t t) {
    const int32_t *rows = ints(plan.rows) + t * s->n_choices;
    real sum[PIECE], old[PIECE];
    bool adapted = false;
    for (int64_t k = 0; k < s->n_choices; k++)
        adapted = adapted || cell_of(lora, plan, s->n_cells, rows[k]) >= 0;
    for (int64_t c = 0; adapted && c < s->in; c += PIECE) {
        int64_t n = least(PIECE, s->in - c);
        memset(sum, 0, sizeof sum);
        for (int64_t k = 0; k < s->n_choices; k++) {
            int64_t cell = cell_of(lora, plan, s->n_cells, rows[k]);
            if (cell >= 0) add_input_grad(sum, scratch, rows[k], cell, &lora, s, c, n);
        }
        read_piece(old, dx, t * s->in + c, n);
        for (int64_t i = 0; i < n; i++) old[i] += sum[i];
        write_piece(dx, t * s->in + c, old, n);
    }
}

/* ---- backward: gradients of A and B, an example at a time ---- */
/* Everything that a tile reads. */
typedef struct {
    LoraSums sums;
    Tensor scratch, dy, x, weights;
    Lora lora;
    MoePlan plan;
    Shape s;
    int64_t a_tiles, b_rows, b_tiles; /* of a cell; b_rows: of B, in one tile */
} Grads;

/* A part of A, ranks [first, first + n) and columns [c, c + width), or rows of B, all ranks. */
typedef struct {
    int64_t cell, first, n, c, width;
    bool of_b;
} TilePart;

static TilePart tile_at(const Grads *g, int64_t i) {
    int64_t tiles = g->a_tiles + g->b_tiles;
    TilePart t = {.cell = i / tiles};
    i %= tiles;
    t.of_b = i >= g->a_tiles;
    if (t.of_b) {
        t.first = (i - g->a_tiles) * g->b_rows;
        t.n = least(g->b_rows, g->s.out - t.first);
        t.width = g->s.rank;
        return t;
    }
    int64_t pieces = (g->s.in + PIECE - 1) / PIECE;
    t.first = i / pieces * TILE_RANKS;
    t.n = least(TILE_RANKS, g->s.rank - t.first);
    t.c = i % pieces * PIECE;
    t.width = least(PIECE, g->s.in - t.c);
    return t;
}

/* sum += the outer product of row m. */
static void add_row(real *sum, const Grads *g, const TilePart *t, int64_t m) {
    real left[PIECE], right[PIECE];
    int64_t pair = ints(g->plan.pairs)[m], token = pair / g->s.n_choices;
    real scale = reals(g->lora.scales)[t->cell];
    const real *row = reals(g->scratch) + m * 2 * g->s.rank;
    if (g->lora.down) scale *= reals(g->weights)[pair];
    if (t->of_b) {
        int64_t at = g->lora.down ? token : m;
        read_piece(left, g->dy, at * tensor_columns(g->dy) + g->lora.column + t->first, t->n);
        memcpy(right, row + g->s.rank, (size_t)t->width * sizeof *right);
    } else {
        memcpy(left, row + t->first, (size_t)t->n * sizeof *left);
        read_piece(right, g->x, (g->lora.down ? m : token) * g->s.in + t->c, t->width);
    }
    for (int64_t k = 0; k < t->n; k++) {
        real factor = scale * left[k];
        for (int64_t i = 0; i < t->width; i++)
            sum[k * t->width + i] = fma_real(factor, right[i], sum[k * t->width + i]);
    }
}

/* An example's sums into the counter. */
static void push_example(real *sum, const Grads *g, const TilePart *t, int64_t example) {
    Tensor slots = t->of_b ? g->sums.b : g->sums.a;
    int64_t columns = t->of_b ? g->s.rank : g->s.in, rows = t->of_b ? g->s.out : g->s.rank;
    int64_t size = g->s.n_cells * rows * columns, slot = 0;
    for (; example >> slot & 1; slot++) continue;
    check(slot < slots.shape[0], "example %lld, %lld slots", (long long)example, (long long)slots.shape[0]);
    for (int64_t k = 0; k < t->n; k++) {
        real *at = reals(slots) + (t->cell * rows + t->first + k) * columns + t->c;
        real *row = sum + k * t->width;
        for (int64_t s = 0; s < slot; s++)
            for (int64_t i = 0; i < t->width; i++) row[i] = at[s * size + i] + row[i];
        memcpy(at + slot * size, row, (size_t)t->width * sizeof *row);
    }
}

static void sum_tile(Queue *q, const Grads *g, TilePart t) {
    if (!tensor_present(t.of_b ? g->sums.b : g->sums.a)) return;
    int64_t m, end = cell_rows(g->lora, g->plan, t.cell, &m);
    int64_t n_examples = tensor_count(g->sums.offsets) - 1, size = t.n * t.width;
    real *sum = cpu_scratch(q), *part = sum + TILE;
    for (int64_t p = 0; p < n_examples; p++) {
        int64_t last = ints(g->sums.offsets)[p + 1];
        memset(sum, 0, (size_t)size * sizeof *sum);
        while (m < end && token_of(g->plan, g->s.n_choices, m) < last) {
            memset(part, 0, (size_t)size * sizeof *part);
            for (int64_t n = 0; n < SUM_ROWS && m < end && token_of(g->plan, g->s.n_choices, m) < last;
                 n++, m++)
                add_row(part, g, &t, m);
            for (int64_t i = 0; i < size; i++) sum[i] += part[i];
        }
        push_example(sum, g, &t, g->sums.first + p);
    }
}

static void sum_examples(Queue *q, Grads g) {
    g.b_rows = least(PIECE, TILE / g.s.rank);
    g.b_tiles = (g.s.out + g.b_rows - 1) / g.b_rows;
    g.a_tiles = (g.s.rank + TILE_RANKS - 1) / TILE_RANKS * ((g.s.in + PIECE - 1) / PIECE);
    int64_t n_tiles = g.s.n_cells * (g.a_tiles + g.b_tiles);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < n_tiles; i++) sum_tile(q, &g, tile_at(&g, i));
}

void CPU_OP(lora_bwd)(Queue *q, Tensor dx, LoraSums sums, Tensor scratch, Tensor dy, Tensor x, Lora lora,
                      Tensor weights, MoePlan plan) {
    if (q->failed_op) return;
    Shape s = shape_of(lora, plan);
    check(tensor_columns(x) == s.in && lora.column + s.out <= tensor_columns(dy) &&
              tensor_columns(scratch) == 2 * s.rank,
          "%lld to %lld of %lld, scratch of %lld", (long long)s.in, (long long)s.out,
          (long long)tensor_columns(dy), (long long)tensor_columns(scratch));
    int64_t n_blocks = count_blocks(lora, plan, s.n_cells), n_tokens = tensor_rows(plan.rows);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < n_blocks; i++)
        backward_block(scratch, dy, x, lora, plan, &s, block_at(lora, plan, i));
    if (tensor_present(dx) && lora.down) {
#pragma omp parallel for schedule(dynamic)
        for (int64_t i = 0; i < n_blocks; i++) row_input_grad(dx, scratch, lora, &s, block_at(lora, plan, i));
    } else if (tensor_present(dx)) {
#pragma omp parallel for schedule(static) if (n_tokens * s.in > WORTH_THREADS)
        for (int64_t t = 0; t < n_tokens; t++) token_input_grad(dx, scratch, lora, plan, &s, t);
    }
    if (tensor_present(sums.a) || tensor_present(sums.b))
        sum_examples(q, (Grads){.sums = sums,
                                .scratch = scratch,
                                .dy = dy,
                                .x = x,
                                .weights = weights,
                                .lora = lora,
                                .plan = plan,
                                .s = s});
}

/* Products of bf16 pairs on AMX tiles: 16 rows by 16 columns by 16 pairs an instruction (tdpbf16ps).
 *
 * What the instruction computes, and so what every sum of this table is: for each 16 pairs of depth, in
 * order,
 *     even = 0; for each pair, in order: even = fma(x[0], w[0], even)
 *     odd  = 0; for each pair, in order: odd  = fma(x[1], w[1], odd)
 *     s = s + (even + odd)
 * with denormals as zero (tests/kernels/test_gemm.c makes the same sums in plain C). Pairs that are missing
 * at the end count as zero. Which operand is left does not matter, so few rows take the weights as they lie
 * in memory, without a packed copy. */
#ifndef GATETAPE_GEMM_AMX_H
#define GATETAPE_GEMM_AMX_H
#include "gemm_vector.h"

enum { AMX_SIDE = 16 };
#if HAVE_AMX

/* Tiles 0 to 3 are sums, 4 and 5 left operands, 6 and 7 right ones. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileShapes;

static void amx_shape(TileShapes *shapes, int tile, int rows, int words) {
    shapes->rows[tile] = (uint8_t)rows;
    shapes->row_bytes[tile] = (uint16_t)(4 * words);
}

/* sums[m][32] from rows[m], GEMM_BLOCK words apart, and panel[n_words][32]; m up to 32, n_words a multiple of
 * 16. */
static void amx_tile(int m, const float *rows, const float *panel, int n_words, float *sums, int64_t ld_sums,
                     bool first) {
    const int upper = m < AMX_SIDE ? m : AMX_SIDE, lower = m - upper;
    const size_t sum_stride = (size_t)ld_sums * sizeof *sums, panel_stride = TILE_COLUMNS * sizeof *panel;
    TileShapes shapes = {.palette = 1};
    amx_shape(&shapes, 0, upper, AMX_SIDE), amx_shape(&shapes, 1, upper, AMX_SIDE);
    amx_shape(&shapes, 4, upper, AMX_SIDE);
    if (lower) amx_shape(&shapes, 2, lower, AMX_SIDE), amx_shape(&shapes, 3, lower, AMX_SIDE);
    if (lower) amx_shape(&shapes, 5, lower, AMX_SIDE);
    amx_shape(&shapes, 6, AMX_SIDE, AMX_SIDE), amx_shape(&shapes, 7, AMX_SIDE, AMX_SIDE);
    _tile_loadconfig(&shapes); /* zeroes all tiles */
    float *below = sums + AMX_SIDE * ld_sums;
    if (!first) {
        _tile_loadd(0, sums, sum_stride);
        _tile_loadd(1, sums + AMX_SIDE, sum_stride);
        if (lower) _tile_loadd(2, below, sum_stride);
        if (lower) _tile_loadd(3, below + AMX_SIDE, sum_stride);
    }
    for (int k = 0; k < n_words; k += AMX_SIDE) {
        _tile_loadd(4, rows + k, GEMM_BLOCK * sizeof *rows);
        _tile_loadd(6, panel + k * TILE_COLUMNS, panel_stride);
        _tile_loadd(7, panel + k * TILE_COLUMNS + AMX_SIDE, panel_stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (!lower) continue;
        _tile_loadd(5, rows + AMX_SIDE * GEMM_BLOCK + k, GEMM_BLOCK * sizeof *rows);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, sum_stride);
    _tile_stored(1, sums + AMX_SIDE, sum_stride);
    if (lower) _tile_stored(2, below, sum_stride);
    if (lower) _tile_stored(3, below + AMX_SIDE, sum_stride);
}

/* sums[n_rows][n_j] for up to 16 rows, which lie as words[n_k][16]; w is read where it is. */
static void amx_few(int64_t n_rows, const float *words, const char *w, int64_t ldw, int n_j, int n_k,
                    float *sums, int64_t ld_sums, bool first) {
    float turned[AMX_SIDE][AMX_SIDE]; /* [column of y][row] */
    const int whole = n_k / AMX_SIDE * AMX_SIDE, rest = n_k - whole;
    const size_t w_stride = (size_t)ldw * sizeof(float), side = AMX_SIDE * sizeof(float);
    if (!first)
        for (int j = 0; j < n_j; j++)
            for (int64_t r = 0; r < n_rows; r++) turned[j][r] = sums[r * ld_sums + j];
    for (int part = 0; part < 2; part++) {
        const int begin = part ? whole : 0, end = part ? n_k : whole, depth = part ? rest : AMX_SIDE;
        if (begin == end) continue;
        TileShapes shapes = {.palette = 1};
        amx_shape(&shapes, 0, n_j, AMX_SIDE);
        amx_shape(&shapes, 4, n_j, depth);
        amx_shape(&shapes, 6, depth, AMX_SIDE);
        _tile_loadconfig(&shapes);
        if (!first || part > 0) _tile_loadd(0, turned, side);
        if (first && part > 0 && whole == 0) _tile_zero(0);
        for (int k = begin; k < end; k += AMX_SIDE) {

            _tile_loadd(4, w + 4 * k, w_stride);
            _tile_loadd(6, words + k * AMX_SIDE, side);
            _tile_dpbf16ps(0, 4, 6);
        }
        _tile_stored(0, turned, side);
    }
    for (int64_t r = 0; r < n_rows; r++)
        for (int j = 0; j < n_j; j++) sums[r * ld_sums + j] = turned[j][r];
}

static void amx_end(void) { _tile_release(); }

#else
static void amx_tile(int m, const float *rows, const float *panel, int n_words, float *sums, int64_t ld_sums,
                     bool first) {
    (void)m, (void)rows, (void)panel, (void)n_words, (void)sums, (void)ld_sums, (void)first;
}
static void amx_few(int64_t n_rows, const float *words, const char *w, int64_t ldw, int n_j, int n_k,
                    float *sums, int64_t ld_sums, bool first) {
    (void)n_rows, (void)words, (void)w, (void)ldw, (void)n_j, (void)n_k, (void)sums, (void)ld_sums,
        (void)first;
}
static void amx_end(void) {}
#endif
#endif

/* exp, log, sigmoid, sine and cosine with the same bits on every machine: plain arithmetic and explicit
 * fma, no libm whose versions differ. Straight-line code without branches, so loops over them become
 * vector code.
 *
 * Largest errors (tests/kernels/test_math.c measures them): exp 1 ulp, log 1 ulp, sigmoid 2.5 ulp, sine
 * and cosine 1.6 ulp of f64 for |x| < 2^30. exp gives 0 and infinity where the format ends and keeps
 * subnormals; NaN stays NaN. */
#ifndef GATETAPE_MATH_H
#define GATETAPE_MATH_H
#include <math.h>
#include <stdint.h>
#include <string.h>

/* Kernels of the GPU call these too. */
#ifdef __CUDACC__
#define MATH static inline __host__ __device__
#else
#define MATH static inline
#endif

MATH uint32_t f32_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

MATH float f32_from_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

MATH uint64_t f64_bits(double x) {
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

MATH double f64_from_bits(uint64_t u) {
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* ---- exp: x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) by a polynomial, times 2^n in two steps ---- */
MATH float exp_f32(float x) {
    const float magic = 0x1.8p23f; /* adding it rounds to an integer, which then stands in the low bits */
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    float t = fmaf(x, 0x1.715476p0f, magic), n = t - magic;
    float r = fmaf(n, -0x1.62e43p-1f, x);
    r = fmaf(n, 0x1.05c61p-29f, r);
    float p = 1.9875691500e-4f; /* Cephes expf */
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    int32_t whole = (int32_t)(f32_bits(t) - f32_bits(magic)), half = whole >> 1;
    float scale_a = f32_from_bits((uint32_t)(half + 127) << 23);
    float scale_b = f32_from_bits((uint32_t)(whole - half + 127) << 23);
    return p * scale_a * scale_b;
}

MATH double exp_f64(double x) {
    const double magic = 0x1.8p52;
    x = x < -746.0 ? -746.0 : x;
    x = x > 710.0 ? 710.0 : x;
    double t = fma(x, 0x1.71547652b82fep0, magic), n = t - magic;
    double r = fma(n, -0x1.62e42fefa39efp-1, x);
    r = fma(n, -0x1.abc9e3b39803fp-56, r);
    double p = 0x1.6124613a86d09p-33; /* 1/13!, 1/12!, ...: the rest is below 2^-57 */
    p = fma(p, r, 0x1.1eed8eff8d898p-29);
    p = fma(p, r, 0x1.ae64567f544e4p-26);
    p = fma(p, r, 0x1.27e4fb7789f5cp-22);
    p = fma(p, r, 0x1.71de3a556c734p-19);
    p = fma(p, r, 0x1.a01a01a01a01ap-16);
    p = fma(p, r, 0x1.a01a01a01a01ap-13);
    p = fma(p, r, 0x1.6c16c16c16c17p-10);
    p = fma(p, r, 0x1.1111111111111p-7);
    p = fma(p, r, 0x1.5555555555555p-5);
    p = fma(p, r, 0x1.5555555555555p-3);
    p = fma(p, r, 0.5);
    p = fma(p, r * r, r) + 1.0;
    int64_t whole = (int64_t)(f64_bits(t) - f64_bits(magic)), half = whole >> 1;
    double scale_a = f64_from_bits((uint64_t)(half + 1023) << 52);
    double scale_b = f64_from_bits((uint64_t)(whole - half + 1023) << 52);
    return p * scale_a * scale_b;
}

/* ---- log: x = 2^k m, m in [sqrt(1/2), sqrt(2)); log(m) in s = (m-1)/(m+1), FreeBSD msun's coefficients ----
 * Zero gives -infinity, negative numbers and NaN give NaN. */
MATH float log_f32(float x) {
    float big = x < 0x1p-126f ? x * 0x1p25f : x; /* subnormals become ordinary */
    uint32_t u = f32_bits(big) + (0x3f800000u - 0x3f3504f3u);
    float k = (float)((int32_t)(u >> 23) - 127 - (x < 0x1p-126f ? 25 : 0));
    float f = f32_from_bits((u & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    float s = f / (2.0f + f), z = s * s, w = z * z;
    float even = w * fmaf(w, 0x1.f13c4cp-3f, 0x1.999c26p-2f),
          odd = z * fmaf(w, 0x1.23d3dcp-2f, 0x1.555554p-1f);
    float h = 0.5f * f * f;
    float y = fmaf(s, h + (even + odd), k * 9.0580006145e-06f) - h + f + k * 6.9313812256e-01f;
    y = x == 0.0f ? -INFINITY : y;
    y = x == INFINITY ? x : y;
    return x < 0.0f || x != x ? (float)NAN : y;
}

MATH double log_f64(double x) {
    double big = x < 0x1p-1022 ? x * 0x1p54 : x;
    uint64_t u = f64_bits(big) + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu);
    double k = (double)((int64_t)(u >> 52) - 1023 - (x < 0x1p-1022 ? 54 : 0));
    double f = f64_from_bits((u & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu) - 1.0;
    double s = f / (2.0 + f), z = s * s, w = z * z;
    double even =
        w * fma(w, fma(w, 1.531383769920937332e-01, 2.222219843214978396e-01), 3.999999999940941908e-01);
    double odd = 1.479819860511658591e-01;
    odd = fma(w, odd, 1.818357216161805012e-01);
    odd = fma(w, odd, 2.857142874366239149e-01);
    odd = z * fma(w, odd, 6.666666666666735130e-01);
    double h = 0.5 * f * f;
    double y =
        fma(s, h + (even + odd), k * 1.90821492927058770002e-10) - h + f + k * 6.93147180369123816490e-01;
    y = x == 0.0 ? -(double)INFINITY : y;
    y = x == (double)INFINITY ? x : y;
    return x < 0.0 || x != x ? (double)NAN : y;
}

/* 1 / (1 + exp(-x)) */
MATH float sigmoid_f32(float x) { return 1.0f / (1.0f + exp_f32(-x)); }
MATH double sigmoid_f64(double x) { return 1.0 / (1.0 + exp_f64(-x)); }

/* ---- sine and cosine together: x = n pi/2 + r, |r| <= pi/4, pi/2 in three parts; msun's polynomials ---- */
MATH void sincos_f64(double x, double *sine, double *cosine) {
    const double magic = 0x1.8p52;
    double t = fma(x, 0x1.45f306dc9c883p-1, magic), n = t - magic;
    double r = fma(n, -0x1.921fb54442d18p0, x);
    r = fma(n, -0x1.1a62633145c07p-54, r);
    r = fma(n, 0x1.f1976b7ed8fbcp-110, r);
    double z = r * r;
    double s = fma(z, 1.58969099521155010221e-10, -2.50507602534068634195e-08);
    s = fma(z, s, 2.75573137070700676789e-06);
    s = fma(z, s, -1.98412698298579493134e-04);
    s = fma(z, s, 8.33333333332248946124e-03);
    s = fma(z, s, -1.66666666666666324348e-01);
    s = fma(z * r, s, r);
    double c = fma(z, -1.13596475577881948265e-11, 2.08757232129817482790e-09);
    c = fma(z, c, -2.75573143513906633035e-07);
    c = fma(z, c, 2.48015872894767294178e-05);
    c = fma(z, c, -1.38888888888741095749e-03);
    c = fma(z, c, 4.16666666666666019037e-02);
    double half = 0.5 * z, w = 1.0 - half;
    c = w + fma(z * z, c, (1.0 - w) - half);
    uint64_t quadrant = f64_bits(t); /* its two low bits are n's */
    double a = quadrant & 1 ? c : s, b = quadrant & 1 ? s : c;
    *sine = quadrant & 2 ? -a : a;
    *cosine = (quadrant + 1) & 2 ? -b : b;
}

/* In the precision of the table that includes this. */
#ifdef CPU_DOUBLE
MATH double exp_real(double x) { return exp_f64(x); }
MATH double log_real(double x) { return log_f64(x); }
MATH double sigmoid_real(double x) { return sigmoid_f64(x); }
#else
MATH float exp_real(float x) { return exp_f32(x); }
MATH float log_real(float x) { return log_f32(x); }
MATH float sigmoid_real(float x) { return sigmoid_f32(x); }
#endif

#endif

/* Every wrapper of kernels/cuda/ptx.cuh and hopper.cuh against what its comment says, in plain C: on the
 * emulated device (the host bodies), and by the same program on a GPU (the instructions). So the two agree,
 * bit for bit where inputs are exact, within the bound of rounding else. Without a GPU, or for Hopper's on an
 * older one: skipped. */
#include "hopper_product.cuh"
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>
extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
}

static cudaStream_t stream() {
    static cudaStream_t s;
    if (!s) cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    return s;
}

static void require(cudaError_t error, const char *what) {
    if (error) fail_msg("%s: %s", what, cudaGetErrorString(error));
}

/* An array on the device, from one on the host and back. */
template <class T> struct Array {
    T *on_device = nullptr;
    std::vector<T> host;
    explicit Array(std::vector<T> values) : host(std::move(values)) {
        require(cudaMalloc((void **)&on_device, bytes()), "memory");
        require(cudaMemcpyAsync(on_device, host.data(), bytes(), cudaMemcpyHostToDevice, stream()), "copy");
        require(cudaStreamSynchronize(stream()), "copy");
    }
    ~Array() { cudaFree(on_device); }
    size_t bytes() const { return host.size() * sizeof(T); }
    const std::vector<T> &fetch() {
        require(cudaMemcpyAsync(host.data(), on_device, bytes(), cudaMemcpyDeviceToHost, stream()), "copy");
        require(cudaStreamSynchronize(stream()), "kernel");
        return host;
    }
};
template <class T> static std::vector<T> filled(size_t n, T (*value)(size_t)) {
    std::vector<T> v(n);
    for (size_t i = 0; i < n; i++) v[i] = value(i);
    return v;
}
template <class T> static T zero(size_t) { return T(); }

#define RUN(blocks, threads, shared_bytes, kernel, ...)                                                      \
    require(start_kernel(stream(), KernelShape{#kernel, dim3(blocks), threads, shared_bytes}, kernel,        \
                         __VA_ARGS__),                                                                       \
            #kernel)

/* Small integers: bf16 holds them and every sum is exact. */
static float integer(size_t i) { return (float)((i * 2654435761u >> 7) % 7) - 3; }
static float real(size_t i) { return (float)((i * 2654435761u >> 5) % 65536) / 32768.0f - 1; }
static uint16_t bf16_bits(float x) {
    return (uint16_t)((f32_bits(x) + 0x7fffu + (f32_bits(x) >> 16 & 1)) >> 16);
}
static float bf16_value(uint16_t bits) { return f32_from_bits((uint32_t)bits << 16); }

/* ---- numbers ---- */
static __global__ void convert(const uint32_t *bits, float *from_f16, uint16_t *bf16, uint32_t *pair,
                               float *power) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t u = load(&bits[i]);
    const float x = __uint_as_float(u);
    store(&from_f16[i], f16_bits_to_f32((uint16_t)u));
    store(&bf16[i], f32_to_bf16_bits(x));
    store(&pair[i], pack_bf16(x, -x));
    store(&power[i], exp2_approx(((int)(u & 0xffff) - 32768) / 256.0f));
}

static void test_numbers(void **) {
    enum { N = 1 << 16 };
    /* every f16; words that cover the signs, exponents and ties of f32 */
    Array<uint32_t> bits(
        filled<uint32_t>(N, [](size_t i) { return (uint32_t)i | (uint32_t)(i * 40503 & 0xffff) << 16; }));
    Array<float> half(filled(N, zero<float>)), power(half.host);
    Array<uint16_t> bf16(filled(N, zero<uint16_t>));
    Array<uint32_t> pair(filled(N, zero<uint32_t>));
    RUN(N / 256, 256, 0, convert, bits.on_device, half.on_device, bf16.on_device, pair.on_device,
        power.on_device);
    half.fetch(), bf16.fetch(), pair.fetch(), power.fetch();
    for (unsigned i = 0; i < N; i++) {
        const uint32_t u = bits.host[i];
        const int exponent = i >> 10 & 31, fraction = i & 1023;
        const double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
        if (exponent == 31)
            assert_true(fraction ? std::isnan(half.host[i]) : std::isinf(half.host[i]));
        else
            assert_true(half.host[i] == (float)(i >> 15 ? -magnitude : magnitude));
        const bool is_nan = (u & 0x7fffffffu) > 0x7f800000u;
        const uint16_t rounded = is_nan ? 0x7fff : bf16_bits(f32_from_bits(u));
        assert_int_equal(bf16.host[i], rounded);
        assert_int_equal(pair.host[i], is_nan ? 0x7fff7fff : rounded | (uint32_t)(rounded ^ 0x8000) << 16);
        const double x = ((int)(u & 0xffff) - 32768) / 256.0, exact = exp2(x);
        if (x < -126)
            assert_true(power.host[i] <= 0x1p-126f); /* flushed to zero, or not */
        else
            assert_true(fabs(power.host[i] - exact) <= exact * 0x1p-22);
    }
}

/* kernels/math.h is compiled for both sides: the same bits. */
static __global__ void functions(const float *x, float *y) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const float value = load(&x[i]);
    double sine, cosine;
    sincos_f64(value * 100.0, &sine, &cosine);
    const float all[5] = {exp_f32(value * 90), log_f32(value < 0 ? -value : value), sigmoid_f32(value * 20),
                          (float)sine, (float)cosine};
    for (int j = 0; j < 5; j++) store(&y[5 * i + j], all[j]);
}

static void test_functions(void **) {
    enum { N = 1 << 14 };
    Array<float> x(filled<float>(N, real)), y(filled(5 * N, zero<float>));
    RUN(N / 256, 256, 0, functions, (const float *)x.on_device, y.on_device);
    y.fetch();
    for (size_t i = 0; i < N; i++) {
        const float value = x.host[i];
        double sine, cosine;
        sincos_f64(value * 100.0, &sine, &cosine);
        const float all[5] = {exp_f32(value * 90), log_f32(value < 0 ? -value : value),
                              sigmoid_f32(value * 20), (float)sine, (float)cosine};
        for (size_t j = 0; j < 5; j++) assert_int_equal(f32_bits(y.host[5 * i + j]), f32_bits(all[j]));
    }
}

/* ---- copies ---- */
static __global__ void copy(const uint32_t *from, uint32_t *to) {
    DYNAMIC_SHARED(shared);
    const unsigned t = threadIdx.x;
    cp_async16(shared_address(shared) + 16 * t, &from[4 * t], t % 3 != 0);
    cp_async_commit();
    cp_async4(shared_address(shared) + 512 + 4 * t, &from[128 + t], t % 3 != 1);
    cp_async_commit();
    cp_async_wait<1>();
    const uint32_t first = load((const uint32_t *)(shared + 16 * t)); /* this thread's own */
    cp_async_wait<0>();
    __syncthreads();
    store(&to[t], first);
    for (unsigned i = 0; i < 5; i++)
        store(&to[32 + 5 * t + i], load((const uint32_t *)(shared + 20 * t + 4 * i)));
}

static void test_copies(void **) {
    Array<uint32_t> from(filled<uint32_t>(160, [](size_t i) { return (uint32_t)(1000 + i); })),
        to(filled(192, zero<uint32_t>));
    RUN(1, 32, 640, copy, (const uint32_t *)from.on_device, to.on_device);
    to.fetch();
    for (uint32_t i = 0; i < 192; i++) {
        const uint32_t at = i < 32 ? 4 * i : i - 32;
        const bool present = at < 128 ? at / 4 % 3 != 0 : (at - 128) % 3 != 1;
        assert_int_equal(to.host[i], present ? 1000 + at : 0);
    }
}

/* ---- tensor cores ---- */
static __global__ void load_tiles(uint32_t *to) {
    DYNAMIC_SHARED(shared);
    const unsigned t = threadIdx.x;
    for (unsigned i = 0; i < 8; i++) store((uint16_t *)(shared + 16 * t + 2 * i), (uint16_t)(8 * t + i));
    __syncthreads();
    uint32_t plain[4], turned[4];
    ldmatrix_x4(plain, shared_address(shared) + 16 * t);
    ldmatrix_x4_transposed(turned, shared_address(shared) + 16 * t);
    for (int i = 0; i < 4; i++) store(&to[8 * t + i], plain[i]), store(&to[8 * t + 4 + i], turned[i]);
}

static void test_ldmatrix(void **) {
    Array<uint32_t> to(filled(256, zero<uint32_t>));
    RUN(1, 32, 512, load_tiles, to.on_device);
    to.fetch();
    for (uint32_t l = 0; l < 32; l++)
        for (uint32_t tile = 0; tile < 4; tile++) {
            const uint32_t one = 64 * tile + 8 * (l / 4) + 2 * (l % 4),
                           other = 64 * tile + 16 * (l % 4) + l / 4;
            assert_int_equal(to.host[8 * l + tile], one | (one + 1) << 16);
            assert_int_equal(to.host[8 * l + 4 + tile], other | (other + 8) << 16);
        }
}

/* c [16,8] += a [16,16] b [16,8], all by rows. */
static __global__ void multiply(const uint16_t *a, const uint16_t *b, float *c) {
    const unsigned l = threadIdx.x, row = l / 4, column = l % 4 * 2;
    uint32_t fa[4], fb[2];
    float sum[4];
    for (unsigned i = 0; i < 4; i++)
        fa[i] = load((const uint32_t *)&a[(row + i % 2 * 8) * 16 + column + i / 2 * 8]);
    for (unsigned i = 0; i < 2; i++) {
        const uint32_t low = load(&b[(column + 8 * i) * 8 + row]);
        const uint32_t high = load(&b[(column + 8 * i + 1) * 8 + row]);
        fb[i] = low | high << 16;
    }
    for (unsigned i = 0; i < 4; i++) sum[i] = load(&c[(row + i / 2 * 8) * 8 + column + i % 2]);
    mma_bf16(sum, fa, fb[0], fb[1]);
    for (unsigned i = 0; i < 4; i++) store(&c[(row + i / 2 * 8) * 8 + column + i % 2], sum[i]);
}

static void check_multiply(float (*value)(size_t), double bound) {
    std::vector<uint16_t> a(256), b(128);
    std::vector<float> c(128);
    for (size_t i = 0; i < 256; i++) a[i] = bf16_bits(value(i));
    for (size_t i = 0; i < 128; i++) b[i] = bf16_bits(value(3 * i + 1)), c[i] = value(5 * i + 2);
    Array<uint16_t> da(a), db(b);
    Array<float> dc(c);
    RUN(1, 32, 0, multiply, (const uint16_t *)da.on_device, (const uint16_t *)db.on_device, dc.on_device);
    dc.fetch();
    for (size_t row = 0; row < 16; row++)
        for (size_t n = 0; n < 8; n++) {
            double sum = c[row * 8 + n], size = fabs(sum);
            for (size_t k = 0; k < 16; k++) {
                const double term = (double)bf16_value(a[row * 16 + k]) * bf16_value(b[k * 8 + n]);
                sum += term, size += fabs(term);
            }
            const double off = fabs(dc.host[row * 8 + n] - sum);
            if (off > bound * size) fail_msg("[%zu,%zu]: off by %g of %g", row, n, off, size);
        }
}
static void test_mma(void **) {
    check_multiply(integer, 0);
    check_multiply(real, 0x1p-21); /* 17 terms, each cut to at least 22 bits of the largest */
}

/* ---- Hopper: TMA, mbarriers, wgmma in both layouts of b, edges clipped ---- */
template <int N, int B_MAJOR> static void check_product(int64_t m, int64_t n, int64_t k) {
    std::vector<uint16_t> a((size_t)(m * k)), b((size_t)(n * k));
    for (size_t i = 0; i < a.size(); i++) a[i] = bf16_bits(integer(i));
    for (size_t i = 0; i < b.size(); i++) b[i] = bf16_bits(integer(3 * i + 1));
    Array<uint16_t> da(a), db(b), dc(std::vector<uint16_t>((size_t)(m * n), 0xffff));
    require((hopper_product_start<N, B_MAJOR, FAULT_NONE>(stream(), dc.on_device, da.on_device, db.on_device,
                                                          m, n, k)),
            "launch");
    dc.fetch();
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            float sum = 0;
            for (int64_t l = 0; l < k; l++)
                sum += bf16_value(a[(size_t)(i * k + l)]) *
                       bf16_value(b[(size_t)(B_MAJOR == K_MAJOR ? j * k + l : l * n + j)]);
            if (dc.host[(size_t)(i * n + j)] != bf16_bits(sum))
                fail_msg("%lld x %lld x %lld: [%lld,%lld]", (long long)m, (long long)n, (long long)k,
                         (long long)i, (long long)j);
        }
}

static void test_hopper(void **) {
    int major = 0;
    require(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "device");
#ifndef GATETAPE_EMULATED
    if (major != 9) skip();
#endif
    const int64_t sizes[][3] = {{64, 256, 64}, {1, 8, 8}, {130, 168, 72}, {70, 512, 520}};
    for (const auto &s : sizes) {
        check_product<128, K_MAJOR>(s[0], s[1], s[2]);
        check_product<128, N_MAJOR>(s[0], s[1], s[2]);
        check_product<256, K_MAJOR>(s[0], s[1], s[2]);
        check_product<256, N_MAJOR>(s[0], s[1], s[2]);
    }
}

/* Exit status 77: skipped, there is no GPU. */
int main() {
    int n = 0;
    const cudaError_t error = cudaGetDeviceCount(&n);
    if (error || !n) {
        printf("skipped: expected a GPU: %s\n", error ? cudaGetErrorString(error) : "got none");
        return 77;
    }
    const CMUnitTest tests[] = {cmocka_unit_test(test_numbers), cmocka_unit_test(test_functions),
                                cmocka_unit_test(test_copies),  cmocka_unit_test(test_ldmatrix),
                                cmocka_unit_test(test_mma),     cmocka_unit_test(test_hopper)};
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}

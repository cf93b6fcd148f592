/* kernels/cuda/hopper.cuh on the emulated device: the product of hopper_product.cuh is right whenever copies
 * and products take effect, and each fault planted in it is caught. */
#include "child.h"
#include "hopper_product.cuh"
#include "roofline.h"

static const char *const LATENESS[] = {"0", "1", "2"}; /* GATETAPE_EMULATOR_WHEN: at once, at random, late */

/* Small integers: bf16 holds them and every sum is exact, so any difference is a fault. */
static float factor(int64_t i) { return (float)((i * 2654435761 >> 7) % 7 - 3); }

/* How many elements of c differ from a b. */
template <int N, int B_MAJOR, int FAULT> static int n_wrong(int64_t m, int64_t n, int64_t k) {
    uint16_t *a = on_device<uint16_t>((size_t)(m * k)), *b = on_device<uint16_t>((size_t)(n * k)),
             *c = on_device<uint16_t>((size_t)(m * n));
    for (int64_t i = 0; i < m * k; i++) a[i] = f32_to_bf16_bits(factor(i));
    for (int64_t i = 0; i < n * k; i++) b[i] = f32_to_bf16_bits(factor(3 * i + 1));
    cudaError_t error = hopper_product_start<N, B_MAJOR, FAULT>(stream(), c, a, b, m, n, k);
    if (!error) error = cudaStreamSynchronize(stream());
    check(error == cudaSuccess, "%s", cudaGetErrorString(error));
    int wrong = 0;
    for (int64_t i = 0; i < m * n; i++) {
        float sum = 0;
        for (int64_t l = 0; l < k; l++)
            sum +=
                factor(i / n * k + l) * factor(3 * (B_MAJOR == K_MAJOR ? i % n * k + l : l * n + i % n) + 1);
        wrong += c[i] != f32_to_bf16_bits(sum);
    }
    return wrong;
}

template <int N, int B_MAJOR> static void test_product() {
    const int64_t sizes[][3] = {{64, N, 64}, {1, 8, 8}, {130, N + 40, 72}, {70, 2 * N, 520}};
    for (const char *when : LATENESS)
        for (const auto &s : sizes) {
            setenv("GATETAPE_EMULATOR_WHEN", when, 1);
            int wrong = n_wrong<N, B_MAJOR, FAULT_NONE>(s[0], s[1], s[2]);
            check(wrong == 0, "late by %s: %d of %lld x %lld x %lld wrong", when, wrong, (long long)s[0],
                  (long long)s[1], (long long)s[2]);
        }
}

/* A fault that only shows in the numbers, when all comes as late as allowed. */
template <int FAULT> static void test_wrong() {
    int wrong = n_wrong<128, K_MAJOR, FAULT>(130, 256, 520);
    check(wrong == 0, "%d wrong numbers", wrong);
}

static void test_map_refused() {
    TensorMap map;
    uint16_t *x = on_device<uint16_t>(4096);
    check(tensor_map_new(&map, x, 8, 64, 8) == cudaSuccess, "a good one");
    check(tensor_map_new(&map, x + 1, 8, 64, 8) != cudaSuccess, "base");
    check(tensor_map_new(&map, x, 8, 63, 8) != cudaSuccess, "pitch");
    check(tensor_map_new(&map, x, 8, 64, 257) != cudaSuccess, "box of more than 256 rows");
    check(tensor_map_new(&map, x, 0, 64, 8) != cudaSuccess, "empty");
}

/* One block, k = 64: each operand once, c once; 64 x 128 x 64 multiply-adds. */
static void test_counts() {
    using namespace emulator;
    size_t n;
    for (const char *when : LATENESS) {
        setenv("GATETAPE_EMULATOR_WHEN", when, 1);
        count_begin();
        check((n_wrong<128, K_MAJOR, FAULT_NONE>(64, 128, 64)) == 0, "wrong");
        const LaunchCounts &l = *count_end(&n);
        const uint64_t *of = l.total.of, read = (64 + 128) * 128 / 32, written = 64 * 128 * 2 / 32;
        check(of[COUNT_READ] == read && l.touched_read == read, "%llu read",
              (unsigned long long)of[COUNT_READ]);
        check(of[COUNT_WRITTEN] == written && of[COUNT_PACKED] == read + written, "written");
        check(of[COUNT_MULTIPLY_ADDS] == 64 * 128 * 64, "multiply-adds");
        check(of[COUNT_BARRIERS] == 2, "%llu barriers", (unsigned long long)of[COUNT_BARRIERS]);
        check(wavefronts_per_free(&l.total) == 1, "%g wavefronts", wavefronts_per_free(&l.total));
    }
}

static const ChildTest TESTS[] = {
    {"64 x 128, b by k", test_product<128, K_MAJOR>, nullptr},
    {"64 x 128, b by n", test_product<128, N_MAJOR>, nullptr},
    {"64 x 256, b by k", test_product<256, K_MAJOR>, nullptr},
    {"64 x 256, b by n", test_product<256, N_MAJOR>, nullptr},
    {"tensor maps that the driver refuses", test_map_refused, nullptr},
    {"counts", test_counts, nullptr},
    {"mbarrier not fenced", test_wrong<FAULT_NO_INIT_FENCE>, "no fence since its init"},
    {"refills without waiting", test_wrong<FAULT_NO_WAIT_EMPTY>, "more than the 1 arrivals"},
    {"waits for the wrong parity", test_wrong<FAULT_WRONG_PARITY_EMPTY>, "deadlock in block"},
    {"expects too few bytes", test_wrong<FAULT_FEW_BYTES>, "deadlock in block"},
    {"reads without waiting", test_wrong<FAULT_NO_WAIT_FULL>, "more than the 1 arrivals"},
    {"reads at the wrong parity", test_wrong<FAULT_WRONG_PARITY_FULL>, "more than the 1 arrivals"},
    {"no wgmma fence", test_wrong<FAULT_NO_WGMMA_FENCE>, "no wgmma_fence"},
    {"no wgmma wait", test_wrong<FAULT_NO_WGMMA_WAIT>, "thread leaves with wgmma under way"},
    {"releases before the wait", test_wrong<FAULT_EARLY_RELEASE>, "wrong numbers"},
    {"never releases", test_wrong<FAULT_NO_RELEASE>, "deadlock in block"},
    {"stores without the swizzle", test_wrong<FAULT_NO_SWIZZLE>, "wrong numbers"},
    {"no proxy fence", test_wrong<FAULT_NO_PROXY_FENCE>, "with no proxy fence since"},
    {"no barrier before the store", test_wrong<FAULT_NO_BARRIER>, "wrong numbers"},
    {"store not committed", test_wrong<FAULT_NO_STORE_COMMIT>, "before its TMA store has read"},
    {"store not waited for", test_wrong<FAULT_NO_STORE_WAIT>, "before its TMA store has read"},
};

int main() { return run_children("hopper", TESTS) != 0; }

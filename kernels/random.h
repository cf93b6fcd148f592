/* Random numbers by counter: Philox4x32-10 (Salmon et al., SC 2011, doi 10.1145/2063384.2063405). A number
 * depends on (seed, purpose, id, position) alone, never on how many were drawn before it, so batching,
 * threads and resuming do not change it. tests/kernels/test_math.c holds the published known answers. */
#ifndef GATETAPE_RANDOM_H
#define GATETAPE_RANDOM_H
#include <stdint.h>

#ifdef __CUDACC__ /* kernels of the GPU draw too */
#define RANDOM static inline __host__ __device__
#else
#define RANDOM static inline
#endif

/* What a number is for: equal ids and positions give unrelated numbers for two purposes. */
typedef enum {
    RANDOM_SAMPLE = 0,
    RANDOM_WEIGHTS = 1,
    RANDOM_SPLIT = 2,
    RANDOM_TEST = 3,
    RANDOM_BOOTSTRAP = 4,
    RANDOM_PERMUTATION = 5,
    RANDOM_ROTATION = 6,
    RANDOM_CONTROL = 7,       /* sets of cells that controls of an intervention draw */
    RANDOM_TUNING_ORDER = 8,  /* of the examples of an epoch */
    RANDOM_TUNING_VALUES = 9, /* that an update's A begins with */
    RANDOM_TUNING_DROPOUT = 10
} RandomPurpose;

/* counter becomes four random words; ten rounds. */
RANDOM void philox4x32(uint32_t counter[4], const uint32_t key[2]) {
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xd2511f53u * counter[0], b = (uint64_t)0xcd9e8d57u * counter[2];
        uint32_t c1 = counter[1], c3 = counter[3];
        counter[0] = (uint32_t)(b >> 32) ^ c1 ^ k0;
        counter[1] = (uint32_t)b;
        counter[2] = (uint32_t)(a >> 32) ^ c3 ^ k1;
        counter[3] = (uint32_t)a;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
}

/* 64 random bits. Positions differ in their low 32 bits. */
RANDOM uint64_t random_bits(uint64_t seed, RandomPurpose purpose, int64_t id, int64_t position) {
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t counter[4] = {(uint32_t)position, (uint32_t)purpose, (uint32_t)id,
                           (uint32_t)((uint64_t)id >> 32)};
    philox4x32(counter, key);
    return (uint64_t)counter[1] << 32 | counter[0];
}

/* Uniform in [0, 1), a multiple of 2^-53. */
RANDOM double random_uniform(uint64_t seed, RandomPurpose purpose, int64_t id, int64_t position) {
    return (double)(random_bits(seed, purpose, id, position) >> 11) * 0x1p-53;
}

#endif

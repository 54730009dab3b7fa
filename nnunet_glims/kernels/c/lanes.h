/* Shared by all kernels: vectors, and conversion between tensors and float32.
 *
 * Tensors are contiguous (N, C, D, H, W) in float32 or, where BFLOAT16 is defined, in bfloat16; arithmetic is float32. The
 * work is divided into tasks, which the threads of torch's OpenMP library take one by one. No task reads what another one
 * writes, so results do not depend on the number of threads. Every function returns 0, or 1 where memory ran out.
 */
#ifndef LANES_H
#define LANES_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

/* Number of values that one instruction computes. Compilers do not handle longer vectors well. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define LINE 512 /* values of a buffer on the stack; a multiple of LANES */
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));

typedef struct {
    int64_t n, c, d, h, w, threads;
    float eps;
} Shape;

#ifdef BFLOAT16
#ifndef __AVX512BF16__
#error "this processor has no instructions for bfloat16"
#endif

typedef uint16_t stored;

INLINE lanes load(const stored *from) {
    return (lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
}

INLINE void store(stored *to, lanes v) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh((__m512)v)); }

/* Convert `count` values between the tensors' precision and float32. */
INLINE void to_floats(const stored *from, float *to, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) *(lanes *)(to + i) = load(from + i);
    if (i == count) return;
    stored rest[LANES] = {0};
    memcpy(rest, from + i, (count - i) * sizeof(stored));
    const lanes v = load(rest);
    memcpy(to + i, &v, (count - i) * sizeof(float));
}

INLINE void from_floats(const float *from, stored *to, int64_t count) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, *(const lanes *)(from + i));
    if (i == count) return;
    float values[LANES] = {0};
    stored rest[LANES];
    memcpy(values, from + i, (count - i) * sizeof(float));
    store(rest, *(const lanes *)values);
    memcpy(to + i, rest, (count - i) * sizeof(stored));
}
#else
typedef float stored;

INLINE void to_floats(const stored *from, float *to, int64_t count) { memcpy(to, from, count * sizeof(float)); }

INLINE void from_floats(const float *from, stored *to, int64_t count) { memcpy(to, from, count * sizeof(float)); }
#endif

/* Bytes of a result from which it is written past the caches, which would first read the old content of memory. */
#define LARGE (1 << 24)

/* Like from_floats; with `bypass` past the caches. wait_for_writes() then makes the values visible to other threads. */
INLINE void write_values(const int bypass, const float *from, stored *to, int64_t count) {
#ifdef __AVX512F__
    if (bypass && (uintptr_t)to % (LANES * sizeof(stored)) == 0 && count % LANES == 0) {
        for (int64_t i = 0; i < count; i += LANES)
#ifdef BFLOAT16
            _mm256_stream_si256((__m256i *)(to + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i)));
#else
            _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
#endif
        return;
    }
#endif
    from_floats(from, to, count);
}

INLINE void wait_for_writes(void) {
#ifdef __AVX512F__
    _mm_sfence();
#endif
}

/* Prefetch values that are read soon. The processor's own prefetching stops at the end of a page. */
INLINE void prefetch(const stored *from, int64_t count) {
    for (int64_t i = 0; i < count; i += 64 / sizeof(stored)) __builtin_prefetch(from + i);
}

/* Allocate zeros, aligned to a cache line; NULL where memory ran out. */
static inline float *zeros(int64_t count) {
    const size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
    float *memory = aligned_alloc(64, bytes);
    return memory ? memset(memory, 0, bytes) : NULL;
}

#if LANES == 16 && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHIFTED(a, b, k) \
    __builtin_shufflevector(a, b, k, k + 1, k + 2, k + 3, k + 4, k + 5, k + 6, k + 7, k + 8, k + 9, k + 10, k + 11, k + 12, \
                            k + 13, k + 14, k + 15)
#endif
#endif

static inline float sum_lanes(lanes v) {
#ifdef SHIFTED
    v += SHIFTED(v, v, 8);
    v += SHIFTED(v, v, 4);
    v += SHIFTED(v, v, 2);
    return v[0] + v[1];
#else
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
#endif
}

#endif

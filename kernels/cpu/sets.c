/* The same products for each instruction set; what the processor runs is asked when they run. */

#include "planes.h"

#if !defined(__aarch64__)
static float half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13, bits;
    float f;
    memcpy(&f, &rest, 4);
    f *= 0x1p112f;
    memcpy(&bits, &f, 4);
    if ((h & 0x7c00) == 0x7c00)
        bits |= 0x7f800000;
    bits |= sign;
    memcpy(&f, &bits, 4);
    return f;
}
#endif

#if defined(__x86_64__)
#include <immintrin.h>

#define NAME(x) x##_avx512
#define LANES 16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))
#define HALVES(p) ((VF)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p))))
#define DOT(a, q, x) ((VI)_mm512_dpbusd_epi32((__m512i)(a), (__m512i)(q), (__m512i)(x)))
#define DOT_BITS 8
#define MANY_ROWS 6
#include "set.h"

#define NAME(x) x##_avx2
#define LANES 8
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define HALVES(p) ((VF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p))))
#define DOT(a, q, x)                                                                                                              \
    ((VI)_mm256_add_epi32((__m256i)(a), _mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)(q), (__m256i)(x)), _mm256_set1_epi16(1))))
#define DOT_BITS 4
#define MANY_ROWS 3
#include "set.h"
#endif

/* Plain C, and NEON where that is what the compiler makes of vectors of four. */
#if defined(__aarch64__)
#include <arm_neon.h>
#define HALVES(p) ((VF)vcvt_f32_f16(vld1_f16((const __fp16 *)(p))))
#define PLAIN "neon"
#else
#define HALVES(p) ((VF){half((p)[0]), half((p)[1]), half((p)[2]), half((p)[3])})
#define PLAIN "plain"
#endif
static inline int32_t dot_bytes(int32_t q, int32_t x) {
    int32_t sum = 0;
    for (int shift = 0; shift < 32; shift += 8)
        sum += (int32_t)((uint32_t)q >> shift & 0xff) * (int8_t)((uint32_t)x >> shift & 0xff);
    return sum;
}
#define NAME(x) x##_plain
#define LANES 4
#define TARGET
#define DOT(a, q, x)                                                                                                              \
    ((a) + (VI){dot_bytes((q)[0], (x)[0]), dot_bytes((q)[1], (x)[1]), dot_bytes((q)[2], (x)[2]), dot_bytes((q)[3], (x)[3])})
#define DOT_BITS 8
#define MANY_ROWS 4
#include "set.h"

const Kind SETS[] = {
#if defined(__x86_64__)
    {"avx512", &set_avx512},
    {"avx2", &set_avx2},
#endif
    {PLAIN, &set_plain},
};
const int KINDS = sizeof SETS / sizeof *SETS;

int runs(int kind) {
#if defined(__x86_64__)
    if (kind == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
    if (kind == 1)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return kind < KINDS;
}


/* Vectors of floats and functions on them. They are written with vector types, so that compilers keep them in registers: GCC keeps a vector there
 * only if it is no longer than the processor's. -DLANES=4, 8 or 16 compiles plain C, without a line for a special processor, so that vectors of
 * each length can be tested everywhere. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#define USE_AVX512
#elif defined(__AVX__)
#define LANES 8
#define USE_AVX
#else
#define LANES 4
#ifdef __aarch64__
#define USE_NEON
#endif
#endif
#endif

#if defined(USE_AVX512) || defined(USE_AVX)
#include <immintrin.h>
#elif defined(USE_NEON)
#include <arm_neon.h>
#endif

/* Vector registers of the processor: how many sums a tile holds depends on it. */
#if defined(USE_AVX512) || defined(USE_NEON) || LANES == 16
#define REGISTERS 32
#else
#define REGISTERS 16
#endif

typedef float vec_f32 __attribute__((vector_size(LANES * 4)));
typedef int32_t vec_i32 __attribute__((vector_size(LANES * 4)));
typedef uint32_t vec_u32 __attribute__((vector_size(LANES * 4)));
typedef uint16_t vec_u16 __attribute__((vector_size(LANES * 2)));

#define INLINE static inline __attribute__((always_inline))

INLINE vec_f32 load(const float *from) { vec_f32 x; memcpy(&x, from, sizeof x); return x; }
INLINE void store(float *to, vec_f32 x) { memcpy(to, &x, sizeof x); }
INLINE vec_f32 splat(float x) { return x - (vec_f32){0}; } /* x + 0 would need an addition, because it turns -0 into 0 */

/* a * b + c, rounded once where the processor can. FMA is explicit because compilers would fuse some of these expressions and not others: the
 * same product would be rounded differently in copies of a function for different weight types. */
INLINE vec_f32 mul_add(vec_f32 a, vec_f32 b, vec_f32 c) {
#if defined(USE_AVX512)
    return (vec_f32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(USE_AVX) && defined(__FMA__)
    return (vec_f32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(USE_NEON)
    return (vec_f32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* Keeps GCC from loading a value again for each of its uses: that costs 15 % of products with AVX2. */
#if defined(__clang__)
#define KEEP_IN_REGISTER(x)
#elif defined(USE_AVX512)
#define KEEP_IN_REGISTER(x) __asm__("" : "+v"(x))
#elif defined(USE_AVX)
#define KEEP_IN_REGISTER(x) __asm__("" : "+x"(x))
#elif defined(USE_NEON)
#define KEEP_IN_REGISTER(x) __asm__("" : "+w"(x))
#else
#define KEEP_IN_REGISTER(x)
#endif

/* Storage types of weights. Arithmetic is in float32, which represents all values of the other types exactly. */
enum { FLOAT32, FLOAT16, BFLOAT16 };

static inline int bytes_of(int type) { return type == FLOAT32 ? 4 : 2; }

/* Loads LANES numbers of a storage type, starting with element i. */
INLINE vec_f32 load_as(const int type, const void *from, int64_t i) {
    if (type == FLOAT32) return load((const float *)from + i);
    const uint16_t *bits = (const uint16_t *)from + i;
#if defined(USE_AVX512)
    __m256i x = _mm256_loadu_si256((const __m256i *)bits);
    return type == FLOAT16 ? (vec_f32)_mm512_cvtph_ps(x) : (vec_f32)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16);
#elif defined(USE_AVX) && defined(__AVX2__) && defined(__F16C__)
    __m128i x = _mm_loadu_si128((const __m128i *)bits);
    return type == FLOAT16 ? (vec_f32)_mm256_cvtph_ps(x) : (vec_f32)_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16);
#elif defined(USE_NEON)
    uint16x4_t x = vld1_u16(bits);
    return type == FLOAT16 ? (vec_f32)vcvt_f32_f16((float16x4_t)x) : (vec_f32)vshlq_n_u32(vmovl_u16(x), 16);
#else
    vec_u16 narrow;
    memcpy(&narrow, bits, sizeof narrow);
    vec_u32 x = __builtin_convertvector(narrow, vec_u32);
    if (type == BFLOAT16) return (vec_f32)(x << 16);
    vec_u32 magnitude = (x & 0x7fff) << 13, nonfinite = (vec_u32)((x & 0x7c00) == 0x7c00) & 0x7f800000;
    vec_f32 value = (vec_f32)magnitude * 0x1p112f; /* adapts the bias of the exponent; denormal numbers become normal ones */
    return (vec_f32)((vec_u32)value | nonfinite | (x & 0x8000) << 16);
#endif
}

/* Shuffles of two vectors. LOW and HIGH interleave the first and the second half of each group of four lanes, element by element or in pairs;
 * the FOURS macros select whole groups of four. */
#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (vec_i32){__VA_ARGS__})
#endif
#if LANES == 16
#define LOW(a, b) PICK(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH(a, b) PICK(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define LOW_PAIRS(a, b) PICK(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HIGH_PAIRS(a, b) PICK(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define EVEN_FOURS(a, b) PICK(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define ODD_FOURS(a, b) PICK(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
#define LOW_FOURS(a, b) PICK(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define HIGH_FOURS(a, b) PICK(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#elif LANES == 8
#define LOW(a, b) PICK(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH(a, b) PICK(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define LOW_PAIRS(a, b) PICK(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define HIGH_PAIRS(a, b) PICK(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#define EVEN_FOURS(a, b) PICK(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define ODD_FOURS(a, b) PICK(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#else
#define LOW(a, b) PICK(a, b, 0, 4, 1, 5)
#define HIGH(a, b) PICK(a, b, 2, 6, 3, 7)
#define LOW_PAIRS(a, b) PICK(a, b, 0, 1, 4, 5)
#define HIGH_PAIRS(a, b) PICK(a, b, 2, 3, 6, 7)
#define EVEN_FOURS(a, b) (a) /* a vector is one group */
#define ODD_FOURS(a, b) (b)
#endif

/* Reduces four vectors to one: lane j of each group of four holds a part of the sum of x[j]. */
INLINE vec_f32 partial_sums(const vec_f32 *x) {
    vec_f32 first = LOW(x[0], x[1]) + HIGH(x[0], x[1]), second = LOW(x[2], x[3]) + HIGH(x[2], x[3]);
    return LOW_PAIRS(first, second) + HIGH_PAIRS(first, second);
}

/* Sum of all lanes: first of those eight apart, then four, then two. */
INLINE float horizontal_sum(vec_f32 x) {
    float part[LANES];
    store(part, x);
    for (int n = LANES / 2; n > 1; n /= 2) for (int i = 0; i < n; i++) part[i] += part[i + n];
    return part[0] + part[1];
}

/* Maximum of each lane; b where one of the two is NaN. */
INLINE vec_f32 vec_max(vec_f32 a, vec_f32 b) {
#if defined(USE_AVX512)
    return (vec_f32)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(USE_AVX)
    return (vec_f32)_mm256_max_ps((__m256)a, (__m256)b);
#else
    vec_i32 greater = a > b;
    return (vec_f32)((greater & (vec_i32)a) | (~greater & (vec_i32)b));
#endif
}

INLINE float horizontal_max(vec_f32 x) {
    float part[LANES];
    store(part, x);
    for (int n = LANES / 2; n > 0; n /= 2) for (int i = 0; i < n; i++) part[i] = part[i] > part[i + n] ? part[i] : part[i + n];
    return part[0];
}

#define LOG2_E 1.44269504f

/* 2^x in each lane for x <= 0. The relative error is below 2e-7 down to -126; from -127 on the result is exactly 0. The polynomial is that of
 * Cephes' exp2f. */
INLINE vec_f32 vec_exp2(vec_f32 x) {
    x = vec_max(splat(-127.0f), x);
    vec_i32 n = __builtin_convertvector(x - 0.5f, vec_i32);
    vec_f32 r = x - __builtin_convertvector(n, vec_f32);
    vec_f32 p = mul_add(r, splat(1.535336188319500e-4f), splat(1.339887440266574e-3f));
    p = mul_add(p, r, splat(9.618437357674640e-3f));
    p = mul_add(p, r, splat(5.550332471162809e-2f));
    p = mul_add(p, r, splat(2.402264791363012e-1f));
    p = mul_add(p, r, splat(6.931472028550421e-1f));
    p = mul_add(p, r, splat(1.0f));
    return (vec_f32)((vec_u32)p + ((vec_u32)n << 23));
}

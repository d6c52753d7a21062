/* Vectors of floats for the kernels of this folder, and the exponential; written so that compilers keep them in registers. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
typedef float lanes __attribute__((vector_size(LANES * 4)));
typedef int32_t wholes __attribute__((vector_size(LANES * 4)));

static inline lanes load(const float *from) { lanes x; memcpy(&x, from, sizeof x); return x; }
static inline void store(float *to, lanes x) { memcpy(to, &x, sizeof x); }
static inline lanes all(float x) { return x - (lanes){0}; } /* not 0 + x, which would turn -0 into 0 */

/* a * b + c, rounded once where the processor can. Written out because GCC, tuning for Zen, fuses some sums of a source and leaves others:
 * the same product would then depend on the type of its weights. */
static inline lanes mul_add(lanes a, lanes b, lanes c) {
#if defined(__AVX512F__)
    return (lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* How numbers lie in memory; they are computed with in float32, which holds each of the others exactly. */
enum { FLOAT32, FLOAT16, BFLOAT16 };

static inline int size_of(int type) { return type == FLOAT32 ? 4 : 2; }

/* LANES numbers of a type, from place i on. */
static inline __attribute__((always_inline)) lanes load_as(const int type, const void *from, int64_t i) {
    if (type == FLOAT32) return load((const float *)from + i);
    const uint16_t *halves = (const uint16_t *)from + i;
#if defined(__AVX512F__)
    __m256i x = _mm256_loadu_si256((const __m256i *)halves);
    return type == FLOAT16 ? (lanes)_mm512_cvtph_ps(x) : (lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16);
#elif defined(__AVX2__) && defined(__F16C__)
    __m128i x = _mm_loadu_si128((const __m128i *)halves);
    return type == FLOAT16 ? (lanes)_mm256_cvtph_ps(x) : (lanes)_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16);
#else
    wholes x;
    for (int l = 0; l < LANES; l++) x[l] = halves[l];
    if (type == BFLOAT16) return (lanes)(x << 16);
    wholes magnitude = (x & 0x7fff) << 13, endless = ((x & 0x7c00) == 0x7c00) & 0x7f800000; /* infinite, or no number */
    lanes value = (lanes)magnitude * 0x1p112f;
    return (lanes)((wholes)value | endless | (x & 0x8000) << 16);
#endif
}

/* Lanes of two vectors: first and second half of each group of four, alternating one by one or in pairs; groups of four. */
#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (wholes){__VA_ARGS__})
#endif
#ifdef __AVX512F__
#define LOW(a, b) PICK(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH(a, b) PICK(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define LOW_PAIRS(a, b) PICK(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define HIGH_PAIRS(a, b) PICK(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define EVEN_FOURS(a, b) PICK(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define ODD_FOURS(a, b) PICK(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
#define LOW_FOURS(a, b) PICK(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define HIGH_FOURS(a, b) PICK(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#else
#define LOW(a, b) PICK(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH(a, b) PICK(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define LOW_PAIRS(a, b) PICK(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define HIGH_PAIRS(a, b) PICK(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#define EVEN_FOURS(a, b) PICK(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define ODD_FOURS(a, b) PICK(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#endif

/* Neighbouring lanes of four vectors added up until each group of four lanes holds a part of each total. */
static inline lanes parts_of_totals(const lanes *x) {
    lanes first = LOW(x[0], x[1]) + HIGH(x[0], x[1]), second = LOW(x[2], x[3]) + HIGH(x[2], x[3]);
    return LOW_PAIRS(first, second) + HIGH_PAIRS(first, second);
}

static inline float total_of(lanes x) {
    float part[8];
    for (int i = 0; i < 8; i++) part[i] = LANES == 16 ? x[i] + x[i + LANES - 8] : x[i];
    for (int i = 0; i < 4; i++) part[i] += part[i + 4];
    return (part[0] + part[2]) + (part[1] + part[3]);
}

/* The larger of each pair of lanes; b where either is NaN. */
static inline lanes larger(lanes a, lanes b) {
#if defined(__AVX512F__)
    return (lanes)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (lanes)_mm256_max_ps((__m256)a, (__m256)b);
#else
    wholes first = a > b;
    return (lanes)((first & (wholes)a) | (~first & (wholes)b));
#endif
}

static inline float largest_of(lanes x) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)x);
#else
    float best = x[0];
    for (int i = 1; i < LANES; i++) best = x[i] > best ? x[i] : best;
    return best;
#endif
}

#define LOG2_E 1.44269504f

/* 2^x of each lane for x <= 0: relative error below 2e-7 down to -126, exactly 0 from -127 on. The polynomial is that of Cephes' exp2f. */
static inline lanes exp2_of(lanes x) {
    x = larger(all(-127.0f), x);
    wholes n = __builtin_convertvector(x - 0.5f, wholes);
    lanes r = x - __builtin_convertvector(n, lanes);
    lanes p = mul_add(r, all(1.535336188319500e-4f), all(1.339887440266574e-3f));
    p = mul_add(p, r, all(9.618437357674640e-3f));
    p = mul_add(p, r, all(5.550332471162809e-2f));
    p = mul_add(p, r, all(2.402264791363012e-1f));
    p = mul_add(p, r, all(6.931472028550421e-1f));
    p = mul_add(p, r, all(1.0f));
    return (lanes)((wholes)p + (n << 23));
}

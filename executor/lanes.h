/* Vectors of floats for the kernels of this folder, and the exponential; written so that compilers vectorise them. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
typedef float lanes __attribute__((vector_size(LANES * 4)));

static inline lanes load(const float *from) { lanes x; memcpy(&x, from, sizeof x); return x; }
static inline void store(float *to, lanes x) { memcpy(to, &x, sizeof x); }
static inline float total_of(lanes x) {
    float part[8];
    for (int i = 0; i < 8; i++) part[i] = LANES == 16 ? x[i] + x[i + LANES - 8] : x[i];
    for (int i = 0; i < 4; i++) part[i] += part[i + 4];
    return (part[0] + part[2]) + (part[1] + part[3]);
}

/* e^x for x <= 0, relative error below 2e-7. */
static inline float exp_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = floorf(x * 1.44269504f + 0.5f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t i; float f; } scale = {((int32_t)n + 127) << 23};
    return p * scale.f;
}

/* A decoder layer over the few tokens of a decoding step, in float32 on a CPU: all of it but attention itself.
 *
 * Products of few rows are bound by reading the weights: each is read once and lies where the checkpoint put it. Every sum is
 * formed in the same order whatever the number of rows, so that a token's result does not depend on those beside it.
 *
 * Shapes: M tokens, D model, N query heads, K KV heads, H head dim, F MLP width; weights are [out, in].
 * Compiled on first use by compiled.py; needs no library.
 */
#include "lanes.h"

enum { ROWS = 4, COLUMNS = 4 };

/* Keeps GCC from loading a value again for each of its uses. */
#ifdef __AVX512F__
#define HELD(x) __asm__("" : "+v"(x))
#else
#define HELD(x)
#endif

typedef struct {
    const float *input_norm, *q, *k, *v, *o, *mlp_norm, *gate, *up, *down;
    const float *q_bias, *k_bias, *v_bias, *q_norm, *k_norm; /* null where there is none */
    int64_t d_model, num_heads, num_kv_heads, head_dim, d_ff;
    float norm_eps;
} Layer;

#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t places __attribute__((vector_size(LANES * 4)));
#define PICK(a, b, ...) __builtin_shuffle(a, b, (places){__VA_ARGS__})
#endif

/* The four totals at once: neighbours are interleaved and added up until each group of four lanes holds a part of each. */
static inline void totals_of(const lanes *x, float *totals) {
    lanes pairs[2];
    for (int i = 0; i < 2; i++) {
        lanes a = x[2 * i], b = x[2 * i + 1];
        pairs[i] = PICK(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
                 + PICK(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
    lanes all = PICK(pairs[0], pairs[1], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
              + PICK(pairs[0], pairs[1], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    for (int i = 0; i < 4; i++) totals[i] = (all[i] + all[i + 4]) + (all[i + 8] + all[i + 12]);
}

/* R rows of x against C rows of w: y[r, c] = base[r, c] + x[r] . w[c]. */
static inline __attribute__((always_inline)) void tile(
    const int R, const int C, const float *x, const float *w, int64_t width, const float *base, int64_t base_stride,
    float *y, int64_t y_stride) {
    lanes sums[ROWS][COLUMNS];
    for (int r = 0; r < R; r++) for (int c = 0; c < C; c++) sums[r][c] = (lanes){0};
    for (int64_t i = 0; i < width; i += LANES) {
        lanes column[COLUMNS];
        for (int c = 0; c < C; c++) column[c] = load(w + c * width + i);
        for (int r = 0; r < R; r++) {
            lanes row = load(x + r * width + i);
            HELD(row);
            for (int c = 0; c < C; c++) sums[r][c] += row * column[c];
        }
    }
    for (int r = 0; r < R; r++) {
        float totals[COLUMNS];
        if (C == COLUMNS) totals_of(sums[r], totals);
        else for (int c = 0; c < C; c++) totals[c] = total_of(sums[r][c]);
        for (int c = 0; c < C; c++) y[r * y_stride + c] = totals[c] + (base ? base[r * base_stride + c] : 0.0f);
    }
}

#define TILE(R, C) tile(R, C, x + r * in, w + c * in, in, base ? base + r * base_stride + c : 0, base_stride, y + r * out + c, out)
#define TILES(C) \
    for (int64_t r = 0; r < M; r += ROWS) { \
        switch (M - r) { case 1: TILE(1, C); break; case 2: TILE(2, C); break; case 3: TILE(3, C); break; default: TILE(4, C); } \
    }

/* y[M, out] = base + x[M, in] w[out, in]^T, shared by the threads of a parallel region; a base_stride of 0 is a bias. */
static void product(const float *x, const float *w, const float *base, int64_t base_stride, float *y, int64_t M, int64_t in, int64_t out) {
    #pragma omp for schedule(static) nowait
    for (int64_t block = 0; block < (out + COLUMNS - 1) / COLUMNS; block++) {
        int64_t c = block * COLUMNS;
        if (out - c >= COLUMNS) { TILES(COLUMNS) }
        else for (; c < out; c++) { TILES(1) }
    }
}

static void normalise(const float *x, const float *weight, int64_t width, float eps, float *y) {
    lanes squares = {0};
    for (int64_t i = 0; i < width; i += LANES) squares += load(x + i) * load(x + i);
    float scale = 1.0f / sqrtf(total_of(squares) / width + eps);
    for (int64_t i = 0; i < width; i += LANES) store(y + i, load(x + i) * scale * load(weight + i));
}

static void normalise_rows(const float *x, const float *weight, int64_t M, int64_t width, float eps, float *y) {
    #pragma omp for schedule(static)
    for (int64_t m = 0; m < M; m++) normalise(x + m * width, weight, width, eps, y + m * width);
}

/* Norm, if any, and rotary embedding of one token's heads, in place. */
static void place_heads(float *x, int64_t heads, int64_t H, const float *norm, float eps, const float *cos, const float *sin) {
    for (int64_t n = 0; n < heads; n++, x += H) {
        if (norm) normalise(x, norm, H, eps, x);
        for (int64_t h = 0; h < H / 2; h++) {
            float first = x[h], second = x[h + H / 2];
            x[h] = first * cos[h] - second * sin[h];
            x[h + H / 2] = second * cos[h + H / 2] + first * sin[h + H / 2];
        }
    }
}

/* q[M, N, H], k and v [M, K, H] of x[M, D], rotated; normed[M, D] is scratch. */
void layer_heads(const Layer *layer, const float *x, const float *cos, const float *sin, float *q, float *k, float *v,
                 float *normed, int64_t M, int threads) {
    const int64_t D = layer->d_model, H = layer->head_dim, N = layer->num_heads, K = layer->num_kv_heads;
    #pragma omp parallel num_threads(threads)
    {
        normalise_rows(x, layer->input_norm, M, D, layer->norm_eps, normed);
        product(normed, layer->q, layer->q_bias, 0, q, M, D, N * H);
        product(normed, layer->k, layer->k_bias, 0, k, M, D, K * H);
        product(normed, layer->v, layer->v_bias, 0, v, M, D, K * H);
        #pragma omp barrier
        #pragma omp for schedule(static) nowait
        for (int64_t m = 0; m < M; m++) {
            place_heads(q + m * N * H, N, H, layer->q_norm, layer->norm_eps, cos + m * H, sin + m * H);
            place_heads(k + m * K * H, K, H, layer->k_norm, layer->norm_eps, cos + m * H, sin + m * H);
        }
    }
}

/* out[M, D]: x with the layer's attention, seen[M, N, H], and its MLP added; scratch: M * (D + 2 F) floats. */
void layer_rest(const Layer *layer, const float *x, const float *seen, float *out, float *scratch, int64_t M, int threads) {
    const int64_t D = layer->d_model, F = layer->d_ff;
    float *normed = scratch, *gate = normed + M * D, *up = gate + M * F;
    #pragma omp parallel num_threads(threads)
    {
        product(seen, layer->o, x, D, out, M, layer->num_heads * layer->head_dim, D);
        #pragma omp barrier
        normalise_rows(out, layer->mlp_norm, M, D, layer->norm_eps, normed);
        product(normed, layer->gate, 0, 0, gate, M, D, F);
        product(normed, layer->up, 0, 0, up, M, D, F);
        #pragma omp barrier
        #pragma omp for schedule(static)
        for (int64_t m = 0; m < M; m++) {
            for (int64_t f = m * F; f < (m + 1) * F; f++) {
                float small = exp_negative(-fabsf(gate[f]));
                gate[f] *= up[f] * (gate[f] < 0 ? small : 1.0f) / (1.0f + small);
            }
        }
        product(gate, layer->down, out, D, out, M, F, D);
    }
}

/* y[M, out] = x[M, in] w[out, in]^T. */
void linear(const float *x, const float *w, float *y, int64_t M, int64_t in, int64_t out, int threads) {
    #pragma omp parallel num_threads(threads)
    product(x, w, 0, 0, y, M, in, out);
}

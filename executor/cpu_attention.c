/* Attention of a few queries per sequence over long cached keys and values, in float32 on a CPU.
 *
 * Each key and value is read from memory once, for all queries that share its KV head: blocks of slots stay in the first
 * cache levels while tiles of a few query rows pass over them, with a running softmax (FlashAttention, arXiv 2205.14135).
 * Long sequences are split over threads and merged (split-KV). A row reads no slot beyond its own position.
 *
 * Shapes: B batch, N query heads, K KV heads, G = N / K, T query tokens, S slots, H head dim.
 * Compiled on first use by compiled.py; needs no library.
 */
#include "lanes.h"

enum { BLOCK = 16, TILE = LANES / 2, AHEAD = 64 }; /* two vectors a row of a tile leave registers for what they meet */

/* Ask for a later slot, to lie in the second-level cache when its block comes: what a block computes outlasts the processor's own guesses. */
static inline void fetch(const float *from, int count) {
    for (int i = 0; i < count; i += LANES) __builtin_prefetch(from + i, 0, 2);
}

/* R query rows against `count` slots of a block: updates the running maximum, sum and weighted values of each row.
 * `seen` says up to which of these slots each row may look; `from` where its window begins. */
static inline __attribute__((always_inline)) void tile(
    const int R, const int H, const float *restrict q, const float *restrict k, const float *restrict v, int count,
    const int *from, const int *seen, float scale, float *restrict top, float *restrict sum, float *restrict out) {
    float weight[TILE][BLOCK];
    for (int s = 0; s < count; s++) {
        lanes key[H / LANES];
        fetch(k + (s + AHEAD) * H, H);
        for (int h = 0; h < H / LANES; h++) key[h] = load(k + s * H + h * LANES);
        for (int r = 0; r < R; r++) {
            lanes dot = load(q + r * H) * key[0];
            for (int h = 1; h < H / LANES; h++) dot += load(q + r * H + h * LANES) * key[h];
            weight[r][s] = total_of(dot) * scale;
        }
    }
    for (int r = 0; r < R; r++) {
        for (int s = 0; s < count; s++) weight[r][s] = (s >= from[r] && s < seen[r]) ? weight[r][s] : -INFINITY;
        float best = top[r];
        for (int s = 0; s < count; s++) best = weight[r][s] > best ? weight[r][s] : best;
        if (best == -INFINITY) {
            memset(weight[r], 0, sizeof weight[r]);
            continue;
        }
        float shrink = top[r] == -INFINITY ? 0.0f : exp_negative(top[r] - best), total = 0.0f;
        for (int s = 0; s < count; s++) {
            float w = weight[r][s] == -INFINITY ? 0.0f : exp_negative(weight[r][s] - best);
            weight[r][s] = w;
            total += w;
        }
        top[r] = best;
        sum[r] = sum[r] * shrink + total;
        for (int h = 0; h < H; h++) out[r * H + h] *= shrink;
    }
    for (int h = 0; h < H; h += 2 * LANES) {
        lanes left[TILE], right[TILE];
        for (int r = 0; r < R; r++) left[r] = load(out + r * H + h), right[r] = load(out + r * H + h + LANES);
        for (int s = 0; s < count; s++) {
            fetch(v + (s + AHEAD) * H + h, 2 * LANES);
            lanes a = load(v + s * H + h), b = load(v + s * H + h + LANES);
            for (int r = 0; r < R; r++) left[r] += weight[r][s] * a, right[r] += weight[r][s] * b;
        }
        for (int r = 0; r < R; r++) store(out + r * H + h, left[r]), store(out + r * H + h + LANES, right[r]);
    }
}

#define ROWS(R, H) case R: tile(R, H, q, k, v, count, from, seen, scale, top, sum, out); break;
#ifdef __AVX512F__
#define MORE_ROWS(H) ROWS(5, H) ROWS(6, H) ROWS(7, H) ROWS(8, H)
#else
#define MORE_ROWS(H)
#endif
#define WIDTH(H) \
    case H: \
        switch (rows) { ROWS(1, H) ROWS(2, H) ROWS(3, H) ROWS(4, H) MORE_ROWS(H) } \
        break;

static void any_tile(int rows, int width, const float *q, const float *k, const float *v, int count, const int *from,
                     const int *seen, float scale, float *top, float *sum, float *out) {
    switch (width) { WIDTH(32) WIDTH(64) WIDTH(128) }
}

/* All rows of one (sequence, KV head) over slots [first, last). */
static void span(const float *q, const float *k, const float *v, int rows, int T, int H, float scale, const int64_t *positions,
                 int64_t window, int64_t first, int64_t last, float *top, float *sum, float *out) {
    for (int r = 0; r < rows; r++) { top[r] = -INFINITY; sum[r] = 0.0f; }
    memset(out, 0, sizeof(float) * rows * H);
    for (int64_t start = first; start < last; start += BLOCK) {
        int count = last - start < BLOCK ? (int)(last - start) : BLOCK;
        for (int row = 0; row < rows; row += TILE) {
            int part = rows - row < TILE ? rows - row : TILE, from[TILE], seen[TILE];
            for (int r = 0; r < part; r++) {
                int64_t position = positions[(row + r) % T], begin = window > 0 ? position - window + 1 - start : 0;
                int64_t end = position + 1 - start;
                seen[r] = end > count ? count : end < 0 ? 0 : (int)end;
                from[r] = begin > count ? count : begin < 0 ? 0 : (int)begin;
            }
            any_tile(part, H, q + row * H, k + start * H, v + start * H, count, from, seen, scale, top + row, sum + row, out + row * H);
        }
    }
}

/* out[B,N,T,H] of queries q[B,N,T,H], times scale, over k, v [B,K,S,H] with the given strides (elements) of B and K.
 * positions[B,T] is the last slot each query sees; window 0 is none. scratch: B * K * splits * G * T * (H + 2) floats. */
void attend(const float *q, const float *k, const float *v, const int64_t *positions, float *out, float *scratch, int64_t B, int64_t K,
            int64_t G, int64_t T, int64_t H, int64_t stride_b, int64_t stride_k, int64_t window, int64_t splits, float scale, int threads) {
    const int64_t rows = G * T, items = B * K * splits, size = rows * (H + 2);
    #pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t item = 0; item < items; item++) {
        int64_t pair = item / splits, b = pair / K, kv = pair % K;
        const int64_t *seen = positions + b * T;
        int64_t last = seen[T - 1] + 1, first = window > 0 && seen[0] + 1 > window ? seen[0] + 1 - window : 0;
        int64_t share = (last - first + splits - 1) / splits, low = first + item % splits * share;
        int64_t high = low + share < last ? low + share : last;
        int64_t offset = b * stride_b + kv * stride_k;
        float *part = scratch + item * size;
        span(q + pair * rows * H, k + offset, v + offset, rows, T, H, scale, seen, window, low, high, part + rows * H, part + rows * (H + 1), part);
    }
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t pair = 0; pair < B * K; pair++) {
        for (int64_t r = 0; r < rows; r++) {
            float best = -INFINITY, total = 0.0f, *into = out + (pair * rows + r) * H;
            for (int64_t i = 0; i < splits; i++) {
                float top = scratch[(pair * splits + i) * size + rows * H + r];
                best = top > best ? top : best;
            }
            memset(into, 0, sizeof(float) * H);
            for (int64_t i = 0; i < splits; i++) {
                const float *part = scratch + (pair * splits + i) * size;
                if (part[rows * H + r] == -INFINITY) continue;
                float scale = exp_negative(part[rows * H + r] - best);
                total += scale * part[rows * (H + 1) + r];
                for (int64_t h = 0; h < H; h++) into[h] += scale * part[r * H + h];
            }
            for (int64_t h = 0; h < H; h++) into[h] /= total;
        }
    }
}

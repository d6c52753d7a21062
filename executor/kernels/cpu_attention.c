/* Attention of a few queries per sequence over long cached keys and values, in float32 on a CPU.
 *
 * Each key and value is read from memory once, for all queries that share its KV head. A block of slots stays in the first cache levels while
 * tiles of query rows pass over it, with a running softmax in powers of 2 (FlashAttention, arXiv 2205.14135). Keys are transposed, so that each
 * slot has a lane, unless there are too few rows to make it worthwhile. While a block is computed, the next one is prefetched, a cache line
 * with every few products, so that memory never waits for arithmetic.
 * The slots of a KV head are split into parts (split-KV). Threads claim parts, each one ahead of the part it computes; in the end all parts are
 * merged. A row reads no slot beyond its own position.
 *
 * Shapes: B batch, N query heads, K KV heads, G = N / K, T query tokens, S slots, H head dim. build.py compiles this file on first use.
 */
#include "cpu_attention.h"
#include "simd.h"

enum { BLOCK = 64, MAX_H = 256, LINE = 16 }; /* slots of a block, largest head dim, floats of a cache line */
enum { TILE = REGISTERS * 3 / 8 };           /* query rows of a tile: with two vectors per row all sums stay in registers */
enum { FEW = 2 };                            /* up to so many query rows transposing costs more than it saves */

/* A block of `count` slots of one KV head of one sequence, and the block to prefetch. */
typedef struct {
    const float *k, *v, *next_k, *next_v;
    int count, padded_count; /* padded_count: rounded up to a multiple of two vectors */
    int H, tiles;
    float scale;
} Block;

/* Prefetches `count` floats of the next block and returns the address to continue at. If several tiles share the work, `step` is smaller than
 * `count`. */
INLINE const float *prefetch(const float *next, const int count, int step) {
    for (int i = 0; i < count; i += LINE) __builtin_prefetch(next + i, 0, 3);
    return next + step;
}

/* LANES keys from slot s on: the cache itself, or a copy padded with zeros at the end of a block. */
static inline const float *keys_at(const Block *block, int s, float *padded) {
    const int left = block->count - s, H = block->H;
    if (left >= LANES) return block->k + s * H;
    memcpy(padded, block->k + s * H, sizeof(float) * left * H);
    memset(padded + left * H, 0, sizeof(float) * (LANES - left) * H);
    return padded;
}

/* Lane i of the result is the sum of the lanes of x[i], for LANES vectors x. */
INLINE vec_f32 horizontal_sums(const vec_f32 *x) {
    vec_f32 part[LANES / 4];
    for (int i = 0; i < LANES / 4; i++) part[i] = partial_sums(x + 4 * i);
    for (int n = LANES / 8; n > 0; n /= 2) {
        for (int i = 0; i < n; i++) part[i] = EVEN_FOURS(part[2 * i], part[2 * i + 1]) + ODD_FOURS(part[2 * i], part[2 * i + 1]);
    }
    return part[0];
}

/* Scores of a few query rows, without transposing: products along each key, then horizontal sums. */
static void scores_of_few(int rows, const Block *block, const float *q, float (*weight)[BLOCK]) {
    const int H = block->H;
    float padded[LANES * MAX_H];
    const float *next = block->next_k;
    for (int s = 0; s < block->count; s += LANES) {
        const float *keys = keys_at(block, s, padded);
        for (int r = 0; r < rows; r++) {
            vec_f32 dot[LANES];
            for (int i = 0; i < LANES; i++) {
                if (r == 0) next = prefetch(next, H, H);
                dot[i] = load(q + r * H) * load(keys + i * H);
                for (int h = LANES; h < H; h += LANES) dot[i] = mul_add(load(q + r * H + h), load(keys + i * H + h), dot[i]);
            }
            store(weight[r] + s, horizontal_sums(dot) * block->scale);
        }
    }
}

/* Transposes LANES dimensions of LANES keys to to[dimension][slot]. */
static inline void transpose_square(const float *keys, int H, float *to) {
    vec_f32 fours[LANES / 4][4]; /* fours[i][j], group l of four lanes: dimension 4 l + j of slots 4 i to 4 i + 3 */
    for (int i = 0; i < LANES / 4; i++) {
        vec_f32 x[4];
        for (int j = 0; j < 4; j++) x[j] = load(keys + (4 * i + j) * H);
        vec_f32 a = LOW(x[0], x[1]), b = HIGH(x[0], x[1]), c = LOW(x[2], x[3]), d = HIGH(x[2], x[3]);
        fours[i][0] = LOW_PAIRS(a, c), fours[i][1] = HIGH_PAIRS(a, c), fours[i][2] = LOW_PAIRS(b, d), fours[i][3] = HIGH_PAIRS(b, d);
    }
    for (int j = 0; j < 4; j++) {
        float *at = to + j * BLOCK;
#if LANES == 16
        vec_f32 a = LOW_FOURS(fours[0][j], fours[1][j]), b = LOW_FOURS(fours[2][j], fours[3][j]);
        vec_f32 c = HIGH_FOURS(fours[0][j], fours[1][j]), d = HIGH_FOURS(fours[2][j], fours[3][j]);
        store(at, EVEN_FOURS(a, b)), store(at + 4 * BLOCK, ODD_FOURS(a, b));
        store(at + 8 * BLOCK, EVEN_FOURS(c, d)), store(at + 12 * BLOCK, ODD_FOURS(c, d));
#elif LANES == 8
        store(at, EVEN_FOURS(fours[0][j], fours[1][j])), store(at + 4 * BLOCK, ODD_FOURS(fours[0][j], fours[1][j]));
#else
        store(at, fours[0][j]);
#endif
    }
}

/* Transposes the keys of a block to transposed[H][BLOCK]. */
static void transpose_keys(const Block *block, float *transposed) {
    float padded[LANES * MAX_H];
    for (int s = 0; s < block->count; s += LANES) {
        const float *keys = keys_at(block, s, padded);
        for (int h = 0; h < block->H; h += LANES) transpose_square(keys + h, block->H, transposed + h * BLOCK + s);
    }
}

/* Scores of R query rows against transposed keys, one slot per lane. */
INLINE void scores_of(
    const int R, const Block *block, const float *restrict transposed, int tile, const float *restrict q, float (*restrict weight)[BLOCK]) {
    const int H = block->H, count = block->count, step = 2 * LANES / block->tiles;
    const float *next = block->next_k + BLOCK * H / block->tiles * tile, scale = block->scale;
    for (int s = 0; s < count; s += 2 * LANES) {
        vec_f32 left[TILE], right[TILE];
        for (int r = 0; r < R; r++) left[r] = right[r] = splat(0.0f);
        for (int h = 0; h < H; h++) {
            next = prefetch(next, 2 * LANES, step);
            vec_f32 a = load(transposed + h * BLOCK + s), b = load(transposed + h * BLOCK + s + LANES);
            for (int r = 0; r < R; r++) left[r] = mul_add(splat(q[r * H + h]), a, left[r]), right[r] = mul_add(splat(q[r * H + h]), b, right[r]);
        }
        for (int r = 0; r < R; r++) store(weight[r] + s, left[r] * scale), store(weight[r] + s + LANES, right[r] * scale);
    }
}

/* Turns the scores of one row into softmax weights, and rescales the row's running sum and output to its new maximum. */
static inline void online_softmax(const Block *block, float *restrict weight, float *restrict top, float *restrict sum, float *restrict out) {
    vec_f32 highest = load(weight), total = splat(0.0f);
    for (int s = LANES; s < block->padded_count; s += LANES) highest = vec_max(highest, load(weight + s));
    const float best = horizontal_max(highest);
    if (best > *top) {
        const float shrink = vec_exp2(splat(*top - best))[0];
        for (int h = 0; h < block->H; h += LANES) store(out + h, load(out + h) * shrink);
        *sum *= shrink;
        *top = best;
    }
    const float base = *top == -INFINITY ? 0.0f : *top; /* -inf: no slot was visible yet */
    for (int s = 0; s < block->padded_count; s += LANES) {
        vec_f32 x = vec_exp2(load(weight + s) - base);
        store(weight + s, x);
        total += x;
    }
    *sum += horizontal_sum(total);
}

/* Adds the weighted values of a block to the outputs of R query rows, C vectors at a time. */
INLINE void add_values(
    const int R, const int C, const Block *block, int tile, const float (*restrict weight)[BLOCK], float *restrict out) {
    const int H = block->H, count = block->count, step = C * LANES / block->tiles;
    const float *next = block->next_v + BLOCK * H / block->tiles * tile;
    for (int h = 0; h < H; h += C * LANES) {
        const float *v = block->v + h;
        vec_f32 sums[TILE][4];
        for (int r = 0; r < R; r++) for (int c = 0; c < C; c++) sums[r][c] = load(out + r * H + h + c * LANES);
        for (int s = 0; s < count; s++, v += H) {
            next = prefetch(next, C * LANES, step);
            vec_f32 value[4];
            for (int c = 0; c < C; c++) value[c] = load(v + c * LANES);
            for (int r = 0; r < R; r++) for (int c = 0; c < C; c++) sums[r][c] = mul_add(splat(weight[r][s]), value[c], sums[r][c]);
        }
        for (int r = 0; r < R; r++) for (int c = 0; c < C; c++) store(out + r * H + h + c * LANES, sums[r][c]);
    }
}

/* Both for each number of rows in a tile. */
#define DEFINE(R) \
    static void scores_##R(const Block *block, const float *transposed, int tile, const float *q, float (*weight)[BLOCK]) { scores_of(R, block, transposed, tile, q, weight); } \
    static void values_##R(const Block *block, int tile, const float (*weight)[BLOCK], float *out) { \
        if (R <= 2 && block->H % (4 * LANES) == 0) add_values(R, 4, block, tile, weight, out); \
        else add_values(R, 2, block, tile, weight, out); \
    }
DEFINE(1) DEFINE(2) DEFINE(3) DEFINE(4) DEFINE(5) DEFINE(6)
#if REGISTERS == 32
DEFINE(7) DEFINE(8) DEFINE(9) DEFINE(10) DEFINE(11) DEFINE(12)
#define EACH(f) 0, f##1, f##2, f##3, f##4, f##5, f##6, f##7, f##8, f##9, f##10, f##11, f##12
#else
#define EACH(f) 0, f##1, f##2, f##3, f##4, f##5, f##6
#endif
static void (*const scores[])(const Block *, const float *, int, const float *, float (*)[BLOCK]) = {EACH(scores_)};
static void (*const values[])(const Block *, int, const float (*)[BLOCK], float *) = {EACH(values_)};

/* A tile of query rows over a block. `transposed` is null for few rows. Row r sees the slots [first[r], end[r]), or all if both are null. */
static void attend_tile(int rows, const Block *block, const float *transposed, int tile, const float *q, const int *first, const int *end, float *top,
                        float *sum, float *out) {
    float weight[TILE][BLOCK] __attribute__((aligned(64)));
    if (transposed) scores[rows](block, transposed, tile, q, weight);
    else scores_of_few(rows, block, q, weight);
    for (int r = 0; r < rows; r++) {
        if (end) for (int s = 0; s < block->padded_count; s++) weight[r][s] = s >= first[r] && s < end[r] ? weight[r][s] : -INFINITY;
        online_softmax(block, weight[r], top + r, sum + r, out + r * block->H);
    }
    values[rows](block, tile, (const float (*)[BLOCK])weight, out);
}

static inline int clamp(int64_t x, int most) { return x < 0 ? 0 : x > most ? most : (int)x; }

/* A part of the slots of one KV head of one sequence, [first, end), and the query rows that attend to it. */
typedef struct {
    const float *q, *k, *v;
    const int64_t *positions;
    int64_t first, end;
} Part;

static Part part_of(const Attention *a, int64_t item) {
    const int64_t pair = item / a->splits, b = pair / a->K, offset = b * a->stride_b + pair % a->K * a->stride_k;
    const int64_t *positions = a->positions + b * a->T, end = positions[a->T - 1] + 1;
    const int64_t first = a->window > 0 && positions[0] + 1 > a->window ? positions[0] + 1 - a->window : 0;
    const int64_t size = (end - first + a->splits - 1) / a->splits, start = first + item % a->splits * size;
    return (Part){a->q + pair * a->G * a->T * a->H, a->k + offset, a->v + offset, positions, start, start + size < end ? start + size : end};
}

/* Attention of all query rows over a part. out[rows][H] and sum[rows] are relative to 2^top[rows]; merge_parts divides one by the other. The last
 * block prefetches the beginning of `after`, the part that this thread computes next. */
static void attend_slots(const Attention *a, Part part, Part after, float *top, float *sum, float *out) {
    const int rows = (int)(a->G * a->T), H = (int)a->H, tiles = (rows + TILE - 1) / TILE, height = (rows + tiles - 1) / tiles, few = rows <= FEW;
    float transposed[BLOCK * MAX_H] __attribute__((aligned(64)));
    for (int r = 0; r < rows; r++) top[r] = -INFINITY, sum[r] = 0.0f;
    memset(out, 0, sizeof(float) * rows * H);
    for (int64_t start = part.first; start < part.end; start += BLOCK) {
        const int count = clamp(part.end - start, BLOCK), padded = (count + 2 * LANES - 1) / (2 * LANES) * 2 * LANES;
        const int more = start + BLOCK < part.end;
        const int64_t next = (more ? start + BLOCK : after.first) * H;
        const Block block = {
            part.k + start * H, part.v + start * H, (more ? part.k : after.k) + next, (more ? part.v : after.v) + next,
            count, padded, H, tiles, a->scale * LOG2_E,
        };
        const int masked = count < padded || start + count > part.positions[0] + 1 || a->window > 0;
        if (!few) transpose_keys(&block, transposed);
        for (int row = 0; row < rows; row += height) {
            const int some = rows - row < height ? rows - row : height;
            int first[TILE], end[TILE];
            for (int r = 0; masked && r < some; r++) {
                const int64_t position = part.positions[(row + r) % a->T];
                end[r] = clamp(position + 1 - start, count);
                first[r] = a->window > 0 ? clamp(position - a->window + 1 - start, count) : 0;
            }
            attend_tile(some, &block, few ? 0 : transposed, row / height, part.q + row * H, masked ? first : 0, masked ? end : 0, top + row, sum + row,
                        out + row * H);
        }
    }
}

static void attend_part(const Attention *a, int64_t part, int64_t next) {
    const int64_t rows = a->G * a->T;
    float *into = a->workspace + part * rows * (a->H + 2);
    attend_slots(a, part_of(a, part), part_of(a, next), into + rows * a->H, into + rows * (a->H + 1), into);
}

/* Merges the parts into `out` after all of them are computed. */
static void merge_parts(const Attention *a) {
    const int64_t rows = a->G * a->T, H = a->H, size = rows * (H + 2);
    #pragma omp for schedule(static)
    for (int64_t row = 0; row < a->B * a->K * rows; row++) {
        const int64_t pair = row / rows, t = row % a->T, n = pair % a->K * a->G + row % rows / a->T;
        const float *parts = a->workspace + pair * a->splits * size, *tops = parts + rows * H + row % rows, *sums = tops + rows;
        float *into = a->out + (a->by_token ? (pair / a->K * a->T + t) * a->K * a->G + n : row) * H, best = -INFINITY, total = 0.0f;
        for (int64_t i = 0; i < a->splits; i++) best = tops[i * size] > best ? tops[i * size] : best;
        memset(into, 0, sizeof(float) * H);
        for (int64_t i = 0; i < a->splits; i++) {
            const float *part = parts + i * size + row % rows * H, scale = vec_exp2(splat(tops[i * size] - best))[0];
            total += scale * sums[i * size];
            for (int64_t h = 0; h < H; h += LANES) store(into + h, mul_add(load(part + h), splat(scale), load(into + h)));
        }
        for (int64_t h = 0; h < H; h += LANES) store(into + h, load(into + h) / total);
    }
}

static int64_t claim_next(int64_t *next) { return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED); }

void attend_together(const Attention *a, int64_t *next_part) {
    const int64_t count = a->B * a->K * a->splits;
    for (int64_t part = claim_next(next_part), next; part < count; part = next) {
        next = claim_next(next_part);
        attend_part(a, part, next < count ? next : part);
    }
    #pragma omp barrier
    #pragma omp single nowait
    *next_part = 0;
    merge_parts(a);
}

/* Attention with a parallel region of its own; q and out are [B,N,T,H]. */
void attend(const float *q, const float *k, const float *v, const int64_t *positions, float *out, float *workspace, int64_t B, int64_t K,
            int64_t G, int64_t T, int64_t H, int64_t stride_b, int64_t stride_k, int64_t window, int64_t splits, float scale, int threads) {
    int64_t next_part = 0;
    const Attention a = {q, k, v, positions, out, workspace, B, K, G, T, H, stride_b, stride_k, window, splits, scale, 0};
    #pragma omp parallel num_threads(threads)
    attend_together(&a, &next_part);
}

/* Attention of a few queries per sequence over long cached keys and values, in float32 on a CPU.
 *
 * Each key and value is read from memory once, for all queries that share its KV head: blocks of slots stay in the first
 * cache levels while tiles of query rows pass over them, with a running softmax in powers of 2 (FlashAttention,
 * arXiv 2205.14135). Keys are turned so that each slot has a lane, unless the rows are too few to be worth it. Of the next
 * block a line is asked for with every few products: memory is to work while the processor does.
 * Threads claim parts of sequences, one ahead of the one they are at; parts of the same are merged (split-KV). A row reads no slot
 * beyond its own position.
 *
 * Shapes: B batch, N query heads, K KV heads, G = N / K, T query tokens, S slots, H head dim.
 * Compiled on first use by compiled.py; needs no library.
 */
#include "cpu_attention.h"
#include "simd.h"

enum { BLOCK = 64, TILE = LANES * 3 / 4, FEW = 2, WIDEST = 256, LINE = 16 }; /* two vectors a row of a tile leave registers for what they meet */

/* Asked for as used once, data is kept in Zen's second level and out of its third; other processors may drop it from the first before its turn. */
#if defined(__znver1__) || defined(__znver2__) || defined(__znver3__) || defined(__znver4__) || defined(__znver5__)
enum { AHEAD = 0 };
#else
enum { AHEAD = 3 };
#endif

/* What the rows of a (sequence, KV head) have in common over a block of `count` slots. */
typedef struct {
    const float *k, *v, *next_k, *next_v;
    int count, wide; /* `wide`: rounded up to pairs of vectors */
    int H, tiles;
    float scale;
} Block;

/* Asks for `count` floats of the next block, of which a tile's share counts; answers where the next ones are. */
static inline __attribute__((always_inline)) const float *fetch(const float *ahead, const int count, int share) {
    for (int i = 0; i < count; i += LINE) __builtin_prefetch(ahead + i, 0, AHEAD);
    return ahead + share;
}

/* LANES keys from slot s on: where they lie, or with zeros for what is not there. */
static inline const float *keys_at(const Block *block, int s, float *padded) {
    const int there = block->count - s, H = block->H;
    if (there >= LANES) return block->k + s * H;
    memcpy(padded, block->k + s * H, sizeof(float) * there * H);
    memset(padded + there * H, 0, sizeof(float) * (LANES - there) * H);
    return padded;
}

/* One vector with the totals of LANES vectors. */
static inline __attribute__((always_inline)) lanes totals_of(const lanes *x) {
    lanes part[LANES / 4];
    for (int i = 0; i < LANES / 4; i++) part[i] = parts_of_totals(x + 4 * i);
    for (int n = LANES / 8; n > 0; n /= 2) {
        for (int i = 0; i < n; i++) part[i] = EVEN_FOURS(part[2 * i], part[2 * i + 1]) + ODD_FOURS(part[2 * i], part[2 * i + 1]);
    }
    return part[0];
}

/* Scores of a few rows, each slot's products along its key. */
static inline __attribute__((always_inline)) void scores_along(const int H, int rows, const Block *block, const float *q, float (*weight)[BLOCK]) {
    float padded[LANES * WIDEST];
    const float *ahead = block->next_k;
    for (int s = 0; s < block->count; s += LANES) {
        const float *keys = keys_at(block, s, padded);
        for (int r = 0; r < rows; r++) {
            lanes dot[LANES];
            for (int i = 0; i < LANES; i++) {
                if (r == 0) ahead = fetch(ahead, H, H);
                dot[i] = load(q + r * H) * load(keys + i * H);
                for (int h = LANES; h < H; h += LANES) dot[i] = mul_add(load(q + r * H + h), load(keys + i * H + h), dot[i]);
            }
            store(weight[r] + s, totals_of(dot) * block->scale);
        }
    }
}

static void scores_of_few(int rows, const Block *block, const float *q, float (*weight)[BLOCK]) {
    switch (block->H) {
        case 32: scores_along(32, rows, block, q, weight); break;
        case 64: scores_along(64, rows, block, q, weight); break;
        case 128: scores_along(128, rows, block, q, weight); break;
        default: scores_along(block->H, rows, block, q, weight);
    }
}

/* LANES dimensions of LANES keys, turned: to[dimension][slot]. */
static inline void turn(const float *keys, int H, float *to) {
    lanes fours[LANES / 4][4]; /* of each group of four slots: dimension 4 l + j in the l-th four of vector j */
    for (int i = 0; i < LANES / 4; i++) {
        lanes x[4];
        for (int j = 0; j < 4; j++) x[j] = load(keys + (4 * i + j) * H);
        lanes a = LOW(x[0], x[1]), b = HIGH(x[0], x[1]), c = LOW(x[2], x[3]), d = HIGH(x[2], x[3]);
        fours[i][0] = LOW_PAIRS(a, c), fours[i][1] = HIGH_PAIRS(a, c), fours[i][2] = LOW_PAIRS(b, d), fours[i][3] = HIGH_PAIRS(b, d);
    }
    for (int j = 0; j < 4; j++) {
        float *at = to + j * BLOCK;
#ifdef __AVX512F__
        lanes a = LOW_FOURS(fours[0][j], fours[1][j]), b = LOW_FOURS(fours[2][j], fours[3][j]);
        lanes c = HIGH_FOURS(fours[0][j], fours[1][j]), d = HIGH_FOURS(fours[2][j], fours[3][j]);
        store(at, EVEN_FOURS(a, b)), store(at + 4 * BLOCK, ODD_FOURS(a, b));
        store(at + 8 * BLOCK, EVEN_FOURS(c, d)), store(at + 12 * BLOCK, ODD_FOURS(c, d));
#else
        store(at, EVEN_FOURS(fours[0][j], fours[1][j])), store(at + 4 * BLOCK, ODD_FOURS(fours[0][j], fours[1][j]));
#endif
    }
}

/* turned[H][BLOCK] of a block's keys. */
static void turn_keys(const Block *block, float *turned) {
    float padded[LANES * WIDEST];
    for (int s = 0; s < block->count; s += LANES) {
        const float *keys = keys_at(block, s, padded);
        for (int h = 0; h < block->H; h += LANES) turn(keys + h, block->H, turned + h * BLOCK + s);
    }
}

/* Scores of R rows against turned keys, a slot a lane. */
static inline __attribute__((always_inline)) void scores_of(
    const int R, const Block *block, const float *restrict turned, int tile, const float *restrict q, float (*restrict weight)[BLOCK]) {
    const int H = block->H, count = block->count, share = 2 * LANES / block->tiles;
    const float *ahead = block->next_k + BLOCK * H / block->tiles * tile, scale = block->scale;
    for (int s = 0; s < count; s += 2 * LANES) {
        lanes left[TILE], right[TILE];
        for (int r = 0; r < R; r++) left[r] = right[r] = all(0.0f);
        for (int h = 0; h < H; h++) {
            ahead = fetch(ahead, 2 * LANES, share);
            lanes a = load(turned + h * BLOCK + s), b = load(turned + h * BLOCK + s + LANES);
            for (int r = 0; r < R; r++) left[r] = mul_add(all(q[r * H + h]), a, left[r]), right[r] = mul_add(all(q[r * H + h]), b, right[r]);
        }
        for (int r = 0; r < R; r++) store(weight[r] + s, left[r] * scale), store(weight[r] + s + LANES, right[r] * scale);
    }
}

/* One row's scores become weights; its running maximum, sum and weighted values follow. */
static inline void weigh(const Block *block, float *restrict weight, float *restrict top, float *restrict sum, float *restrict out) {
    lanes most = load(weight), total = all(0.0f);
    for (int s = LANES; s < block->wide; s += LANES) most = larger(most, load(weight + s));
    const float best = largest_of(most);
    if (best > *top) {
        const float shrink = exp2_of(all(*top - best))[0];
        for (int h = 0; h < block->H; h += LANES) store(out + h, load(out + h) * shrink);
        *sum *= shrink;
        *top = best;
    }
    const float base = *top == -INFINITY ? 0.0f : *top; /* it has seen no slot yet */
    for (int s = 0; s < block->wide; s += LANES) {
        lanes x = exp2_of(load(weight + s) - base);
        store(weight + s, x);
        total += x;
    }
    *sum += total_of(total);
}

/* Weighted values of R rows, C vectors of them at once. */
static inline __attribute__((always_inline)) void add_values(
    const int R, const int C, const Block *block, int tile, const float (*restrict weight)[BLOCK], float *restrict out) {
    const int H = block->H, count = block->count, share = C * LANES / block->tiles;
    const float *ahead = block->next_v + BLOCK * H / block->tiles * tile;
    for (int h = 0; h < H; h += C * LANES) {
        const float *v = block->v + h;
        lanes sums[TILE][4];
        for (int r = 0; r < R; r++) for (int c = 0; c < C; c++) sums[r][c] = load(out + r * H + h + c * LANES);
        for (int s = 0; s < count; s++, v += H) {
            ahead = fetch(ahead, C * LANES, share);
            lanes value[4];
            for (int c = 0; c < C; c++) value[c] = load(v + c * LANES);
            for (int r = 0; r < R; r++) for (int c = 0; c < C; c++) sums[r][c] = mul_add(all(weight[r][s]), value[c], sums[r][c]);
        }
        for (int r = 0; r < R; r++) for (int c = 0; c < C; c++) store(out + r * H + h + c * LANES, sums[r][c]);
    }
}

/* Both for every height of a tile. */
#define DEFINE(R) \
    static void scores_##R(const Block *block, const float *turned, int tile, const float *q, float (*weight)[BLOCK]) { scores_of(R, block, turned, tile, q, weight); } \
    static void values_##R(const Block *block, int tile, const float (*weight)[BLOCK], float *out) { \
        if (R <= 2 && block->H % (4 * LANES) == 0) add_values(R, 4, block, tile, weight, out); \
        else add_values(R, 2, block, tile, weight, out); \
    }
DEFINE(1) DEFINE(2) DEFINE(3) DEFINE(4) DEFINE(5) DEFINE(6)
#ifdef __AVX512F__
DEFINE(7) DEFINE(8) DEFINE(9) DEFINE(10) DEFINE(11) DEFINE(12)
#define EACH(f) 0, f##1, f##2, f##3, f##4, f##5, f##6, f##7, f##8, f##9, f##10, f##11, f##12
#else
#define EACH(f) 0, f##1, f##2, f##3, f##4, f##5, f##6
#endif
static void (*const scores[])(const Block *, const float *, int, const float *, float (*)[BLOCK]) = {EACH(scores_)};
static void (*const values[])(const Block *, int, const float (*)[BLOCK], float *) = {EACH(values_)};

/* A tile of rows over a block, whose turned keys are given unless the rows are few. Row r sees slots [from[r], seen[r]); all where these are null. */
static void pass(int rows, const Block *block, const float *turned, int tile, const float *q, const int *from, const int *seen,
                 float *top, float *sum, float *out) {
    float weight[TILE][BLOCK] __attribute__((aligned(64)));
    if (turned) scores[rows](block, turned, tile, q, weight);
    else scores_of_few(rows, block, q, weight);
    for (int r = 0; r < rows; r++) {
        if (seen) for (int s = 0; s < block->wide; s++) weight[r][s] = s >= from[r] && s < seen[r] ? weight[r][s] : -INFINITY;
        weigh(block, weight[r], top + r, sum + r, out + r * block->H);
    }
    values[rows](block, tile, (const float (*)[BLOCK])weight, out);
}

static inline int within(int64_t x, int most) { return x < 0 ? 0 : x > most ? most : (int)x; }

/* Slots [first, last) of a (sequence, KV head), which its query rows q see up to their positions. */
typedef struct {
    const float *q, *k, *v;
    const int64_t *positions;
    int64_t first, last;
} Part;

static Part part_of(const Attention *a, int64_t item) {
    const int64_t pair = item / a->splits, b = pair / a->K, offset = b * a->stride_b + pair % a->K * a->stride_k, *seen = a->positions + b * a->T;
    const int64_t last = seen[a->T - 1] + 1, first = a->window > 0 && seen[0] + 1 > a->window ? seen[0] + 1 - a->window : 0;
    const int64_t share = (last - first + a->splits - 1) / a->splits, low = first + item % a->splits * share;
    return (Part){a->q + pair * a->G * a->T * a->H, a->k + offset, a->v + offset, seen, low, low + share < last ? low + share : last};
}

/* All rows over a part: out[rows][H] is to be divided by the sums, both relative to 2^top. What is read after it is asked for at its end. */
static void span(const Attention *a, Part part, Part after, float *top, float *sum, float *out) {
    const int rows = (int)(a->G * a->T), H = (int)a->H, tiles = (rows + TILE - 1) / TILE, height = (rows + tiles - 1) / tiles, few = rows <= FEW;
    float turned[BLOCK * WIDEST] __attribute__((aligned(64)));
    for (int r = 0; r < rows; r++) top[r] = -INFINITY, sum[r] = 0.0f;
    memset(out, 0, sizeof(float) * rows * H);
    for (int64_t start = part.first; start < part.last; start += BLOCK) {
        const int count = within(part.last - start, BLOCK), wide = (count + 2 * LANES - 1) / (2 * LANES) * 2 * LANES;
        const int more = start + BLOCK < part.last;
        const int64_t next = (more ? start + BLOCK : after.first) * H;
        const Block block = {
            part.k + start * H, part.v + start * H, (more ? part.k : after.k) + next, (more ? part.v : after.v) + next,
            count, wide, H, tiles, a->scale * LOG2_E,
        };
        const int cut = count < wide || start + count > part.positions[0] + 1 || a->window > 0;
        if (!few) turn_keys(&block, turned);
        for (int row = 0; row < rows; row += height) {
            const int some = rows - row < height ? rows - row : height;
            int from[TILE], seen[TILE];
            for (int r = 0; cut && r < some; r++) {
                const int64_t position = part.positions[(row + r) % a->T];
                seen[r] = within(position + 1 - start, count);
                from[r] = a->window > 0 ? within(position - a->window + 1 - start, count) : 0;
            }
            pass(some, &block, few ? 0 : turned, row / height, part.q + row * H, cut ? from : 0, cut ? seen : 0, top + row, sum + row, out + row * H);
        }
    }
}

void attend_part(const Attention *a, int64_t part, int64_t next) {
    const int64_t rows = a->G * a->T;
    float *into = a->scratch + part * rows * (a->H + 2);
    span(a, part_of(a, part), part_of(a, next), into + rows * a->H, into + rows * (a->H + 1), into);
}

void merge_parts(const Attention *a) {
    const int64_t rows = a->G * a->T, H = a->H, size = rows * (H + 2);
    #pragma omp for schedule(static)
    for (int64_t row = 0; row < a->B * a->K * rows; row++) {
        const int64_t pair = row / rows, t = row % a->T, n = pair % a->K * a->G + row % rows / a->T;
        const float *parts = a->scratch + pair * a->splits * size, *tops = parts + rows * H + row % rows, *sums = tops + rows;
        float *into = a->out + (a->by_token ? (pair / a->K * a->T + t) * a->K * a->G + n : row) * H, best = -INFINITY, total = 0.0f;
        for (int64_t i = 0; i < a->splits; i++) best = tops[i * size] > best ? tops[i * size] : best;
        memset(into, 0, sizeof(float) * H);
        for (int64_t i = 0; i < a->splits; i++) {
            const float *part = parts + i * size + row % rows * H, share = exp2_of(all(tops[i * size] - best))[0];
            total += share * sums[i * size];
            for (int64_t h = 0; h < H; h += LANES) store(into + h, mul_add(load(part + h), all(share), load(into + h)));
        }
        for (int64_t h = 0; h < H; h += LANES) store(into + h, load(into + h) / total);
    }
}

void attend_together(const Attention *a, int64_t *claimed) {
    for (int64_t part = claim(claimed), next; part < parts_of(a); part = next) {
        next = claim(claimed);
        attend_part(a, part, next < parts_of(a) ? next : part);
    }
    #pragma omp barrier
    #pragma omp single nowait
    *claimed = 0;
    merge_parts(a);
}

/* The same with threads of its own; q and out are [B,N,T,H]. */
void attend(const float *q, const float *k, const float *v, const int64_t *positions, float *out, float *scratch, int64_t B, int64_t K,
            int64_t G, int64_t T, int64_t H, int64_t stride_b, int64_t stride_k, int64_t window, int64_t splits, float scale, int threads) {
    int64_t claimed = 0;
    const Attention a = {q, k, v, positions, out, scratch, B, K, G, T, H, stride_b, stride_k, window, splits, scale, 0};
    #pragma omp parallel num_threads(threads)
    attend_together(&a, &claimed);
}

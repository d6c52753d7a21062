/* Decoder layers in float32 on a CPU: all of a pass but the LM head, and of a prompt all but the attention.
 *
 * Products of few rows are bound by reading the weights: each is read once, where the checkpoint put it and in its type. As many
 * tokens as there are lanes are turned to have one each, and meet one weight after another; of the rest, each meets many weights at once.
 * Of many tokens, so many as stay in the second cache level meet all weights, then the next.
 *
 * Shapes: B batch, T tokens a row, M tokens in all, P positions, V vocabulary, D model, N query heads, K KV heads, H head dim, F MLP width; weights are [out, in].
 * Compiled on first use by compiled.py; needs no library.
 */
#include "cpu_attention.h"
#include "lanes.h"

enum { ROWS = LANES / 4, COLUMNS = 4, WIDE = 8, PAIR_WIDE = LANES / 2, CHUNK = 64, TOKENS = 128 }; /* all sums of a tile stay in registers */
enum { LINE = 64, AHEAD = 1024 }; /* of memory; how far ahead of a row's weights others are asked for [bytes] */

typedef struct {
    const void *q, *k, *v, *o, *gate, *up, *down; /* of one type */
    const float *input_norm, *mlp_norm, *q_bias, *k_bias, *v_bias, *q_norm, *k_norm; /* null where there is none */
    int64_t type, d_model, num_heads, num_kv_heads, head_dim, d_ff;
    float norm_eps;
} Layer;

typedef struct {
    const float *embedding, *norm, *cos, *sin; /* [V, D], [D], [P, H] twice */
    int64_t vocab_size, num_positions, num_layers;
    const Layer *layers;
} Stack;

/* Keeps GCC from loading a value again for each of its uses. */
#if defined(__AVX512F__)
#define HELD(x) __asm__("" : "+v"(x))
#elif defined(__AVX__)
#define HELD(x) __asm__("" : "+x"(x))
#else
#define HELD(x)
#endif

/* The totals of four vectors. */
static inline void totals_of(const lanes *x, float *totals) {
    typedef float four __attribute__((vector_size(16)));
    lanes all_parts = parts_of_totals(x);
    four parts[LANES / 4];
    memcpy(parts, &all_parts, sizeof all_parts);
    for (int i = 1; i < LANES / 4; i++) parts[0] += parts[i];
    memcpy(totals, parts, sizeof parts[0]);
}

/* y[M, out] = base + x[M, in] w[out, in]^T, w of a type. A base_stride of 0 is a bias; a base of 0 is none. `turned`: of every LANES
 * tokens x is also given as turned[in, LANES]; if turn_y, y is answered so for them, and has no base. */
typedef struct {
    int64_t type;
    const float *x, *turned;
    const void *w;
    const float *base;
    float *y;
    int64_t in, out, base_stride;
    int turn_y; /* only with a multiple of WIDE outputs */
} Product;

static inline void answer(const Product *p, int64_t r, int64_t c, float value) {
    p->y[r * p->out + c] = value + (p->base ? p->base[r * p->base_stride + c] : 0.0f);
}

/* A few tokens: R of them against C outputs, each sum in lanes along `in`. */
static inline __attribute__((always_inline)) void tile(const int type, const int R, const int C, const Product *p, int64_t r0, int64_t c0) {
    const float *x = p->x + r0 * p->in;
    lanes sums[ROWS][WIDE];
    for (int r = 0; r < R; r++) for (int c = 0; c < C; c++) sums[r][c] = (lanes){0};
    for (int64_t i = 0; i < p->in; i += LANES) {
        lanes column[WIDE];
        for (int c = 0; c < C; c++) {
            const int64_t place = (c0 + c) * p->in + i;
            if (i * size_of(type) % LINE == 0) __builtin_prefetch((const char *)p->w + place * size_of(type) + AHEAD, 0, 3);
            column[c] = load_as(type, p->w, place);
        }
        for (int r = 0; r < R; r++) {
            lanes row = load(x + r * p->in + i);
            HELD(row);
            for (int c = 0; c < C; c++) sums[r][c] += row * column[c];
        }
    }
    for (int r = 0; r < R; r++) {
        float totals[WIDE];
        for (int c = 0; c < C; c += 4) {
            if (C - c >= 4) totals_of(sums[r] + c, totals + c);
            else totals[c] = total_of(sums[r][c]);
        }
        for (int c = 0; c < C; c++) answer(p, r0 + r, c0 + c, totals[c]);
    }
}

/* N times LANES tokens, turned so that each has a lane, against C outputs. */
static inline __attribute__((always_inline)) void panel(const int type, const int N, const int C, const Product *p, int64_t r0, int64_t c0) {
    const int64_t in = p->in;
    const float *x = p->turned + r0 * in;
    lanes sums[2][WIDE];
    for (int n = 0; n < N; n++) for (int c = 0; c < C; c++) sums[n][c] = all(0.0f);
    for (int64_t start = 0; start < in; start += CHUNK) {
        const int64_t count = in - start < CHUNK ? in - start : CHUNK;
        float widened[WIDE][CHUNK];
        const float *w[WIDE];
        for (int c = 0; c < C; c++) {
            const int64_t place = (c0 + c) * in + start;
            const char *next = (const char *)p->w + (place + C * in) * size_of(type); /* the weights of the next outputs */
            for (int64_t i = 0; i < count * size_of(type); i += LINE) __builtin_prefetch(next + i, 0, 3);
            if (type != FLOAT32) for (int64_t i = 0; i < count; i += LANES) store(widened[c] + i, load_as(type, p->w, place + i));
            w[c] = type == FLOAT32 ? (const float *)p->w + place : widened[c];
        }
        for (int64_t i = 0; i < count; i++) {
            lanes tokens[2];
            for (int n = 0; n < N; n++) tokens[n] = load(x + (n * in + start + i) * LANES);
            for (int c = 0; c < C; c++) for (int n = 0; n < N; n++) sums[n][c] += w[c][i] * tokens[n];
        }
    }
    for (int n = 0; n < N; n++, r0 += LANES) {
        if (p->turn_y) for (int c = 0; c < C; c++) store(p->y + r0 * p->out + (c0 + c) * LANES, sums[n][c]);
        else for (int r = 0; r < LANES; r++) for (int c = 0; c < C; c++) answer(p, r0 + r, c0 + c, sums[n][c][r]);
    }
}

/* WIDE outputs, or what there is from c on, of tokens [r, M). */
static inline __attribute__((always_inline)) void outputs(const int type, const Product *p, int64_t r, int64_t M, int64_t c) {
    const int64_t full = M / LANES * LANES;
    if (p->out - c < WIDE) {
        for (; r < M; r++) for (int64_t i = c; i < p->out; i++) tile(type, 1, 1, p, r, i);
        return;
    }
    for (; r + 2 * LANES <= full; r += 2 * LANES) for (int i = 0; i < WIDE; i += PAIR_WIDE) panel(type, 2, PAIR_WIDE, p, r, c + i);
    for (; r < full; r += LANES) panel(type, 1, WIDE, p, r, c);
    for (; r + ROWS <= M; r += ROWS) for (int i = 0; i < WIDE; i += COLUMNS) tile(type, ROWS, COLUMNS, p, r, c + i);
    for (; r < M; r++) tile(type, 1, WIDE, p, r, c);
}

/* Shared by the threads of a parallel region, which do not wait for each other at the end. */
static void multiply(Product product, int64_t M) {
    for (int64_t r = 0; r < M; r += TOKENS) {
        const int64_t stop = r + TOKENS < M ? r + TOKENS : M;
        #pragma omp for schedule(static) nowait
        for (int64_t c = 0; c < product.out; c += WIDE) {
            switch (product.type) {
                case FLOAT32: outputs(FLOAT32, &product, r, stop, c); break;
                case FLOAT16: outputs(FLOAT16, &product, r, stop, c); break;
                case BFLOAT16: outputs(BFLOAT16, &product, r, stop, c); break;
            }
        }
    }
}

/* Of every LANES tokens x[LANES, in]: turned[in, LANES]. */
static void turn(const float *x, int64_t M, int64_t in, float *turned) {
    #pragma omp for schedule(static)
    for (int64_t i = 0; i < M / LANES * in; i++) {
        const float *from = x + i / in * in * LANES + i % in;
        for (int l = 0; l < LANES; l++) turned[i * LANES + l] = from[l * in];
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

/* What follows is shared by the threads of a parallel region; none of them leaves before all are done. */

/* q[M, N, H], k and v [M, K, H] of x[M, D], rotated as cos and sin [P, H] say for positions[M]; scratch: 2 M D floats. */
static void heads(const Layer *layer, const float *x, const float *cos, const float *sin, const int64_t *positions, float *q, float *k, float *v,
                  float *scratch, int64_t M) {
    const int64_t D = layer->d_model, H = layer->head_dim, N = layer->num_heads, K = layer->num_kv_heads;
    float *normed = scratch, *turned = scratch + M * D;
    normalise_rows(x, layer->input_norm, M, D, layer->norm_eps, normed);
    turn(normed, M, D, turned);
    multiply((Product){layer->type, normed, turned, layer->q, layer->q_bias, q, D, N * H}, M);
    multiply((Product){layer->type, normed, turned, layer->k, layer->k_bias, k, D, K * H}, M);
    multiply((Product){layer->type, normed, turned, layer->v, layer->v_bias, v, D, K * H}, M);
    #pragma omp barrier
    #pragma omp for schedule(static)
    for (int64_t m = 0; m < M; m++) {
        const float *cos_m = cos + positions[m] * H, *sin_m = sin + positions[m] * H;
        place_heads(q + m * N * H, N, H, layer->q_norm, layer->norm_eps, cos_m, sin_m);
        place_heads(k + m * K * H, K, H, layer->k_norm, layer->norm_eps, cos_m, sin_m);
    }
}

/* out[M, D]: x with the layer's attention, seen[M, N, H], and its MLP added; scratch: M (D + 2 F + max(D, N H)) floats. */
static void rest(const Layer *layer, const float *x, const float *seen, float *out, float *scratch, int64_t M) {
    const int64_t D = layer->d_model, F = layer->d_ff, A = layer->num_heads * layer->head_dim;
    float *normed = scratch, *gate = normed + M * D, *up = gate + M * F, *turned = up + M * F;
    turn(seen, M, A, turned);
    multiply((Product){layer->type, seen, turned, layer->o, x, out, A, D, D}, M);
    #pragma omp barrier
    normalise_rows(out, layer->mlp_norm, M, D, layer->norm_eps, normed);
    turn(normed, M, D, turned);
    multiply((Product){layer->type, normed, turned, layer->gate, .y = gate, .in = D, .out = F, .turn_y = 1}, M);
    multiply((Product){layer->type, normed, turned, layer->up, .y = up, .in = D, .out = F, .turn_y = 1}, M);
    #pragma omp barrier
    #pragma omp for schedule(static)
    for (int64_t m = 0; m < M; m++) {
        for (int64_t f = m * F; f < (m + 1) * F; f += LANES) {
            lanes x = load(gate + f), e = exp2_of(larger(-x, all(0.0f)) * -LOG2_E), sigmoid = e / (1.0f + exp2_of(larger(x, -x) * -LOG2_E));
            store(gate + f, x * sigmoid * load(up + f)); /* no exponential is of a positive number */
        }
    }
    multiply((Product){layer->type, gate, gate, layer->down, out, out, F, D, D}, M);
    #pragma omp barrier
}

/* Of every token's heads: q[B, T, N, H] to by_head[B, N, T, H], and k, v [B, T, K, H] to its slot of their caches [B, K, S, H]. */
static void store_heads(const Attention *a, const float *q, const float *k, const float *v, float *by_head, float *k_cache, float *v_cache) {
    const int64_t N = a->K * a->G, T = a->T, H = a->H;
    #pragma omp for schedule(static)
    for (int64_t m = 0; m < a->B * T; m++) {
        const int64_t b = m / T, t = m % T;
        for (int64_t n = 0; n < N; n++) memcpy(by_head + ((b * N + n) * T + t) * H, q + (m * N + n) * H, sizeof(float) * H);
        for (int64_t n = 0; n < a->K; n++) {
            const int64_t place = b * a->stride_b + n * a->stride_k + a->positions[m] * H;
            memcpy(k_cache + place, k + (m * a->K + n) * H, sizeof(float) * H);
            memcpy(v_cache + place, v + (m * a->K + n) * H, sizeof(float) * H);
        }
    }
}

/* From here on with threads of its own. */

void layer_heads(const Layer *layer, const float *x, const float *cos, const float *sin, const int64_t *positions, float *q, float *k, float *v,
                 float *scratch, int64_t M, int threads) {
    #pragma omp parallel num_threads(threads)
    heads(layer, x, cos, sin, positions, q, k, v, scratch, M);
}

void layer_rest(const Layer *layer, const float *x, const float *seen, float *out, float *scratch, int64_t M, int threads) {
    #pragma omp parallel num_threads(threads)
    rest(layer, x, seen, out, scratch, M);
}

/* y[M, D]: rows of x over their root mean square, times the weight. */
void normalise_all(const float *x, const float *weight, float *y, int64_t M, int64_t D, float eps, int threads) {
    #pragma omp parallel num_threads(threads)
    normalise_rows(x, weight, M, D, eps, y);
}

/* x[M, D]: final hidden states, normalised, of M = B T tokens at their positions. The new keys and values are stored in caches k and v
 * [L, B, K, S, H] of one layout, whose strides count elements, at slots[B, T]; each token sees its row's slots up to its own. Scratch is
 * `attended`, as `attend` wants it, and `scratch`: M H (3 N + 2 K) floats and what `layer_rest` needs. Answers 0, or 1 if there is no
 * such token or position, and then has done nothing. */
int whole_pass(const Stack *stack, const int64_t *tokens, const int64_t *positions, float *x, float *k, float *v, const int64_t *slots,
               int64_t B, int64_t T, int64_t stride_l, int64_t stride_b, int64_t stride_k, int64_t window, int64_t splits, float scale,
               float *attended, float *scratch, int threads) {
    const Layer *layers = stack->layers;
    const int64_t M = B * T, D = layers->d_model, H = layers->head_dim, N = layers->num_heads, K = layers->num_kv_heads;
    float *q = scratch, *new_k = q + M * N * H, *new_v = new_k + M * K * H, *by_head = new_v + M * K * H, *seen = by_head + M * N * H;
    float *rest_scratch = seen + M * N * H;
    for (int64_t m = 0; m < M; m++) {
        if (tokens[m] < 0 || tokens[m] >= stack->vocab_size || positions[m] < 0 || positions[m] >= stack->num_positions) return 1;
        memcpy(x + m * D, stack->embedding + tokens[m] * D, sizeof(float) * D);
    }
    int64_t claimed = 0;
    #pragma omp parallel num_threads(threads)
    {
        for (int64_t l = 0; l < stack->num_layers; l++) {
            float *k_l = k + l * stride_l, *v_l = v + l * stride_l;
            const Attention a = {
                by_head, k_l, v_l, slots, seen, attended, B, K, N / K, T, H, stride_b, stride_k, window, splits, scale, 1, &claimed,
            };
            heads(layers + l, x, stack->cos, stack->sin, positions, q, new_k, new_v, rest_scratch, M);
            store_heads(&a, q, new_k, new_v, by_head, k_l, v_l);
            attend_together(&a);
            rest(layers + l, x, seen, x, rest_scratch, M);
        }
        normalise_rows(x, stack->norm, M, D, layers->norm_eps, x);
    }
    return 0;
}

/* y[M, out] = x[M, in] w[out, in]^T, w of a type; turned: M * in floats. */
void linear(const float *x, const void *w, float *y, float *turned, int64_t type, int64_t M, int64_t in, int64_t out, int threads) {
    #pragma omp parallel num_threads(threads)
    {
        turn(x, M, in, turned);
        multiply((Product){type, x, turned, w, 0, y, in, out}, M);
    }
}

/* places[M]: of the largest number in each row of x[M, V], the first of equals. */
void likeliest(const float *x, int64_t *places, int64_t M, int64_t V, int threads) {
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < M; m++) {
        const float *row = x + m * V;
        lanes largest = all(row[0]);
        int64_t i = 0;
        for (; i + LANES <= V; i += LANES) largest = larger(largest, load(row + i));
        float best = largest_of(largest);
        for (; i < V; i++) best = row[i] > best ? row[i] : best;
        for (i = 0; i < V - 1 && row[i] != best; i++) {}
        places[m] = i;
    }
}

/* Decoder layers in float32 on a CPU: whole passes, from tokens to the likeliest next ones, and of a prompt all but the attention.
 *
 * Products of few rows are bound by reading the weights: each is read once, where the checkpoint put it and in its type. As many
 * tokens as there are lanes are turned to have one each, and meet one weight after another; of the rest, each meets many weights at once.
 * Of many tokens, so many as stay in the second cache level meet all weights, then the next. Threads share each product, or, where
 * that costs less than waiting for each other, take rows of their own through all layers.
 *
 * Shapes: B batch, T tokens a row, M tokens in all, P positions, V vocabulary, D model, N query heads, K KV heads, H head dim, F MLP width; weights are [out, in].
 * Compiled on first use by compiled.py; needs no library.
 */
#include "cpu_attention.h"
#include "simd.h"
#include <sched.h>

int omp_get_thread_num(void);

enum { ROWS = LANES / 4, COLUMNS = 4, WIDE = 8, PAIR_WIDE = LANES / 2, CHUNK = 64, TOKENS = 128 }; /* all sums of a tile stay in registers */
enum { LINE = 64, AHEAD = 8192 }; /* of memory; how far ahead of a row's weights others are asked for [bytes] */
/* When each thread reads all weights of a layer: how many bytes those are at most, and tokens that hide the reading of one. */
enum { SMALL = 1 << 21, HIDING = 4 };
#define EVEN 1.125 /* rows of the largest group over the mean, at most */

typedef struct {
    const void *q, *k, *v, *o, *gate, *up, *down; /* of one type */
    const float *input_norm, *mlp_norm, *q_bias, *k_bias, *v_bias, *q_norm, *k_norm; /* null where there is none */
    int64_t type, d_model, num_heads, num_kv_heads, head_dim, d_ff;
    float norm_eps;
} Layer;

typedef struct {
    const void *embedding;           /* [V, D], of the type of the head */
    const float *norm;
    const void *head;                /* [V, D] */
    const float *cos, *sin;          /* [P, H] */
    int64_t type, vocab_size, num_positions, num_layers;
    const Layer *layers;
} Stack;

/* B T tokens at their positions. New keys and values are stored in caches k and v [L, B, K, S, H] of one layout, whose strides count
 * elements, at slots; each token sees its row's slots up to its own, or `window` of them. */
typedef struct {
    const int64_t *tokens, *positions, *slots; /* [B, T] */
    float *x, *k, *v;                          /* x[B, T, D] becomes the final hidden states, normalised */
    int64_t *likeliest;                        /* [B, T]: becomes the likeliest next of the first `answers` tokens, if those are any */
    float *attended, *scratch;                 /* as `attend` wants it; of every token H (3 N + 2 K) floats, what `rest` needs, and `answers` */
    int64_t B, T, stride_l, stride_b, stride_k, window, splits, answers;
    float scale;
} Pass;

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
            for (int c = 0; c < C; c++) sums[r][c] = mul_add(row, column[c], sums[r][c]);
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
            for (int c = 0; c < C; c++) for (int n = 0; n < N; n++) sums[n][c] = mul_add(all(w[c][i]), tokens[n], sums[n][c]);
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
    for (int64_t i = 0; i < width; i += LANES) squares = mul_add(load(x + i), load(x + i), squares);
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

/* Which lanes are infinite or NaN. */
static inline wholes endless(lanes x) { return ((wholes)x & 0x7fffffff) >= 0x7f800000; }

/* places[M]: of the largest number in each row of x[M, V], the first of equals. Answers whether all that this thread saw are finite. */
static int largest_places(const float *x, int64_t *places, int64_t M, int64_t V) {
    wholes broken = {0};
    #pragma omp for schedule(static)
    for (int64_t m = 0; m < M; m++) {
        const float *row = x + m * V;
        lanes largest = all(row[0]);
        int64_t i = 0;
        for (; i + LANES <= V; i += LANES) largest = larger(largest, load(row + i)), broken |= endless(load(row + i));
        float best = largest_of(largest);
        for (; i < V; i++) best = row[i] > best ? row[i] : best, broken |= endless(all(row[i]));
        for (i = 0; i < V - 1 && row[i] != best; i++) {}
        places[m] = i;
    }
    int finite = 1;
    for (int l = 0; l < LANES; l++) finite &= broken[l] == 0;
    return finite;
}

static void embed(const Stack *stack, int64_t token, int64_t D, float *x) {
    for (int64_t i = token * D; i < (token + 1) * D; i += LANES, x += LANES) {
        switch (stack->type) {
            case FLOAT32: store(x, load_as(FLOAT32, stack->embedding, i)); break;
            case FLOAT16: store(x, load_as(FLOAT16, stack->embedding, i)); break;
            case BFLOAT16: store(x, load_as(BFLOAT16, stack->embedding, i)); break;
        }
    }
}

/* Where a pass keeps what it computes. */
typedef struct { float *q, *k, *v, *by_head, *seen, *rest; } Places;

static Places places_of(const Layer *layer, const Pass *p) {
    const int64_t M = p->B * p->T, A = M * layer->num_heads * layer->head_dim, K = M * layer->num_kv_heads * layer->head_dim;
    float *q = p->scratch, *k = q + A, *v = k + K, *by_head = v + K, *seen = by_head + A;
    return (Places){q, k, v, by_head, seen, seen + A};
}

static Attention attention_of(const Stack *stack, const Pass *p, int64_t l) {
    const Layer *layer = stack->layers;
    const Places at = places_of(layer, p);
    return (Attention){
        at.by_head, p->k + l * p->stride_l, p->v + l * p->stride_l, p->slots, at.seen, p->attended, p->B, layer->num_kv_heads,
        layer->num_heads / layer->num_kv_heads, p->T, layer->head_dim, p->stride_b, p->stride_k, p->window, p->splits, p->scale, 1,
    };
}

/* What of a pass comes before the attention of layer l, after that of the one before; once there is no such layer, hidden states are normalised. */
static void prepare(const Stack *stack, const Pass *p, int64_t l) {
    const Layer *layers = stack->layers;
    const Places at = places_of(layers, p);
    const int64_t M = p->B * p->T, D = layers->d_model;
    if (l > 0) {
        rest(layers + l - 1, p->x, at.seen, p->x, at.rest, M);
    } else {
        #pragma omp for schedule(static)
        for (int64_t m = 0; m < M; m++) embed(stack, p->tokens[m], D, p->x + m * D);
    }
    if (l == stack->num_layers) {
        normalise_rows(p->x, stack->norm, M, D, layers->norm_eps, p->x);
    } else {
        const Attention a = attention_of(stack, p, l);
        heads(layers + l, p->x, stack->cos, stack->sin, p->positions, at.q, at.k, at.v, at.rest, M);
        store_heads(&a, at.q, at.k, at.v, at.by_head, p->k + l * p->stride_l, p->v + l * p->stride_l);
    }
}

/* All of a pass but the LM head, each layer's products shared by all threads. */
static void share_products(const Stack *stack, const Pass *p, int64_t *claimed) {
    for (int64_t l = 0; l < stack->num_layers; l++) {
        const Attention a = attention_of(stack, p, l);
        prepare(stack, p, l);
        attend_together(&a, claimed);
    }
    prepare(stack, p, stack->num_layers);
}

/* Rows that go through the layers together. Their attention has as many parts in each layer; counts of those are over all layers. */
typedef struct {
    Pass pass;
    int64_t parts, claimed, done;
    int64_t prepared; /* layers whose attention may be claimed */
} __attribute__((aligned(2 * LINE))) Group;

/* A part of a group's attention that nobody else does, or -1 if there is none now. A layer is prepared once all parts of the one before are done: whoever
 * has claimed a part can do it, and need not wait for what others do. */
static int64_t claim_part(Group *group) {
    int64_t part = __atomic_load_n(&group->claimed, __ATOMIC_RELAXED);
    do {
        if (part >= __atomic_load_n(&group->prepared, __ATOMIC_ACQUIRE) * group->parts) return -1;
    } while (!__atomic_compare_exchange_n(&group->claimed, &part, part + 1, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return part;
}

/* `prepare` of a group's rows by this thread alone: a team of one, that shares its loops with nobody. */
static void prepare_alone(const Stack *stack, Group *group, int64_t l) {
    #pragma omp parallel num_threads(1)
    {
        if (l > 0) {
            const Attention a = attention_of(stack, &group->pass, l - 1);
            merge_parts(&a);
        }
        prepare(stack, &group->pass, l);
    }
    if (l < stack->num_layers) __atomic_store_n(&group->prepared, l + 1, __ATOMIC_RELEASE);
}

/* Do a part that was claimed, and prepare the next layer if it was the last of its own; `next` is the part after it, or -1. */
static void do_part(const Stack *stack, Group *group, int64_t part, int64_t next) {
    const int64_t l = part / group->parts;
    const Attention a = attention_of(stack, &group->pass, l);
    attend_part(&a, part % group->parts, next < 0 ? part % group->parts : next % group->parts);
    if (__atomic_add_fetch(&group->done, 1, __ATOMIC_ACQ_REL) == (l + 1) * group->parts) prepare_alone(stack, group, l + 1);
}

/* All of a pass but the LM head, with a group of rows for each thread: it takes them through the layers, and helps others where it has nothing to do.
 * Threads wait for each other at the end alone. */
static void share_rows(const Stack *stack, Group *groups, int count) {
    const int own = omp_get_thread_num();
    #pragma omp for schedule(static, 1) nowait
    for (int g = 0; g < count; g++) prepare_alone(stack, groups + g, 0);
    for (;;) {
        Group *group = groups;
        int64_t part = -1, unclaimed = 0;
        for (int i = 0; i < count && part < 0; i++) {
            group = groups + (own + i) % count;
            part = claim_part(group);
            unclaimed |= __atomic_load_n(&group->claimed, __ATOMIC_RELAXED) < group->parts * stack->num_layers;
        }
        if (part < 0 && !unclaimed) break;
        if (part < 0) sched_yield(); /* what is left waits for products that others compute */
        for (int64_t next; part >= 0; part = next) {
            next = claim_part(group);
            do_part(stack, group, part, next);
        }
    }
    #pragma omp barrier
}

/* The LM head and the choice among its answers, if any are asked for. Answers whether all that this thread saw are finite. */
static int choose_together(const Stack *stack, const Pass *p) {
    const int64_t M = p->B * p->T, D = stack->layers->d_model;
    float *turned = p->scratch, *logits = turned + M * D;
    if (p->answers == 0) return 1;
    turn(p->x, M, D, turned);
    multiply((Product){stack->type, p->x, turned, stack->head, 0, logits, D, p->answers}, M);
    #pragma omp barrier
    return largest_places(logits, p->likeliest, M, p->answers);
}

/* Some of the rows of a pass. */
static Pass rows_of(const Layer *layer, Pass p, int64_t first, int64_t count) {
    const int64_t D = layer->d_model, A = layer->num_heads * layer->head_dim, m = first * p.T;
    p.tokens += m, p.positions += m, p.slots += m, p.x += m * D;
    p.k += first * p.stride_b, p.v += first * p.stride_b;
    p.attended += m * layer->num_heads * p.splits * (layer->head_dim + 2);
    p.scratch += m * (3 * A + 2 * layer->num_kv_heads * layer->head_dim + D + 2 * layer->d_ff + (D > A ? D : A));
    p.B = count;
    return p;
}

/* Groups that rows had best be cut into, one a thread; 1 if threads had better share all products. Each group's thread reads all weights and computes all
 * products of its rows; in return it waits for no other while there is attention to do. */
int num_groups(const Layer *layer, const Pass *p, int threads) {
    const int64_t D = layer->d_model, bytes = size_of((int)layer->type);
    const int64_t weights = D * layer->head_dim * 2 * (layer->num_heads + layer->num_kv_heads) + D * layer->d_ff * 3;
    const int even = (p->B + threads - 1) / threads * threads <= p->B * EVEN;
    return even && p->B * p->T >= threads * HIDING * bytes && weights * bytes <= SMALL ? threads : 1;
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

/* Answers 0; 1 if there is no such token or position, and then has done nothing; 2 if there is a logit that is infinite or NaN. */
int whole_pass(const Stack *stack, const Pass *pass, int threads) {
    for (int64_t m = 0; m < pass->B * pass->T; m++) {
        if (pass->tokens[m] < 0 || pass->tokens[m] >= stack->vocab_size || pass->positions[m] < 0 || pass->positions[m] >= stack->num_positions) return 1;
    }
    const int count = num_groups(stack->layers, pass, threads);
    const int64_t row_parts = stack->layers->num_kv_heads * pass->splits;
    Group groups[count];
    for (int g = 0; g < count; g++) {
        const int64_t first = pass->B * g / count, rows = pass->B * (g + 1) / count - first;
        groups[g] = (Group){rows_of(stack->layers, *pass, first, rows), rows * row_parts};
    }
    int64_t claimed = 0;
    int finite = 1;
    #pragma omp parallel num_threads(threads) reduction(& : finite)
    {
        if (count == 1) share_products(stack, pass, &claimed);
        else share_rows(stack, groups, count);
        finite = choose_together(stack, pass);
    }
    return finite ? 0 : 2;
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
    #pragma omp parallel num_threads(threads)
    largest_places(x, places, M, V);
}

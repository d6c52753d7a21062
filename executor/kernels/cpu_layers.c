/* Decoder layers in float32 on a CPU: whole forward passes from tokens to greedy next tokens, and single layers without their attention.
 *
 * Products of few rows are limited by reading the weights. Each weight is read once, where the checkpoint put it and in its storage type. With
 * AVX-512, groups of LANES tokens are transposed so that each token has a lane, and are multiplied with one weight after another (a panel); other
 * tokens are multiplied with several rows of weights at a time (a tile). With AVX2, tiles are faster for any number of tokens. Of many tokens, as
 * many as stay in the second cache level are multiplied with all weights, then the next ones.
 * Threads share each product. Where layers are small enough, each thread takes rows of its own through all layers instead: barriers cost more than
 * reading the weights once per thread, above all when other processes use the cores.
 *
 * Shapes: B batch, T tokens per row, M = B T, P positions, V vocabulary, D model, N query heads, K KV heads, H head dim, F MLP width. Weights are
 * [out, in]. build.py compiles this file on first use.
 */
#include "cpu_attention.h"
#include "simd.h"

enum { ROWS = REGISTERS / 8, COLUMNS = 4, WIDE = 8 }; /* tile and panel sizes with which all sums stay in registers */
enum { CHUNK = 64, TOKENS = 128 }; /* weights of a row widened at a time; tokens that stay in the second cache level */
enum { LINE = 64, AHEAD = 8192 };  /* cache line; prefetch distance within the weights [bytes] */
/* Threads take rows of their own if a layer has at most SMALL bytes of weights, and each thread HIDING tokens per byte of a weight. */
enum { SMALL = 1 << 21, HIDING = 4 };
/* They also must have nearly the same work: the largest share at most EVEN times the mean. The layers of a row cost as much as ROW_SLOTS slots. */
enum { ROW_SLOTS = 256 };
#define EVEN 1.125

typedef struct {
    const void *q, *k, *v, *o, *gate, *up, *down; /* all of one storage type */
    const float *input_norm, *mlp_norm, *q_bias, *k_bias, *v_bias, *q_norm, *k_norm; /* null if the model has none */
    int64_t type, d_model, num_heads, num_kv_heads, head_dim, d_ff;
    float norm_eps;
} Layer;

typedef struct {
    const void *embedding;           /* [V, D], stored like the head */
    const float *norm;
    const void *head;                /* [V, D] */
    const float *cos, *sin;          /* [P, H] */
    int64_t type, vocab_size, num_positions, num_layers;
    const Layer *layers;
} Stack;

/* One forward pass. New keys and values are stored in the caches k and v [L, B, K, S, H], whose strides count elements, at slots[B, T]. Each token
 * sees the slots of its row up to its own, or the last `window` of them. */
typedef struct {
    const int64_t *tokens, *positions, *slots; /* [B, T] */
    float *x, *k, *v;                          /* output x[B, T, D]: final hidden states, normalised */
    int64_t *greedy;                           /* output [B, T]: argmax over the first vocab_limit tokens, unless that is 0 */
    float *attention_workspace, *workspace;    /* see Attention; M (H (3 N + 2 K) + vocab_limit) floats and what finish_layer needs */
    int64_t B, T, stride_l, stride_b, stride_k, window, splits, vocab_limit;
    float scale;
} Pass;

/* Writes the horizontal sums of four vectors. */
INLINE void horizontal_sums(const vec_f32 *x, float *sums) {
    typedef float four __attribute__((vector_size(16)));
    vec_f32 all_parts = partial_sums(x);
    four parts[LANES / 4];
    memcpy(parts, &all_parts, sizeof all_parts);
    for (int i = 1; i < LANES / 4; i++) parts[0] += parts[i];
    memcpy(sums, parts, sizeof parts[0]);
}

/* y[M, out] = base + x[M, in] w[out, in]^T. base_stride is 0 for a bias; base is null for none. transposed[in, LANES] holds x again for each group of
 * tokens that forms a panel. With transpose_y, y is written in that layout for these tokens; there is no base then. */
typedef struct {
    int64_t type;
    const float *x, *transposed;
    const void *w;
    const float *base;
    float *y;
    int64_t in, out, base_stride;
    int transpose_y; /* needs a multiple of WIDE outputs */
} Product;

static inline void store_output(const Product *p, int64_t r, int64_t c, float value) {
    p->y[r * p->out + c] = value + (p->base ? p->base[r * p->base_stride + c] : 0.0f);
}

/* R tokens times C outputs; each sum is spread over the lanes along `in`. */
INLINE void tile(const int type, const int R, const int C, const Product *p, int64_t r0, int64_t c0) {
    const float *x = p->x + r0 * p->in;
    vec_f32 sums[ROWS][WIDE];
    for (int r = 0; r < R; r++) for (int c = 0; c < C; c++) sums[r][c] = (vec_f32){0};
    for (int64_t i = 0; i < p->in; i += LANES) {
        vec_f32 column[WIDE];
        for (int c = 0; c < C; c++) {
            const int64_t place = (c0 + c) * p->in + i;
            if (i * bytes_of(type) % LINE == 0) __builtin_prefetch((const char *)p->w + place * bytes_of(type) + AHEAD, 0, 3);
            column[c] = load_as(type, p->w, place);
        }
        for (int r = 0; r < R; r++) {
            vec_f32 row = load(x + r * p->in + i);
            KEEP_IN_REGISTER(row);
            for (int c = 0; c < C; c++) sums[r][c] = mul_add(row, column[c], sums[r][c]);
        }
    }
    for (int r = 0; r < R; r++) {
        float totals[WIDE];
        for (int c = 0; c < C; c += 4) {
            if (C - c >= 4) horizontal_sums(sums[r] + c, totals + c);
            else totals[c] = horizontal_sum(sums[r][c]);
        }
        for (int c = 0; c < C; c++) store_output(p, r0 + r, c0 + c, totals[c]);
    }
}

/* N groups of LANES transposed tokens times C outputs; each token has a lane. */
INLINE void panel(const int type, const int N, const int C, const Product *p, int64_t r0, int64_t c0) {
    const int64_t in = p->in;
    const float *x = p->transposed + r0 * in;
    vec_f32 sums[2][WIDE];
    for (int n = 0; n < N; n++) for (int c = 0; c < C; c++) sums[n][c] = splat(0.0f);
    for (int64_t start = 0; start < in; start += CHUNK) {
        const int64_t count = in - start < CHUNK ? in - start : CHUNK;
        float widened[WIDE][CHUNK];
        const float *w[WIDE];
        for (int c = 0; c < C; c++) {
            const int64_t place = (c0 + c) * in + start;
            const char *next = (const char *)p->w + (place + C * in) * bytes_of(type); /* weights of the next outputs */
            for (int64_t i = 0; i < count * bytes_of(type); i += LINE) __builtin_prefetch(next + i, 0, 3);
            if (type != FLOAT32) for (int64_t i = 0; i < count; i += LANES) store(widened[c] + i, load_as(type, p->w, place + i));
            w[c] = type == FLOAT32 ? (const float *)p->w + place : widened[c];
        }
        for (int64_t i = 0; i < count; i++) {
            vec_f32 tokens[2];
            for (int n = 0; n < N; n++) tokens[n] = load(x + (n * in + start + i) * LANES);
            for (int c = 0; c < C; c++) for (int n = 0; n < N; n++) sums[n][c] = mul_add(splat(w[c][i]), tokens[n], sums[n][c]);
        }
    }
    for (int n = 0; n < N; n++, r0 += LANES) {
        if (p->transpose_y) for (int c = 0; c < C; c++) store(p->y + r0 * p->out + (c0 + c) * LANES, sums[n][c]);
        else for (int r = 0; r < LANES; r++) for (int c = 0; c < C; c++) store_output(p, r0 + r, c0 + c, sums[n][c][r]);
    }
}

/* Tokens of M that are computed in panels: with AVX2, tiles are faster. */
static inline int64_t panel_tokens(int64_t M) { return LANES == 16 ? M / LANES * LANES : 0; }

/* Computes the outputs [c, c + WIDE), or fewer at the end, of the tokens [r, M). */
INLINE void outputs(const int type, const Product *p, int64_t r, int64_t M, int64_t c) {
    const int64_t full = panel_tokens(M);
    if (p->out - c < WIDE) {
        for (; r < M; r++) for (int64_t i = c; i < p->out; i++) tile(type, 1, 1, p, r, i);
        return;
    }
    for (; r + 2 * LANES <= full; r += 2 * LANES) panel(type, 2, WIDE, p, r, c);
    for (; r < full; r += LANES) panel(type, 1, WIDE, p, r, c);
    for (; r + ROWS <= M; r += ROWS) for (int i = 0; i < WIDE; i += COLUMNS) tile(type, ROWS, COLUMNS, p, r, c + i);
    for (; r < M; r++) tile(type, 1, WIDE, p, r, c);
}

/* Threads of a parallel region share the outputs; there is no barrier at the end. */
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

/* Transposes each group of panel tokens, x[LANES, in], to transposed[in, LANES]. */
static void transpose(const float *x, int64_t M, int64_t in, float *transposed) {
    #pragma omp for schedule(static)
    for (int64_t i = 0; i < panel_tokens(M) / LANES * in; i++) {
        const float *from = x + i / in * in * LANES + i % in;
        for (int l = 0; l < LANES; l++) transposed[i * LANES + l] = from[l * in];
    }
}

static void rms_norm_row(const float *x, const float *weight, int64_t width, float eps, float *y) {
    vec_f32 squares = {0};
    for (int64_t i = 0; i < width; i += LANES) squares = mul_add(load(x + i), load(x + i), squares);
    float scale = 1.0f / sqrtf(horizontal_sum(squares) / width + eps);
    for (int64_t i = 0; i < width; i += LANES) store(y + i, load(x + i) * scale * load(weight + i));
}

static void rms_norm_rows(const float *x, const float *weight, int64_t M, int64_t width, float eps, float *y) {
    #pragma omp for schedule(static)
    for (int64_t m = 0; m < M; m++) rms_norm_row(x + m * width, weight, width, eps, y + m * width);
}

/* Applies the norm, if the model has one, and the rotary embedding to the heads of one token, in place. */
static void norm_and_rotate(float *x, int64_t heads, int64_t H, const float *norm, float eps, const float *cos, const float *sin) {
    for (int64_t n = 0; n < heads; n++, x += H) {
        if (norm) rms_norm_row(x, norm, H, eps, x);
        for (int64_t h = 0; h < H / 2; h++) {
            float first = x[h], second = x[h + H / 2];
            x[h] = first * cos[h] - second * sin[h];
            x[h + H / 2] = second * cos[h + H / 2] + first * sin[h + H / 2];
        }
    }
}

/* All threads of a parallel region call the following functions together; each function ends with a barrier. */

/* Computes q[M, N, H], k and v [M, K, H] from x[M, D]; q and k are rotated by the tables cos and sin [P, H]. workspace: 2 M D floats. */
static void project_heads(const Layer *layer, const float *x, const float *cos, const float *sin, const int64_t *positions, float *q, float *k, float *v,
                  float *workspace, int64_t M) {
    const int64_t D = layer->d_model, H = layer->head_dim, N = layer->num_heads, K = layer->num_kv_heads;
    float *normed = workspace, *transposed = workspace + M * D;
    rms_norm_rows(x, layer->input_norm, M, D, layer->norm_eps, normed);
    transpose(normed, M, D, transposed);
    multiply((Product){layer->type, normed, transposed, layer->q, layer->q_bias, q, D, N * H}, M);
    multiply((Product){layer->type, normed, transposed, layer->k, layer->k_bias, k, D, K * H}, M);
    multiply((Product){layer->type, normed, transposed, layer->v, layer->v_bias, v, D, K * H}, M);
    #pragma omp barrier
    #pragma omp for schedule(static)
    for (int64_t m = 0; m < M; m++) {
        const float *cos_m = cos + positions[m] * H, *sin_m = sin + positions[m] * H;
        norm_and_rotate(q + m * N * H, N, H, layer->q_norm, layer->norm_eps, cos_m, sin_m);
        norm_and_rotate(k + m * K * H, K, H, layer->k_norm, layer->norm_eps, cos_m, sin_m);
    }
}

/* Computes the rest of a layer: out[M, D] = x + output projection of attended[M, N, H], then + MLP. workspace: M (D + 2 F + max(D, N H)) floats. */
static void finish_layer(const Layer *layer, const float *x, const float *attended, float *out, float *workspace, int64_t M) {
    const int64_t D = layer->d_model, F = layer->d_ff, A = layer->num_heads * layer->head_dim;
    float *normed = workspace, *gate = normed + M * D, *up = gate + M * F, *transposed = up + M * F;
    transpose(attended, M, A, transposed);
    multiply((Product){layer->type, attended, transposed, layer->o, x, out, A, D, D}, M);
    #pragma omp barrier
    rms_norm_rows(out, layer->mlp_norm, M, D, layer->norm_eps, normed);
    transpose(normed, M, D, transposed);
    multiply((Product){layer->type, normed, transposed, layer->gate, .y = gate, .in = D, .out = F, .transpose_y = panel_tokens(M) > 0}, M);
    multiply((Product){layer->type, normed, transposed, layer->up, .y = up, .in = D, .out = F, .transpose_y = panel_tokens(M) > 0}, M);
    #pragma omp barrier
    #pragma omp for schedule(static)
    for (int64_t m = 0; m < M; m++) {
        for (int64_t f = m * F; f < (m + 1) * F; f += LANES) {
            vec_f32 x = load(gate + f), e = vec_exp2(vec_max(-x, splat(0.0f)) * -LOG2_E), sigmoid = e / (1.0f + vec_exp2(vec_max(x, -x) * -LOG2_E));
            store(gate + f, x * sigmoid * load(up + f)); /* vec_exp2 takes no positive numbers */
        }
    }
    multiply((Product){layer->type, gate, gate, layer->down, out, out, F, D, D}, M);
    #pragma omp barrier
}

/* Copies q[B, T, N, H] to by_head[B, N, T, H], and k and v [B, T, K, H] to their slots of the caches [B, K, S, H]. */
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

/* Nonzero in the lanes that are infinite or NaN. */
static inline vec_i32 is_nonfinite(vec_f32 x) { return ((vec_i32)x & 0x7fffffff) >= 0x7f800000; }

/* indices[M]: argmax of each row of x[M, V], the first of equals. Returns whether all numbers that this thread read are finite. */
static int argmax_rows(const float *x, int64_t *indices, int64_t M, int64_t V) {
    vec_i32 nonfinite = {0};
    #pragma omp for schedule(static)
    for (int64_t m = 0; m < M; m++) {
        const float *row = x + m * V;
        vec_f32 largest = splat(row[0]);
        int64_t i = 0;
        for (; i + LANES <= V; i += LANES) largest = vec_max(largest, load(row + i)), nonfinite |= is_nonfinite(load(row + i));
        float best = horizontal_max(largest);
        for (; i < V; i++) best = row[i] > best ? row[i] : best, nonfinite |= is_nonfinite(splat(row[i]));
        for (i = 0; i < V - 1 && row[i] != best; i++) {}
        indices[m] = i;
    }
    int finite = 1;
    for (int l = 0; l < LANES; l++) finite &= nonfinite[l] == 0;
    return finite;
}

static void embed_token(const Stack *stack, int64_t token, int64_t D, float *x) {
    for (int64_t i = token * D; i < (token + 1) * D; i += LANES, x += LANES) {
        switch (stack->type) {
            case FLOAT32: store(x, load_as(FLOAT32, stack->embedding, i)); break;
            case FLOAT16: store(x, load_as(FLOAT16, stack->embedding, i)); break;
            case BFLOAT16: store(x, load_as(BFLOAT16, stack->embedding, i)); break;
        }
    }
}

/* Parts of the workspace of a pass. */
typedef struct { float *q, *k, *v, *by_head, *attended, *rest; } Buffers;

static Buffers buffers_of(const Layer *layer, const Pass *p) {
    const int64_t M = p->B * p->T, A = M * layer->num_heads * layer->head_dim, K = M * layer->num_kv_heads * layer->head_dim;
    float *q = p->workspace, *k = q + A, *v = k + K, *by_head = v + K, *attended = by_head + A;
    return (Buffers){q, k, v, by_head, attended, attended + A};
}

static Attention attention_of(const Stack *stack, const Pass *p, int64_t l) {
    const Layer *layer = stack->layers;
    const Buffers at = buffers_of(layer, p);
    return (Attention){
        at.by_head, p->k + l * p->stride_l, p->v + l * p->stride_l, p->slots, at.attended, p->attention_workspace, p->B, layer->num_kv_heads,
        layer->num_heads / layer->num_kv_heads, p->T, layer->head_dim, p->stride_b, p->stride_k, p->window, p->splits, p->scale, 1,
    };
}

/* Everything between the attention of layer l - 1 and that of layer l. For l = 0 it begins with the embeddings; for l = num_layers it ends with the
 * final norm. */
static void before_attention(const Stack *stack, const Pass *p, int64_t l) {
    const Layer *layers = stack->layers;
    const Buffers at = buffers_of(layers, p);
    const int64_t M = p->B * p->T, D = layers->d_model;
    if (l > 0) {
        finish_layer(layers + l - 1, p->x, at.attended, p->x, at.rest, M);
    } else {
        #pragma omp for schedule(static)
        for (int64_t m = 0; m < M; m++) embed_token(stack, p->tokens[m], D, p->x + m * D);
    }
    if (l == stack->num_layers) {
        rms_norm_rows(p->x, stack->norm, M, D, layers->norm_eps, p->x);
    } else {
        const Attention a = attention_of(stack, p, l);
        project_heads(layers + l, p->x, stack->cos, stack->sin, p->positions, at.q, at.k, at.v, at.rest, M);
        store_heads(&a, at.q, at.k, at.v, at.by_head, p->k + l * p->stride_l, p->v + l * p->stride_l);
    }
}

/* Runs all layers; threads share each product and each attention. */
static void run_layers(const Stack *stack, const Pass *p, int64_t *next_part) {
    for (int64_t l = 0; l < stack->num_layers; l++) {
        const Attention a = attention_of(stack, p, l);
        before_attention(stack, p, l);
        attend_together(&a, next_part);
    }
    before_attention(stack, p, stack->num_layers);
}

/* Runs all layers; each group of rows is computed by one thread, which is a team of its own and so meets no barrier. */
static void run_groups(const Stack *stack, const Pass *groups, int count) {
    #pragma omp for schedule(static, 1)
    for (int g = 0; g < count; g++) {
        #pragma omp parallel num_threads(1)
        {
            int64_t next_part = 0;
            run_layers(stack, groups + g, &next_part);
        }
    }
}

/* Applies the LM head and argmax, unless vocab_limit is 0. Returns whether all logits that this thread read are finite. */
static int greedy_head(const Stack *stack, const Pass *p) {
    const int64_t M = p->B * p->T, D = stack->layers->d_model;
    float *transposed = p->workspace, *logits = transposed + M * D;
    if (p->vocab_limit == 0) return 1;
    transpose(p->x, M, D, transposed);
    multiply((Product){stack->type, p->x, transposed, stack->head, 0, logits, D, p->vocab_limit}, M);
    #pragma omp barrier
    return argmax_rows(logits, p->greedy, M, p->vocab_limit);
}

/* Rows [first, end) of a pass. */
static Pass rows_of(const Layer *layer, Pass p, int64_t first, int64_t end) {
    const int64_t D = layer->d_model, A = layer->num_heads * layer->head_dim, m = first * p.T;
    p.tokens += m, p.positions += m, p.slots += m, p.x += m * D;
    p.k += first * p.stride_b, p.v += first * p.stride_b;
    p.attention_workspace += m * layer->num_heads * p.splits * (layer->head_dim + 2);
    p.workspace += m * (3 * A + 2 * layer->num_kv_heads * layer->head_dim + D + 2 * layer->d_ff + (D > A ? D : A));
    p.B = end - first;
    return p;
}

/* Work of the rows [first, end) of a pass, in slots. */
static int64_t work_of(const Pass *p, int64_t first, int64_t end) {
    int64_t work = 0;
    for (int64_t b = first; b < end; b++) {
        const int64_t seen = p->slots[(b + 1) * p->T - 1] + 1;
        work += ROW_SLOTS + (p->window > 0 && p->window < seen ? p->window : seen);
    }
    return work;
}

/* Number of groups that the rows are cut into: one per thread, or 1 if threads should share all products. Each group reads all weights. */
int num_groups(const Layer *layer, const Pass *p, int threads) {
    const int64_t D = layer->d_model, bytes = bytes_of((int)layer->type);
    const int64_t weights = D * layer->head_dim * 2 * (layer->num_heads + layer->num_kv_heads) + D * layer->d_ff * 3;
    if (p->B < threads || p->B * p->T < threads * HIDING * bytes || weights * bytes > SMALL) return 1;
    const int64_t most = work_of(p, 0, p->B) * EVEN / threads;
    for (int g = 0; g < threads; g++) if (work_of(p, p->B * g / threads, p->B * (g + 1) / threads) > most) return 1;
    return threads;
}

/* The following functions start parallel regions of their own; Python calls them. */

void layer_heads(const Layer *layer, const float *x, const float *cos, const float *sin, const int64_t *positions, float *q, float *k, float *v,
                 float *workspace, int64_t M, int threads) {
    #pragma omp parallel num_threads(threads)
    project_heads(layer, x, cos, sin, positions, q, k, v, workspace, M);
}

void layer_rest(const Layer *layer, const float *x, const float *attended, float *out, float *workspace, int64_t M, int threads) {
    #pragma omp parallel num_threads(threads)
    finish_layer(layer, x, attended, out, workspace, M);
}

/* y[M, D]: rows of x divided by their root mean square, times the weight. */
void rms_norm(const float *x, const float *weight, float *y, int64_t M, int64_t D, float eps, int threads) {
    #pragma omp parallel num_threads(threads)
    rms_norm_rows(x, weight, M, D, eps, y);
}

/* Returns 0; 1 if a token or a position is out of range, and then nothing was done; 2 if a logit is infinite or NaN. */
int forward_pass(const Stack *stack, const Pass *pass, int threads) {
    for (int64_t m = 0; m < pass->B * pass->T; m++) {
        if (pass->tokens[m] < 0 || pass->tokens[m] >= stack->vocab_size || pass->positions[m] < 0 || pass->positions[m] >= stack->num_positions) return 1;
    }
    const int count = num_groups(stack->layers, pass, threads);
    Pass groups[count];
    for (int g = 0; g < count; g++) groups[g] = rows_of(stack->layers, *pass, pass->B * g / count, pass->B * (g + 1) / count);
    int64_t next_part = 0;
    int finite = 1;
    #pragma omp parallel num_threads(threads) reduction(& : finite)
    {
        if (count == 1) run_layers(stack, pass, &next_part);
        else run_groups(stack, groups, count);
        finite = greedy_head(stack, pass);
    }
    return finite ? 0 : 2;
}

/* y[M, out] = x[M, in] w[out, in]^T, with w in a storage type; transposed: M * in floats. */
void linear(const float *x, const void *w, float *y, float *transposed, int64_t type, int64_t M, int64_t in, int64_t out, int threads) {
    #pragma omp parallel num_threads(threads)
    {
        transpose(x, M, in, transposed);
        multiply((Product){type, x, transposed, w, 0, y, in, out}, M);
    }
}

/* What attention over a cache is given; see cpu_attention.c. */
#include <stdint.h>

/* Queries q[B,N,T,H], times scale, over k, v [B,K,S,H] with the given strides (elements) of B and K, G = N / K; H is a multiple of 32, at most
 * 256. positions[B,T] is the last slot each query sees; window 0 is none. The slots of a KV head are read in `splits` parts. Answers out
 * [B,N,T,H], or [B,T,N,H] if by_token. scratch: B * K * splits * G * T * (H + 2) floats. */
typedef struct {
    const float *q, *k, *v;
    const int64_t *positions;
    float *out, *scratch;
    int64_t B, K, G, T, H, stride_b, stride_k, window, splits;
    float scale;
    int by_token;
} Attention;

/* The next of many things that threads do, none of them twice. */
static inline int64_t claim(int64_t *claimed) { return __atomic_fetch_add(claimed, 1, __ATOMIC_RELAXED); }

static inline int64_t parts_of(const Attention *a) { return a->B * a->K * a->splits; }

/* One of so many parts; of what is read after it, the beginning is asked for. */
void attend_part(const Attention *a, int64_t part, int64_t next);

/* The answer, once all parts are done. This and the next are to be called by all threads of a parallel region, none of which leaves before all are done. */
void merge_parts(const Attention *a);

/* All of it; claimed: 0, for all threads. */
void attend_together(const Attention *a, int64_t *claimed);

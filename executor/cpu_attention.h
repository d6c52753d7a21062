/* What attention over a cache is given; see cpu_attention.c. */
#include <stdint.h>

/* Queries q[B,N,T,H], times scale, over k, v [B,K,S,H] with the given strides (elements) of B and K, G = N / K; H is a multiple of 32, at most
 * 256. positions[B,T] is the last slot each query sees; window 0 is none. The slots of a KV head are read in `splits` parts. Answers out
 * [B,N,T,H], or [B,T,N,H] if by_token. scratch: B * K * splits * G * T * (H + 2) floats. claimed: 0, for all threads. */
typedef struct {
    const float *q, *k, *v;
    const int64_t *positions;
    float *out, *scratch;
    int64_t B, K, G, T, H, stride_b, stride_k, window, splits;
    float scale;
    int by_token;
    int64_t *claimed;
} Attention;

/* To be called by all threads of a parallel region, none of which leaves before all are done. */
void attend_together(const Attention *a);

/* Attention for the other kernels; see cpu_attention.c. */
#include <stdint.h>

/* Queries q[B,N,T,H] over keys k and values v [B,K,S,H], whose strides of B and K count elements; G = N / K; H is a multiple of 32, at most 256.
 * positions[B,T] is the last slot that each query sees; `window` limits how many slots it sees, 0 is no limit. The slots of a KV head are split
 * into `splits` parts. out is [B,N,T,H], or [B,T,N,H] if by_token. workspace: B * K * splits * G * T * (H + 2) floats. */
typedef struct {
    const float *q, *k, *v;
    const int64_t *positions;
    float *out, *workspace;
    int64_t B, K, G, T, H, stride_b, stride_k, window, splits;
    float scale;
    int by_token;
} Attention;

/* Computes attention. All threads of a parallel region call this function; it ends with a barrier. *next_part is 0 and shared by the threads. */
void attend_together(const Attention *a, int64_t *next_part);

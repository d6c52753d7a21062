/* Replays calls of the C kernels from a file, so that they can be compiled by any compiler, for any processor, with sanitizers, and run without
 * Python. kernel_replay.py writes the calls and reads what they answer. Each buffer is a block of its own of exactly the size that Python
 * allocates, so that a sanitizer sees every access outside.
 *
 * A call: its kind, its integers, then its buffers; a buffer: its bytes (-1: null), 1 if bytes follow, 1 if it is written back. All int64. */
#include <stdio.h>
#include <stdlib.h>

#include "cpu_layers.c"

enum { LINEAR, ATTEND, FORWARD_PASS, MOST = 64 };

void attend(const float *q, const float *k, const float *v, const int64_t *positions, float *out, float *workspace, int64_t B, int64_t K, int64_t G,
            int64_t T, int64_t H, int64_t stride_b, int64_t stride_k, int64_t window, int64_t splits, float scale, int threads);

/* Integers: threads, then the sizes of `attend`. Buffers: 0 and scale, then its pointers. */
static void attend_slots(void **at, const int64_t *n) {
    attend(at[1], at[2], at[3], at[4], at[5], at[6], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], ((const float *)at[0])[1], (int)n[0]);
}

/* Integers: threads, then the type and sizes of a layer, those of the stack without the first, those of the pass. Buffers: norm_eps and scale, the
 * pointers of Pass, those of Stack, those of each Layer. */
static int pass(void **at, const int64_t *n) {
    const float *numbers = at[0];
    Layer layers[8];
    for (int64_t l = 0; l < n[9]; l++) {
        memcpy(&layers[l], at + 15 + 14 * l, 14 * sizeof(void *));
        layers[l].type = n[1], layers[l].d_model = n[2], layers[l].num_heads = n[3], layers[l].num_kv_heads = n[4], layers[l].head_dim = n[5];
        layers[l].d_ff = n[6], layers[l].norm_eps = numbers[0];
    }
    const Stack stack = {at[10], at[11], at[12], at[13], at[14], n[1], n[7], n[8], n[9], layers};
    const Pass arguments = {at[1], at[2], at[3], at[4], at[5], at[6], at[7], at[8], at[9], n[10], n[11], n[12], n[13], n[14], n[15], n[16], n[17],
                            numbers[1]};
    return forward_pass(&stack, &arguments, (int)n[0]);
}

static void read_into(void *to, int64_t bytes, FILE *from) {
    if (bytes && fread(to, (size_t)bytes, 1, from) != 1) exit(3);
}

static int64_t read_number(FILE *from) {
    int64_t number;
    read_into(&number, sizeof number, from);
    return number;
}

int main(int count, char **names) {
    FILE *in = count == 3 ? fopen(names[1], "rb") : 0, *out = count == 3 ? fopen(names[2], "wb") : 0;
    if (!in || !out) return 3;
    for (int64_t calls = read_number(in); calls > 0; calls--) {
        int64_t numbers[32], sizes[MOST * 2], back[MOST * 2], status = 0;
        void *at[MOST * 2];
        const int64_t kind = read_number(in), integers = read_number(in);
        if (integers > 32) return 3;
        read_into(numbers, integers * 8, in);
        const int64_t buffers = read_number(in);
        if (buffers > MOST * 2) return 3;
        for (int64_t i = 0; i < buffers; i++) {
            sizes[i] = read_number(in);
            const int64_t filled = read_number(in);
            back[i] = read_number(in);
            at[i] = sizes[i] < 0 ? 0 : malloc((size_t)sizes[i]);
            if (sizes[i] > 0 && filled) read_into(at[i], sizes[i], in);
            else if (sizes[i] > 0) memset(at[i], 0xff, (size_t)sizes[i]); /* NaN, so that nothing reads what it has not written */
        }
        if (kind == LINEAR) linear(at[1], at[2], at[3], at[4], numbers[1], numbers[2], numbers[3], numbers[4], (int)numbers[0]);
        else if (kind == ATTEND) attend_slots(at, numbers);
        else status = pass(at, numbers);
        fwrite(&status, sizeof status, 1, out);
        for (int64_t i = 0; i < buffers; i++) {
            if (back[i]) fwrite(at[i], (size_t)sizes[i], 1, out);
            free(at[i]);
        }
    }
    return fclose(out) || fclose(in) ? 3 : 0;
}

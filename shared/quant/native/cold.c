/* Leaving nothing of some memory in the processor's caches, to measure how fast it is read where there is more than they hold. */
#include <stdint.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

/* Returns whether this kind of processor can be told to. */
int layermesh_chill(const void *start, int64_t num_bytes) {
#ifdef __SSE2__
    for (int64_t at = 0; at < num_bytes; at += 64) {
#ifdef __CLFLUSHOPT__
        _mm_clflushopt((void *)((const char *)start + at));
#else
        _mm_clflush((const char *)start + at);
#endif
    }
    _mm_mfence();
    return 1;
#else
    (void)start, (void)num_bytes;
    return 0;
#endif
}

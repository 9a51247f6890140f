#include "move.h"

#include "gate.h"

#include <string.h>

#if defined(__x86_64__)
#include <emmintrin.h>

enum { LINE_BYTES = 64, AHEAD_BYTES = 1024 };

/* Past the caches, line by line. libc streams only what is larger than a good part of the last cache, and pieces never are. With
 * the source fetched ahead, and not into the outer caches, this moves half as much again as its memcpy does.
 */
static void stream(char *to, const char *from, size_t length)
{
    size_t head = (size_t)(-(uintptr_t)to & 15);
    head = head < length ? head : length;
    memcpy(to, from, head);
    to += head;
    from += head;
    length -= head;
    for (; length >= LINE_BYTES; length -= LINE_BYTES, to += LINE_BYTES, from += LINE_BYTES) {
        const __m128i *source = (const void *)from;
        __m128i *target = (void *)to;
        _mm_prefetch(from + AHEAD_BYTES, _MM_HINT_NTA); /* a wish: behind the end it is none */
        __m128i a = _mm_loadu_si128(source);
        __m128i b = _mm_loadu_si128(source + 1);
        __m128i c = _mm_loadu_si128(source + 2);
        __m128i d = _mm_loadu_si128(source + 3);
        _mm_stream_si128(target, a);
        _mm_stream_si128(target + 1, b);
        _mm_stream_si128(target + 2, c);
        _mm_stream_si128(target + 3, d);
    }
    _mm_sfence(); /* before anyone is told that the bytes are there */
    memcpy(to, from, length);
}

#else
#define stream memcpy
#endif

bool move_gated(uint32_t *gate, void *target, const void *source, size_t length)
{
    char *to = target;
    const char *from = source;
    bool streaming = length >= STREAMING_BYTES;
    while (length) {
        size_t piece = length < PIECE_BYTES ? length : PIECE_BYTES;
        if (gate && !gate_enter(gate)) {
            return false;
        }
        if (streaming) {
            stream(to, from, piece);
        } else {
            memcpy(to, from, piece);
        }
        if (gate) {
            gate_leave(gate);
        }
        to += piece;
        from += piece;
        length -= piece;
    }
    return true;
}

/* Elements by planes of bytes or of bits, for compressors that look for equal bytes: as many bytes as before, in another order. A
 * plane of bytes has those of all elements; planes of bits go chunk by chunk.
 */
#include "coding.h"
#include "wide.h"

#include <errno.h>
#include <string.h>

enum {
    CHUNK = PLANE_SYMBOLS_MAX, /* elements; planes of bits follow each other within the reach of an LZ match */
    PIECE = 512,               /* words of eight symbols at a time */
};

/* Transpose a square of bits: bit j of byte i becomes bit i of byte j (H. S. Warren, Hacker's Delight, 7-3). Its own inverse. */
BODY uint64_t transposed(uint64_t x)
{
    uint64_t t = (x ^ x >> 7) & UINT64_C(0x00AA00AA00AA00AA);
    x ^= t ^ t << 7;
    t = (x ^ x >> 14) & UINT64_C(0x0000CCCC0000CCCC);
    x ^= t ^ t << 14;
    t = (x ^ x >> 28) & UINT64_C(0x00000000F0F0F0F0);
    return x ^ t ^ t << 28;
}

BODY void transpose_body(uint64_t *restrict words, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        words[i] = transposed(words[i]);
    }
}

/* Byte j of every word goes to out + j * stride. */
BODY void spread_body(const uint64_t *restrict words, size_t count, uint8_t *restrict out, size_t stride)
{
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < 8; j++) {
            out[j * stride + i] = (uint8_t)(words[i] >> (8 * j));
        }
    }
}

BODY void gather_body(uint64_t *restrict words, size_t count, const uint8_t *restrict in, size_t stride)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t word = 0;
        for (size_t j = 0; j < 8; j++) {
            word |= (uint64_t)in[j * stride + i] << (8 * j);
        }
        words[i] = word;
    }
}

TWICE(transpose, (uint64_t *restrict words, size_t count), (words, count))
TWICE(spread, (const uint64_t *restrict words, size_t count, uint8_t *restrict out, size_t stride), (words, count, out, stride))
TWICE(gather, (uint64_t *restrict words, size_t count, const uint8_t *restrict in, size_t stride), (words, count, in, stride))

/* The lowest bits of all symbols, then the next ones; at the end the symbols that fill no byte of each plane, as they are. */
static void bits_apart(const uint8_t *plane, uint8_t *out, size_t count, bool wide)
{
    uint64_t words[PIECE];
    size_t stride = count / 8;
    for (size_t first = 0; first < stride; first += PIECE) {
        size_t piece = stride - first < PIECE ? stride - first : PIECE;
        memcpy(words, plane + first * 8, piece * 8);
        EITHER(wide, transpose, words, piece);
        EITHER(wide, spread, words, piece, out + first, stride);
    }
    memcpy(out + stride * 8, plane + stride * 8, count % 8);
}

static void bits_together(const uint8_t *in, uint8_t *plane, size_t count, bool wide)
{
    uint64_t words[PIECE];
    size_t stride = count / 8;
    for (size_t first = 0; first < stride; first += PIECE) {
        size_t piece = stride - first < PIECE ? stride - first : PIECE;
        EITHER(wide, gather, words, piece, in + first, stride);
        EITHER(wide, transpose, words, piece);
        memcpy(plane + first * 8, words, piece * 8);
    }
    memcpy(plane + stride * 8, in + stride * 8, count % 8);
}

int shuffle_apart(struct codec_context *context, const struct element *element, bool bits, const struct raw_side *raw, uint8_t *out)
{
    size_t elements = raw->length / element->width;
    for (size_t first = 0; first < elements; first += CHUNK) {
        size_t count = elements - first < CHUNK ? elements - first : CHUNK;
        uint8_t *chunk = out + first * element->width;
        uint8_t *planes[PLANES_MAX] = {NULL};
        for (size_t i = 0; i < element->width; i++) {
            planes[i] = bits ? context->planes[i] : out + i * elements + first;
        }
        if (!raw_enter(raw)) {
            return -ECANCELED;
        }
        planes_split(element, raw->at + first * element->width, planes, count, context->wide);
        raw_leave(raw);
        for (size_t i = 0; bits && i < element->width; i++) {
            bits_apart(planes[i], chunk + i * count, count, context->wide);
        }
    }
    size_t tail = raw->length % element->width;
    return raw_take_tail(raw, tail, out + raw->length - tail) ? 0 : -ECANCELED;
}

int shuffle_together(struct codec_context *context, const struct element *element, bool bits, const uint8_t *in,
                     const struct raw_side *raw)
{
    size_t elements = raw->length / element->width;
    for (size_t first = 0; first < elements; first += CHUNK) {
        size_t count = elements - first < CHUNK ? elements - first : CHUNK;
        const uint8_t *chunk = in + first * element->width;
        const uint8_t *planes[PLANES_MAX] = {NULL};
        for (size_t i = 0; i < element->width; i++) {
            planes[i] = bits ? context->planes[i] : in + i * elements + first;
            if (bits) {
                bits_together(chunk + i * count, context->planes[i], count, context->wide);
            }
        }
        if (!raw_enter(raw)) {
            return -ECANCELED;
        }
        planes_merge(element, raw->at + first * element->width, planes, count, context->wide);
        raw_leave(raw);
    }
    size_t tail = raw->length % element->width;
    return raw_put_tail(raw, tail, in + raw->length - tail) ? 0 : -ECANCELED;
}

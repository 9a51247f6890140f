/* "auto": which lossless codec suits a shard, told from some of its elements. */
#include "coding.h"

#include <errno.h>
#include <string.h>

enum {
    STRETCHES = 16, /* places in the shard that are looked at */
    SAMPLE = STRETCHES * RUN, /* elements */
    BIT = 256, /* fractions of a bit are counted in these */
    PACKED_BITS = 4 * BIT + 8 * BIT / RUN,
    CODE_LOSS = BIT / 10, /* of Huffman codes and their header against the entropy */
    NOISE = 8 * BIT - BIT / 2, /* planes with more are stored as they are */
};

/* log2 of a positive number, in BITs; off by less than two of them. */
static uint32_t logarithm(uint32_t number)
{
    unsigned whole = 31u - (unsigned)__builtin_clz(number);
    uint32_t x = (uint32_t)(((uint64_t)number << 16 >> whole) - (1u << 16)); /* 0 ... 2**16 - 1 */
    uint32_t bulge = (uint32_t)((uint64_t)x * ((1u << 16) - x) >> 16);
    return whole * BIT + ((x + bulge * 22 / 64) >> 8);
}

/* Bits that a symbol takes with the best code for these symbols, in BITs. */
static uint32_t entropy(const uint8_t *symbols, size_t count)
{
    uint32_t counts[256] = {0};
    for (size_t i = 0; i < count; i++) {
        counts[symbols[i]]++;
    }
    uint64_t bits = (uint64_t)count * logarithm((uint32_t)count);
    for (unsigned symbol = 0; symbol < 256; symbol++) {
        bits -= counts[symbol] ? (uint64_t)counts[symbol] * logarithm(counts[symbol]) : 0;
    }
    return (uint32_t)(bits / count);
}

/* Some runs of the shard, apart. The number of elements, 0 if there is no run, or -ECANCELED. */
static int64_t sample(struct codec_context *context, const struct element *element, const struct raw_side *raw)
{
    size_t runs = raw->length / element->width / RUN;
    size_t stretches = runs < STRETCHES ? runs : STRETCHES;
    if (!raw_enter(raw)) {
        return -ECANCELED;
    }
    for (size_t i = 0; i < stretches; i++) {
        const uint8_t *from = raw->at + runs * i / stretches * RUN * element->width;
        uint8_t *planes[PLANES_MAX];
        for (size_t plane = 0; plane < PLANES_MAX; plane++) {
            planes[plane] = context->planes[plane] + i * plane_symbols(element, plane, RUN);
        }
        planes_split(element, from, planes, RUN, context->wide);
    }
    raw_leave(raw);
    return (int64_t)(stretches * RUN);
}

/* Exponents that lie so far below the greatest of their run that the codec "packed" has to list them. */
static uint32_t count_escapes(const uint8_t *top, size_t count)
{
    uint32_t escapes = 0;
    for (size_t first = 0; first < count; first += RUN) {
        unsigned greatest = 0;
        for (size_t i = first; i < first + RUN; i++) {
            greatest = top[i] > greatest ? top[i] : greatest;
        }
        for (size_t i = first; i < first + RUN; i++) {
            escapes += greatest > 15 && top[i] + 15u <= greatest;
        }
    }
    return escapes;
}

int64_t choose_codec(struct codec_context *context, const struct element *element, const struct raw_side *raw)
{
    uint8_t bases[SAMPLE / RUN];
    int64_t count = sample(context, element, raw);
    if (count <= 0) {
        return count < 0 ? count : CODEC_HUFFMAN; /* a shard this small tries it */
    }
    uint32_t all = 8u * BIT * element->width;
    uint32_t huffman = 0;
    for (size_t i = 0; i + 1u < element->planes; i++) {
        size_t symbols = plane_symbols(element, i, (size_t)count);
        uint32_t bits = entropy(context->planes[i], symbols);
        huffman += (bits < NOISE ? bits + CODE_LOSS : 8 * BIT) * (uint32_t)symbols / (uint32_t)count;
    }
    uint8_t *top = context->planes[element->planes - 1];
    uint32_t packed = all;
    if (packed_takes(element)) {
        packed += PACKED_BITS + 8 * BIT * count_escapes(top, (size_t)count) / (uint32_t)count - 8 * BIT;
    }
    if (element->step) {
        planes_centre(top, (size_t)count, element->step, bases, context->wide);
    }
    huffman += entropy(top, (size_t)count) + CODE_LOSS;
    uint32_t worth = all / 64; /* what is faster may take a little more */
    if (huffman + worth < packed) {
        return CODEC_HUFFMAN;
    }
    return packed + worth < all ? CODEC_PACKED : CODEC_RAW;
}

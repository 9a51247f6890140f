/* The codec "huffman": elements in chunks, chunks in planes, each plane stored in the way that suits it.
 *
 * The planes of mantissas are noise and stay as they are. The plane of exponents is coded after its scale was taken out, run by
 * run: what is left is nearly the same for every tensor, layer and token, so that one code serves a chunk.
 */
#include "coding.h"

#include <errno.h>
#include <string.h>

enum {
    CHUNK = PLANE_SYMBOLS_MAX, /* elements */
    WORD = 4,                  /* bytes of a plane's entry in the header of a chunk */
    METHOD_SHIFT = 24,
    SAMPLES = 1024,
    STRETCH = 128, /* samples in one place */
};

enum method { STORED, CONSTANT, HUFFMAN, CENTRED, METHODS };

static inline void put_word(uint8_t *at, uint32_t word)
{
    memcpy(at, &word, sizeof(word));
}

static inline uint32_t get_word(const uint8_t *at)
{
    uint32_t word;
    memcpy(&word, at, sizeof(word));
    return word;
}

static inline size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- encoding ---- */

/* Whether equal symbols meet in a sample half as often again as among random bytes; if not, counting all of them is in vain. */
static bool is_promising(const uint8_t *plane, size_t count)
{
    uint16_t seen[256] = {0};
    size_t stretches = SAMPLES / STRETCH;
    if (count < SAMPLES) {
        return true;
    }
    for (size_t i = 0; i < stretches; i++) {
        const uint8_t *at = plane + (count - STRETCH) / (stretches - 1) * i;
        for (size_t j = 0; j < STRETCH; j++) {
            seen[at[j]]++;
        }
    }
    uint32_t meetings = 0;
    for (unsigned symbol = 0; symbol < 256; symbol++) {
        meetings += (uint32_t)seen[symbol] * (seen[symbol] - 1u);
    }
    return meetings > SAMPLES * (SAMPLES - 1) / 256 * 3 / 2;
}

static bool is_constant(const uint8_t *plane, size_t count)
{
    return memcmp(plane, plane + 1, count - 1) == 0;
}

/* Bases, and the symbols that are left. The plane is as before when this fails. */
static size_t encode_centred(struct codec_context *context, uint8_t step, uint8_t *plane, size_t count, uint8_t *out, size_t capacity)
{
    size_t head = 1 + centre_bases_bytes(count);
    if (head >= capacity) {
        return 0;
    }
    out[0] = planes_centre(plane, count, step, out + 1, context->wide);
    size_t coded = huffman_encode(&context->huffman, plane, count, out + head, capacity - head, context->wide);
    if (!coded) {
        planes_uncentre(plane, count, step, out + 1, out[0], context->wide);
        return 0;
    }
    return head + coded;
}

/* A plane; `step` is 0 if its symbols are no exponents. The bytes stored, 0 if they do not fit, and the method. */
static size_t encode_plane(struct codec_context *context, uint8_t step, uint8_t *plane, size_t count, uint8_t *out, size_t capacity,
                           enum method *method)
{
    if (capacity && is_constant(plane, count)) {
        *method = CONSTANT;
        out[0] = plane[0];
        return 1;
    }
    size_t worth = least(count - count / 64, capacity); /* one percent is not worth the decoder's time */
    size_t stored = 0;
    if (step) {
        *method = CENTRED;
        stored = encode_centred(context, step, plane, count, out, worth);
    } else if (is_promising(plane, count)) {
        *method = HUFFMAN;
        stored = huffman_encode(&context->huffman, plane, count, out, worth, context->wide);
    }
    if (stored || count >= capacity) {
        return stored;
    }
    *method = STORED;
    memcpy(out, plane, count);
    return count;
}

static size_t encode_chunk(struct codec_context *context, const struct element *element, size_t count, uint8_t *out, size_t capacity)
{
    size_t used = WORD * (size_t)element->planes;
    for (size_t i = 0; i < element->planes; i++) {
        enum method method;
        uint8_t step = i + 1u == element->planes ? element->step : 0;
        size_t symbols = plane_symbols(element, i, count);
        size_t room = capacity > used ? capacity - used : 0;
        size_t stored = encode_plane(context, step, context->planes[i], symbols, out + used, room, &method);
        if (!stored) {
            return 0;
        }
        put_word(out + WORD * i, (uint32_t)method << METHOD_SHIFT | (uint32_t)stored);
        used += stored;
    }
    return used;
}

static bool split_chunk(struct codec_context *context, const struct element *element, const struct raw_side *raw, size_t first,
                        size_t count)
{
    uint8_t *const planes[PLANES_MAX] = {context->planes[0], context->planes[1], context->planes[2], context->planes[3]};
    if (!raw_enter(raw)) {
        return false;
    }
    planes_split(element, raw->at + first * element->width, planes, count, context->wide);
    raw_leave(raw);
    return true;
}

int64_t planar_encode(struct codec_context *context, const struct element *element, const struct raw_side *raw, uint8_t *out,
                      size_t capacity)
{
    size_t elements = raw->length / element->width;
    size_t used = 0;
    for (size_t first = 0; first < elements; first += CHUNK) {
        size_t count = least(elements - first, CHUNK);
        if (!split_chunk(context, element, raw, first, count)) {
            return -ECANCELED;
        }
        size_t stored = encode_chunk(context, element, count, out + used, capacity - used);
        if (!stored) {
            return 0;
        }
        used += stored;
    }
    size_t tail = raw->length % element->width;
    if (used + tail >= capacity) {
        return 0;
    }
    return raw_take_tail(raw, tail, out + used) ? (int64_t)(used + tail) : -ECANCELED;
}

/* ---- decoding ---- */

static bool decode_centred(struct codec_context *context, uint8_t step, const uint8_t *in, size_t stored, uint8_t *plane, size_t count)
{
    size_t head = 1 + centre_bases_bytes(count);
    if (!step || stored < head || !huffman_decode(&context->huffman, in + head, stored - head, plane, count)) {
        return false;
    }
    planes_uncentre(plane, count, step, in + 1, in[0], context->wide);
    return true;
}

/* Where the symbols of a plane are: in the payload itself, or decoded to `plane`. NULL if it is wrong. */
static const uint8_t *decode_plane(struct codec_context *context, uint8_t step, uint32_t method, const uint8_t *in, size_t stored,
                                   uint8_t *plane, size_t count)
{
    switch (method) {
    case STORED:
        return stored == count ? in : NULL;
    case CONSTANT:
        if (stored != 1) {
            return NULL;
        }
        memset(plane, in[0], count);
        return plane;
    case HUFFMAN:
        return huffman_decode(&context->huffman, in, stored, plane, count) ? plane : NULL;
    case CENTRED:
        return decode_centred(context, step, in, stored, plane, count) ? plane : NULL;
    default:
        return NULL;
    }
}

/* Find or decode the planes of a chunk. The bytes it takes, or 0 if it is wrong. */
static size_t decode_chunk(struct codec_context *context, const struct element *element, const uint8_t *in, size_t left, size_t count,
                           const uint8_t **planes)
{
    size_t used = WORD * (size_t)element->planes;
    if (left < used) {
        return 0;
    }
    for (size_t i = 0; i < element->planes; i++) {
        uint32_t word = get_word(in + WORD * i);
        size_t stored = word & ((1u << METHOD_SHIFT) - 1);
        uint8_t step = i + 1u == element->planes ? element->step : 0;
        if (stored > left - used) {
            return 0;
        }
        planes[i] = decode_plane(context, step, word >> METHOD_SHIFT, in + used, stored, context->planes[i],
                                 plane_symbols(element, i, count));
        if (!planes[i]) {
            return 0;
        }
        used += stored;
    }
    return used;
}

int planar_decode(struct codec_context *context, const struct element *element, const uint8_t *in, size_t stored,
                  const struct raw_side *raw)
{
    size_t elements = raw->length / element->width;
    size_t tail = raw->length % element->width;
    size_t used = 0;
    for (size_t first = 0; first < elements; first += CHUNK) {
        size_t count = least(elements - first, CHUNK);
        const uint8_t *planes[PLANES_MAX];
        size_t taken = decode_chunk(context, element, in + used, stored - used, count, planes);
        if (!taken) {
            return -EBADMSG;
        }
        used += taken;
        if (!raw_enter(raw)) {
            return -ECANCELED;
        }
        planes_merge(element, raw->at + first * element->width, planes, count, context->wide);
        raw_leave(raw);
    }
    if (stored - used != tail) {
        return -EBADMSG;
    }
    return raw_put_tail(raw, tail, in + used) ? 0 : -ECANCELED;
}

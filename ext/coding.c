/* Which codec does what: codings one after another, without Python. */
#include "coding.h"

#include "crc32c.h"

#include <errno.h>
#include <string.h>

enum { PIECE_BYTES = 64 * 1024 /* copied while the gate is held */ };

/* ---- the raw side ---- */

static bool copy_tail(const struct raw_side *raw, size_t tail, void *to, const void *from)
{
    if (!tail) {
        return true;
    }
    if (!raw_enter(raw)) {
        return false;
    }
    memcpy(to, from, tail);
    raw_leave(raw);
    return true;
}

bool raw_take_tail(const struct raw_side *raw, size_t tail, uint8_t *to)
{
    return copy_tail(raw, tail, to, raw->at + raw->length - tail);
}

bool raw_put_tail(const struct raw_side *raw, size_t tail, const uint8_t *from)
{
    return copy_tail(raw, tail, raw->at + raw->length - tail, from);
}

static int copy_raw(const struct raw_side *raw, uint8_t *to, const uint8_t *from)
{
    for (size_t done = 0; done < raw->length; done += PIECE_BYTES) {
        size_t piece = raw->length - done < PIECE_BYTES ? raw->length - done : PIECE_BYTES;
        if (!raw_enter(raw)) {
            return -ECANCELED;
        }
        memcpy(to + done, from + done, piece);
        raw_leave(raw);
    }
    return 0;
}

/* ---- parameters ---- */

/* The element type of a lossless codec, and nothing else. */
static bool read_element(const uint8_t *parameters, struct element *element)
{
    static const uint8_t zeros[PARAMETER_BYTES - 1];
    return element_of(parameters[0], element) && memcmp(parameters + 1, zeros, sizeof(zeros)) == 0;
}

/* What a lossy codec hands to the entropy coder. */
static struct element quantized_element(uint32_t codec)
{
    struct element element;
    (void)element_of(codec == CODEC_FP8_E4M3 ? DTYPE_FLOAT8_E4M3 : DTYPE_BYTES, &element);
    return element;
}

/* For codecs that only change the order: an element has as many planes as bytes. */
static bool read_shuffled(const uint8_t *parameters, struct element *element)
{
    bool good = read_element(parameters, element);
    element->planes = element->width;
    return good;
}

static bool is_lossless(uint32_t codec)
{
    return codec == CODEC_HUFFMAN || codec == CODEC_PACKED || codec == CODEC_AUTO;
}

static bool is_shuffle(uint32_t codec)
{
    return codec == CODEC_BYTE_PLANES || codec == CODEC_BIT_PLANES;
}

static bool is_lossy(uint32_t codec)
{
    return codec == CODEC_FP8_E4M3 || codec == CODEC_INT8 || codec == CODEC_INT4;
}

static bool quantized_bytes(uint32_t codec, const uint8_t *parameters, size_t raw_length, size_t *stored)
{
    return codec == CODEC_FP8_E4M3 ? fp8_stored(parameters, raw_length, stored)
                                   : quantize_stored(codec, parameters, raw_length, stored);
}

/* ---- encoding ---- */

static int64_t encode_lossless(struct codec_context *context, struct coding *coding, const struct raw_side *raw, uint8_t *out)
{
    struct element element;
    if (!read_element(coding->parameters, &element) || (coding->codec == CODEC_PACKED && !packed_takes(&element))) {
        return -EINVAL;
    }
    if (coding->codec == CODEC_AUTO) {
        int64_t choice = choose_codec(context, &element, raw);
        if (choice <= 0) {
            return choice;
        }
        coding->codec = (uint32_t)choice;
    }
    return coding->codec == CODEC_PACKED ? packed_encode(context, &element, raw, out, raw->length)
                                         : planar_encode(context, &element, raw, out, raw->length);
}

static int64_t quantize(struct codec_context *context, const struct coding *coding, const struct raw_side *raw, uint8_t *out,
                        size_t capacity)
{
    return coding->codec == CODEC_FP8_E4M3 ? fp8_encode(context, coding->parameters, raw, out, capacity)
                                           : quantize_encode(context, coding->codec, coding->parameters, raw, out, capacity);
}

/* What the entropy coder makes no smaller stays as it is: its length tells. */
static int64_t encode_lossy(struct codec_context *context, const struct coding *coding, const struct raw_side *raw, uint8_t *out)
{
    if (!(coding->parameters[1] & FLAG_ENTROPY)) {
        return quantize(context, coding, raw, out, raw->length);
    }
    size_t wanted;
    if (!quantized_bytes(coding->codec, coding->parameters, raw->length, &wanted)) {
        return -EINVAL;
    }
    if (wanted > context->quantized_size) {
        return wanted < raw->length ? -ENOBUFS : 0;
    }
    int64_t quantized = quantize(context, coding, raw, context->quantized, raw->length);
    if (quantized <= 0) {
        return quantized;
    }
    struct raw_side between = {.at = context->quantized, .length = (size_t)quantized};
    struct element element = quantized_element(coding->codec);
    int64_t stored = planar_encode(context, &element, &between, out, between.length);
    if (stored == 0) {
        memcpy(out, between.at, between.length);
        return quantized;
    }
    return stored;
}

static int64_t shuffle(struct codec_context *context, const struct coding *coding, const struct raw_side *raw, uint8_t *out)
{
    struct element element;
    if (!read_shuffled(coding->parameters, &element)) {
        return -EINVAL;
    }
    int result = shuffle_apart(context, &element, coding->codec == CODEC_BIT_PLANES, raw, out);
    return result ? result : (int64_t)raw->length;
}

static int64_t encode_one(struct codec_context *context, struct coding *coding)
{
    struct raw_side raw = {pointer_to(coding->source), coding->source_length, pointer_to(coding->gate)};
    uint8_t *out = pointer_to(coding->target);
    int64_t stored = 0;
    if (coding->source_length > SHARD_BYTES_MAX) {
        return -EMSGSIZE;
    }
    if (coding->target_length < coding->source_length) {
        return -ENOBUFS;
    }
    if (is_shuffle(coding->codec)) {
        return shuffle(context, coding, &raw, out);
    }
    if (is_lossless(coding->codec)) {
        stored = encode_lossless(context, coding, &raw, out);
    } else if (is_lossy(coding->codec)) {
        stored = encode_lossy(context, coding, &raw, out);
    } else if (coding->codec != CODEC_RAW) {
        return -ENOSYS;
    }
    if (stored != 0) {
        return stored;
    }
    coding->codec = CODEC_RAW;
    int result = copy_raw(&raw, out, raw.at);
    return result ? result : (int64_t)raw.length;
}

/* Put the target behind the coding before it. Returns 0, or why there is no such place. */
static int64_t place_behind(struct coding *codings, size_t i)
{
    if (!(codings[i].flags & CODING_BEHIND)) {
        return 0;
    }
    if (i == 0) {
        return -EINVAL;
    }
    if (codings[i - 1].result < 0) {
        return codings[i - 1].result;
    }
    codings[i].target = codings[i - 1].target + (uint64_t)codings[i - 1].result;
    return 0;
}

void codings_encode(struct codec_context *context, struct coding *codings, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        int64_t result = place_behind(codings, i);
        if (!result) {
            result = encode_one(context, &codings[i]);
        }
        if (codings[i].flags & CODING_CHECKSUM && result >= 0) {
            codings[i].checksum = crc32c_update(0, pointer_to(codings[i].target), (size_t)result);
        }
        __atomic_store_n(&codings[i].result, result, __ATOMIC_RELEASE);
    }
}

/* ---- decoding ---- */

static int decode_lossless(struct codec_context *context, const struct coding *coding, const uint8_t *in, const struct raw_side *raw)
{
    struct element element;
    if (coding->codec == CODEC_AUTO || !read_element(coding->parameters, &element)) {
        return -EBADMSG;
    }
    if (coding->codec == CODEC_HUFFMAN) {
        return planar_decode(context, &element, in, coding->source_length, raw);
    }
    return packed_takes(&element) ? packed_decode(context, &element, in, coding->source_length, raw) : -EBADMSG;
}

static int expand(struct codec_context *context, const struct coding *coding, const uint8_t *in, size_t stored,
                  const struct raw_side *raw)
{
    return coding->codec == CODEC_FP8_E4M3 ? fp8_decode(context, coding->parameters, in, stored, raw)
                                           : quantize_decode(context, coding->codec, coding->parameters, in, stored, raw);
}

static int decode_lossy(struct codec_context *context, const struct coding *coding, const uint8_t *in, const struct raw_side *raw)
{
    size_t wanted;
    if (!quantized_bytes(coding->codec, coding->parameters, raw->length, &wanted)) {
        return -EBADMSG;
    }
    if (!(coding->parameters[1] & FLAG_ENTROPY) || coding->source_length == wanted) {
        return expand(context, coding, in, coding->source_length, raw);
    }
    if (coding->source_length > wanted) {
        return -EBADMSG;
    }
    if (wanted > context->quantized_size) {
        return -ENOBUFS;
    }
    struct raw_side between = {.at = context->quantized, .length = wanted};
    struct element element = quantized_element(coding->codec);
    int result = planar_decode(context, &element, in, coding->source_length, &between);
    return result ? result : expand(context, coding, between.at, wanted, raw);
}

static int unshuffle(struct codec_context *context, const struct coding *coding, const uint8_t *in, const struct raw_side *raw)
{
    struct element element;
    if (coding->source_length != raw->length || !read_shuffled(coding->parameters, &element)) {
        return -EBADMSG;
    }
    return shuffle_together(context, &element, coding->codec == CODEC_BIT_PLANES, in, raw);
}

static int decode_one(struct codec_context *context, const struct coding *coding)
{
    struct raw_side raw = {pointer_to(coding->target), coding->target_length, pointer_to(coding->gate)};
    const uint8_t *in = pointer_to(coding->source);
    if (coding->target_length > SHARD_BYTES_MAX) {
        return -EMSGSIZE;
    }
    if (is_shuffle(coding->codec)) {
        return unshuffle(context, coding, in, &raw);
    }
    if (coding->codec != CODEC_RAW && !is_lossless(coding->codec) && !is_lossy(coding->codec)) {
        return -ENOSYS;
    }
    if (coding->source_length == coding->target_length) { /* whatever the codec: it did not shrink */
        return copy_raw(&raw, raw.at, in);
    }
    if (coding->codec == CODEC_RAW || coding->source_length > coding->target_length) {
        return -EBADMSG;
    }
    return is_lossless(coding->codec) ? decode_lossless(context, coding, in, &raw) : decode_lossy(context, coding, in, &raw);
}

void codings_decode(struct codec_context *context, struct coding *codings, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (codings[i].flags & CODING_CHECKSUM) {
            codings[i].checksum = crc32c_update(0, pointer_to(codings[i].source), codings[i].source_length);
        }
        int result = decode_one(context, &codings[i]);
        __atomic_store_n(&codings[i].result, result ? result : (int64_t)codings[i].target_length, __ATOMIC_RELEASE);
    }
}

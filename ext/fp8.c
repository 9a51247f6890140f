/* The codec "fp8_e4m3": each element times a fixed power of two as a byte of OCP E4M3. No step is stored, so it is exactly half, or a
 * quarter, of the raw bytes.
 */
#include "coding.h"
#include "floats.h"

#include <errno.h>
#include <string.h>

enum { PIECE = 16384, /* elements at a time */ POWER_MAX = 32 };

struct parameters {
    uint8_t dtype;
    uint8_t flags;
    int8_t power;
    uint8_t reserved[13];
};
_Static_assert(sizeof(struct parameters) == PARAMETER_BYTES, "they fill the parameters of a coding");

static bool read_parameters(const uint8_t *parameters, struct parameters *p)
{
    static const uint8_t zeros[sizeof(p->reserved)];
    memcpy(p, parameters, sizeof(*p));
    return float_width(p->dtype) && !(p->flags & ~FLAG_ENTROPY) && p->power >= -POWER_MAX && p->power <= POWER_MAX &&
           memcmp(p->reserved, zeros, sizeof(zeros)) == 0;
}

bool fp8_stored(const uint8_t *parameters, size_t raw_length, size_t *stored)
{
    struct parameters p;
    if (!read_parameters(parameters, &p)) {
        return false;
    }
    size_t width = float_width(p.dtype);
    *stored = raw_length / width + raw_length % width;
    return true;
}

int64_t fp8_encode(struct codec_context *context, const uint8_t *parameters, const struct raw_side *raw, uint8_t *out, size_t capacity)
{
    struct parameters p;
    if (!read_parameters(parameters, &p)) {
        return -EINVAL;
    }
    size_t width = float_width(p.dtype);
    size_t elements = raw->length / width;
    size_t tail = raw->length % width;
    if (elements + tail >= capacity) {
        return 0;
    }
    for (size_t first = 0; first < elements; first += PIECE) {
        size_t count = elements - first < PIECE ? elements - first : PIECE;
        const uint8_t *from = raw->at + first * width;
        if (!raw_enter(raw)) {
            return -ECANCELED;
        }
        bool finite = floats_greatest(p.dtype, from, count, context->wide) < FLOAT_INFINITY;
        floats_load(p.dtype, from, context->values, count, context->wide);
        raw_leave(raw);
        if (!finite) {
            return 0;
        }
        floats_to_e4m3(context->values, p.power, out + first, count, context->wide);
    }
    return raw_take_tail(raw, tail, out + elements) ? (int64_t)(elements + tail) : -ECANCELED;
}

int fp8_decode(struct codec_context *context, const uint8_t *parameters, const uint8_t *in, size_t stored, const struct raw_side *raw)
{
    struct parameters p;
    if (!read_parameters(parameters, &p)) {
        return -EBADMSG;
    }
    size_t width = float_width(p.dtype);
    size_t elements = raw->length / width;
    size_t tail = raw->length % width;
    if (stored != elements + tail) {
        return -EBADMSG;
    }
    for (size_t first = 0; first < elements; first += PIECE) {
        size_t count = elements - first < PIECE ? elements - first : PIECE;
        floats_from_e4m3(in + first, p.power, context->values, count, context->wide);
        if (!raw_enter(raw)) {
            return -ECANCELED;
        }
        floats_store(p.dtype, raw->at + first * width, context->values, count, context->wide);
        raw_leave(raw);
    }
    return raw_put_tail(raw, tail, in + elements) ? 0 : -ECANCELED;
}

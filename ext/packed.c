/* The codec "packed": exponents in four bits each, the rest as it is. No tables, so it runs at nearly the speed of a copy.
 *
 * A run of 128 elements stores its greatest exponent less 15 as its base, and of each element how far its exponent is above that.
 * Exponents at or below the base are 0, and follow at the end as whole bytes: values 2**15 times smaller than the greatest one of
 * their run are rare. All is laid out by kind, so that every loop over a run is one over vectors.
 */
#include "coding.h"
#include "wide.h"

#include <errno.h>
#include <string.h>

enum {
    HALF = RUN / 2,
    RANGE = 15,
    BLOCK = 64, /* runs whose exponents stay in the L1 cache, and for which the gate is held */
};

/* Where the parts of a payload of `runs` runs begin. */
struct layout {
    size_t runs;
    size_t planes; /* below the top one */
    size_t nibbles;
    size_t rest;
    size_t tail; /* what is no whole run, as it is */
    size_t tail_bytes;
    size_t escapes;
};

static struct layout layout_of(const struct element *element, size_t length)
{
    struct layout layout = {.runs = length / (RUN * (size_t)element->width), .planes = element->width - 1u};
    layout.nibbles = layout.runs;
    layout.rest = layout.nibbles + layout.runs * HALF;
    layout.tail = layout.rest + layout.runs * RUN * layout.planes;
    layout.tail_bytes = length % (RUN * (size_t)element->width);
    layout.escapes = layout.tail + layout.tail_bytes;
    return layout;
}

/* ---- the exponents of some runs ---- */

/* Bases and nibbles; `escapes[run]` tells whether the run has exponents to list. */
BODY void lower_body(const uint8_t *restrict top, size_t runs, uint8_t *restrict bases, uint8_t *restrict nibbles,
                     uint8_t *restrict escapes)
{
    for (size_t run = 0; run < runs; run++, top += RUN, nibbles += HALF) {
        uint8_t most = 0;
        uint8_t least = UINT8_MAX;
        for (size_t i = 0; i < RUN; i++) {
            most = top[i] > most ? top[i] : most;
            least = top[i] < least ? top[i] : least;
        }
        uint8_t base = (uint8_t)(most > RANGE ? most - RANGE : 0);
        uint8_t above[RUN];
        for (size_t i = 0; i < RUN; i++) {
            above[i] = (uint8_t)(top[i] > base ? top[i] - base : 0);
        }
        for (size_t i = 0; i < HALF; i++) {
            nibbles[i] = (uint8_t)(above[i] | above[i + HALF] << 4);
        }
        bases[run] = base;
        escapes[run] = base && least <= base; /* with base 0, a 0 is simply exponent 0 */
    }
}

/* Exponents; those that are listed come out as the base, and `escapes[run]` tells that there are some. */
BODY void raise_body(const uint8_t *restrict bases, const uint8_t *restrict nibbles, size_t runs, uint8_t *restrict top,
                     uint8_t *restrict escapes)
{
    for (size_t run = 0; run < runs; run++, top += RUN, nibbles += HALF) {
        uint8_t base = bases[run];
        uint8_t least = UINT8_MAX;
        for (size_t i = 0; i < HALF; i++) {
            uint8_t low = nibbles[i] & 15;
            uint8_t high = nibbles[i] >> 4;
            uint8_t lower = low < high ? low : high;
            least = lower < least ? lower : least;
            top[i] = (uint8_t)(low + base);
            top[i + HALF] = (uint8_t)(high + base);
        }
        escapes[run] = base && !least;
    }
}

TWICE(lower,
      (const uint8_t *restrict top, size_t runs, uint8_t *restrict bases, uint8_t *restrict nibbles, uint8_t *restrict escapes),
      (top, runs, bases, nibbles, escapes))
TWICE(raise,
      (const uint8_t *restrict bases, const uint8_t *restrict nibbles, size_t runs, uint8_t *restrict top,
       uint8_t *restrict escapes),
      (bases, nibbles, runs, top, escapes))

/* ---- encoding ---- */

/* Append the exponents of a run that are not above its base. Where the next one goes; NULL if `end` is reached. */
static uint8_t *list_escapes(const uint8_t *top, uint8_t base, uint8_t *at, const uint8_t *end)
{
    for (size_t i = 0; i < RUN; i++) {
        if (top[i] <= base) {
            if (at == end) {
                return NULL;
            }
            *at++ = top[i];
        }
    }
    return at;
}

/* Elements of `runs` runs from run `first` on. As list_escapes. */
static uint8_t *encode_block(struct codec_context *context, const struct element *element, const struct layout *layout,
                             const uint8_t *elements, size_t first, size_t runs, uint8_t *out, uint8_t *at, const uint8_t *end)
{
    uint8_t *top = context->planes[0];
    uint8_t *planes[PLANES_MAX];
    uint8_t escapes[BLOCK];
    for (size_t i = 0; i < layout->planes; i++) {
        planes[i] = out + layout->rest + (i * layout->runs + first) * RUN;
    }
    planes[layout->planes] = top;
    planes_split(element, elements, planes, runs * RUN, context->wide);
    uint8_t *bases = out + first;
    EITHER(context->wide, lower, top, runs, bases, out + layout->nibbles + first * HALF, escapes);
    for (size_t run = 0; run < runs && at; run++) {
        if (escapes[run]) {
            at = list_escapes(top + run * RUN, bases[run], at, end);
        }
    }
    return at;
}

int64_t packed_encode(struct codec_context *context, const struct element *element, const struct raw_side *raw, uint8_t *out,
                      size_t capacity)
{
    struct layout layout = layout_of(element, raw->length);
    if (layout.escapes >= capacity) {
        return 0;
    }
    uint8_t *at = out + layout.escapes;
    size_t run_bytes = RUN * (size_t)element->width;
    for (size_t first = 0; first < layout.runs; first += BLOCK) {
        size_t runs = layout.runs - first < BLOCK ? layout.runs - first : BLOCK;
        if (!raw_enter(raw)) {
            return -ECANCELED;
        }
        at = encode_block(context, element, &layout, raw->at + first * run_bytes, first, runs, out, at, out + capacity - 1);
        raw_leave(raw);
        if (!at) {
            return 0;
        }
    }
    return raw_take_tail(raw, layout.tail_bytes, out + layout.tail) ? at - out : -ECANCELED;
}

/* ---- decoding ---- */

/* Put listed exponents where the base stands for them. As list_escapes. */
static const uint8_t *place_escapes(uint8_t *top, uint8_t base, const uint8_t *at, const uint8_t *end)
{
    for (size_t i = 0; i < RUN; i++) {
        if (top[i] == base) {
            if (at == end) {
                return NULL;
            }
            top[i] = *at++;
        }
    }
    return at;
}

/* The exponents of a block into planes[0]. As list_escapes. */
static const uint8_t *raise_block(struct codec_context *context, const struct layout *layout, const uint8_t *in, size_t first,
                                  size_t runs, const uint8_t *at, const uint8_t *end)
{
    uint8_t *top = context->planes[0];
    uint8_t escapes[BLOCK];
    EITHER(context->wide, raise, in + first, in + layout->nibbles + first * HALF, runs, top, escapes);
    for (size_t run = 0; run < runs && at; run++) {
        if (escapes[run]) {
            at = place_escapes(top + run * RUN, in[first + run], at, end);
        }
    }
    return at;
}

static bool merge_block(const struct codec_context *context, const struct element *element, const struct layout *layout,
                        const uint8_t *in, size_t first, size_t runs, const struct raw_side *raw)
{
    const uint8_t *planes[PLANES_MAX];
    for (size_t i = 0; i < layout->planes; i++) {
        planes[i] = in + layout->rest + (i * layout->runs + first) * RUN;
    }
    planes[layout->planes] = context->planes[0];
    if (!raw_enter(raw)) {
        return false;
    }
    planes_merge(element, raw->at + first * RUN * element->width, planes, runs * RUN, context->wide);
    raw_leave(raw);
    return true;
}

int packed_decode(struct codec_context *context, const struct element *element, const uint8_t *in, size_t stored,
                  const struct raw_side *raw)
{
    struct layout layout = layout_of(element, raw->length);
    if (stored < layout.escapes) {
        return -EBADMSG;
    }
    const uint8_t *at = in + layout.escapes;
    for (size_t first = 0; first < layout.runs; first += BLOCK) {
        size_t runs = layout.runs - first < BLOCK ? layout.runs - first : BLOCK;
        at = raise_block(context, &layout, in, first, runs, at, in + stored);
        if (!at) {
            return -EBADMSG;
        }
        if (!merge_block(context, element, &layout, in, first, runs, raw)) {
            return -ECANCELED;
        }
    }
    if (at != in + stored) {
        return -EBADMSG;
    }
    return raw_put_tail(raw, layout.tail_bytes, in + layout.tail) ? 0 : -ECANCELED;
}

/* Elements apart into planes of bytes, and together again. */
#ifndef UCM_PLANES_H
#define UCM_PLANES_H

#include "platform.h"

#include <stdbool.h>
#include <stddef.h>

enum {
    PLANES_MAX = 4,
    RUN = 128,                 /* symbols with one base */
    PLANE_SYMBOLS_MAX = 32768, /* of a plane that is centred */
};

/* What a codec must know of an element type. */
struct element {
    uint8_t width;  /* bytes, 1, 2 or 4 */
    uint8_t planes; /* as many, or two halves of one byte */
    bool rotated;   /* floats: the sign is moved below the mantissa, so that the top plane begins with the exponent */
    uint8_t step;   /* one step of the exponent in the top plane; 0: no float */
};

/* Element types as headers name them. */
enum dtype { DTYPE_BYTES, DTYPE_BFLOAT16, DTYPE_FLOAT16, DTYPE_FLOAT32, DTYPE_FLOAT8_E4M3, DTYPE_FLOAT8_E5M2, DTYPES };

/* False if there is no such type. */
bool element_of(uint8_t dtype, struct element *element);

/* Symbols in plane i of `count` elements. The lower halves of bytes are two a symbol, the upper ones a symbol each. */
static inline size_t plane_symbols(const struct element *element, size_t i, size_t count)
{
    return element->planes > element->width && i == 0 ? (count + 1) / 2 : count;
}

/* planes[planes - 1] is the top one. Planes must not overlap each other or the elements. */
void planes_split(const struct element *element, const uint8_t *elements, uint8_t *const *planes, size_t count, bool wide);
void planes_merge(const struct element *element, uint8_t *elements, const uint8_t *const *planes, size_t count, bool wide);

/* Take from each run of the plane its base, near its mean, so that runs of any scale have equal symbols. A base is
 * lowest + step * (4 bits), two a byte in `bases`; returns `lowest`. `centre_bases_bytes` tells how many bytes.
 */
uint8_t planes_centre(uint8_t *plane, size_t count, uint8_t step, uint8_t *bases, bool wide);
void planes_uncentre(uint8_t *plane, size_t count, uint8_t step, const uint8_t *bases, uint8_t lowest, bool wide);

static inline size_t centre_bases_bytes(size_t count)
{
    return (count + 2 * RUN - 1) / (2 * RUN);
}

#endif

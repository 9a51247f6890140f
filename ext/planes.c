/* Elements apart into planes of bytes, and together again. */
#include "planes.h"

#include "wide.h"

#include <string.h>

enum { BASES = 16, MIDDLE = 128 /* where the symbols of a run gather: code lengths are stored from the first to the last */ };

bool element_of(uint8_t dtype, struct element *element)
{
    static const struct element elements[DTYPES] = {
        [DTYPE_BYTES] = {.width = 1, .planes = 1},
        [DTYPE_BFLOAT16] = {.width = 2, .planes = 2, .rotated = true, .step = 1},
        [DTYPE_FLOAT16] = {.width = 2, .planes = 2, .rotated = true, .step = 8},
        [DTYPE_FLOAT32] = {.width = 4, .planes = 4, .rotated = true, .step = 1},
        [DTYPE_FLOAT8_E4M3] = {.width = 1, .planes = 2, .rotated = true, .step = 1},
        [DTYPE_FLOAT8_E5M2] = {.width = 1, .planes = 1, .rotated = true, .step = 8},
    };
    if (dtype >= DTYPES) {
        return false;
    }
    *element = elements[dtype];
    return true;
}

/* ---- apart ---- */

BODY void split1_body(const uint8_t *restrict from, uint8_t *restrict top, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        top[i] = (uint8_t)(from[i] << 1 | from[i] >> 7);
    }
}

BODY void split2_body(const uint8_t *restrict from, uint8_t *restrict low, uint8_t *restrict top, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t x;
        memcpy(&x, from + 2 * i, sizeof(x));
        x = (uint16_t)(x << 1 | x >> 15);
        low[i] = (uint8_t)x;
        top[i] = (uint8_t)(x >> 8);
    }
}

BODY void split4_body(const uint8_t *restrict from, uint8_t *restrict p0, uint8_t *restrict p1, uint8_t *restrict p2,
                      uint8_t *restrict p3, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t x;
        memcpy(&x, from + 4 * i, sizeof(x));
        x = x << 1 | x >> 31;
        p0[i] = (uint8_t)x;
        p1[i] = (uint8_t)(x >> 8);
        p2[i] = (uint8_t)(x >> 16);
        p3[i] = (uint8_t)(x >> 24);
    }
}

/* Exponents, and what is below them, two a byte. */
BODY void split_halves_body(const uint8_t *restrict from, uint8_t *restrict low, uint8_t *restrict top, size_t count)
{
    for (size_t i = 0; i < count / 2; i++) {
        uint16_t two;
        memcpy(&two, from + 2 * i, sizeof(two));
        uint32_t x = two;
        uint32_t halves = (x << 1 & 0xFEFE) | (x >> 7 & 0x0101);
        low[i] = (uint8_t)((halves & 0x0F) | (halves >> 4 & 0xF0));
        uint16_t exponents = (uint16_t)(halves >> 4 & 0x0F0F);
        memcpy(top + 2 * i, &exponents, sizeof(exponents));
    }
    if (count % 2) {
        unsigned last = from[count - 1];
        top[count - 1] = (uint8_t)(last >> 3 & 0x0F);
        low[count / 2] = (uint8_t)((last << 1 & 0x0F) | last >> 7);
    }
}

TWICE(split1, (const uint8_t *restrict from, uint8_t *restrict top, size_t count), (from, top, count))
TWICE(split2, (const uint8_t *restrict from, uint8_t *restrict low, uint8_t *restrict top, size_t count),
      (from, low, top, count))
TWICE(split_halves, (const uint8_t *restrict from, uint8_t *restrict low, uint8_t *restrict top, size_t count),
      (from, low, top, count))
TWICE(split4,
      (const uint8_t *restrict from, uint8_t *restrict p0, uint8_t *restrict p1, uint8_t *restrict p2, uint8_t *restrict p3,
       size_t count),
      (from, p0, p1, p2, p3, count))

void planes_split(const struct element *element, const uint8_t *elements, uint8_t *const *planes, size_t count, bool wide)
{
    if (!element->rotated) {
        memcpy(planes[0], elements, count);
    } else if (element->planes > element->width) {
        EITHER(wide, split_halves, elements, planes[0], planes[1], count);
    } else if (element->width == 1) {
        EITHER(wide, split1, elements, planes[0], count);
    } else if (element->width == 2) {
        EITHER(wide, split2, elements, planes[0], planes[1], count);
    } else {
        EITHER(wide, split4, elements, planes[0], planes[1], planes[2], planes[3], count);
    }
}

/* ---- together ---- */

BODY void merge1_body(uint8_t *restrict to, const uint8_t *restrict top, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        to[i] = (uint8_t)(top[i] >> 1 | top[i] << 7);
    }
}

BODY void merge2_body(uint8_t *restrict to, const uint8_t *restrict low, const uint8_t *restrict top, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t x = (uint16_t)(top[i] << 8 | low[i]);
        x = (uint16_t)(x >> 1 | x << 15);
        memcpy(to + 2 * i, &x, sizeof(x));
    }
}

BODY void merge4_body(uint8_t *restrict to, const uint8_t *restrict p0, const uint8_t *restrict p1, const uint8_t *restrict p2,
                      const uint8_t *restrict p3, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t x = (uint32_t)p3[i] << 24 | (uint32_t)p2[i] << 16 | (uint32_t)p1[i] << 8 | p0[i];
        x = x >> 1 | x << 31;
        memcpy(to + 4 * i, &x, sizeof(x));
    }
}

BODY void merge_halves_body(uint8_t *restrict to, const uint8_t *restrict low, const uint8_t *restrict top, size_t count)
{
    for (size_t i = 0; i < count / 2; i++) {
        uint16_t exponents;
        memcpy(&exponents, top + 2 * i, sizeof(exponents));
        unsigned halves = (exponents & 0x0F0Fu) << 4 | (low[i] & 0x0Fu) | (low[i] & 0xF0u) << 4;
        uint16_t x = (uint16_t)((halves >> 1 & 0x7F7Fu) | (halves << 7 & 0x8080u));
        memcpy(to + 2 * i, &x, sizeof(x));
    }
    if (count % 2) {
        unsigned last = low[count / 2] & 0x0Fu;
        to[count - 1] = (uint8_t)((top[count - 1] & 0x0F) << 3 | last >> 1 | last << 7);
    }
}

TWICE(merge1, (uint8_t *restrict to, const uint8_t *restrict top, size_t count), (to, top, count))
TWICE(merge2, (uint8_t *restrict to, const uint8_t *restrict low, const uint8_t *restrict top, size_t count), (to, low, top, count))
TWICE(merge_halves, (uint8_t *restrict to, const uint8_t *restrict low, const uint8_t *restrict top, size_t count),
      (to, low, top, count))
TWICE(merge4,
      (uint8_t *restrict to, const uint8_t *restrict p0, const uint8_t *restrict p1, const uint8_t *restrict p2,
       const uint8_t *restrict p3, size_t count),
      (to, p0, p1, p2, p3, count))

void planes_merge(const struct element *element, uint8_t *elements, const uint8_t *const *planes, size_t count, bool wide)
{
    if (!element->rotated) {
        memcpy(elements, planes[0], count);
    } else if (element->planes > element->width) {
        EITHER(wide, merge_halves, elements, planes[0], planes[1], count);
    } else if (element->width == 1) {
        EITHER(wide, merge1, elements, planes[0], count);
    } else if (element->width == 2) {
        EITHER(wide, merge2, elements, planes[0], planes[1], count);
    } else {
        EITHER(wide, merge4, elements, planes[0], planes[1], planes[2], planes[3], count);
    }
}

/* ---- bases ---- */

BODY void sum_runs_body(const uint8_t *restrict plane, size_t runs, uint8_t *restrict means)
{
    for (size_t run = 0; run < runs; run++) {
        uint32_t sum = 0;
        for (size_t i = 0; i < RUN; i++) {
            sum += plane[run * RUN + i];
        }
        means[run] = (uint8_t)((sum + RUN / 2) / RUN);
    }
}

TWICE(sum_runs, (const uint8_t *restrict plane, size_t runs, uint8_t *restrict means), (plane, runs, means))

/* Add bases[run] to every symbol of a run, modulo 256. */
BODY void add_bases_body(uint8_t *restrict plane, size_t count, const uint8_t *restrict bases)
{
    size_t runs = count / RUN;
    for (size_t run = 0; run < runs; run++) {
        for (size_t i = 0; i < RUN; i++) {
            plane[run * RUN + i] = (uint8_t)(plane[run * RUN + i] + bases[run]);
        }
    }
    for (size_t i = runs * RUN; i < count; i++) {
        plane[i] = (uint8_t)(plane[i] + bases[runs]);
    }
}

TWICE(add_bases, (uint8_t *restrict plane, size_t count, const uint8_t *restrict bases), (plane, count, bases))

static uint8_t mean_of(const uint8_t *symbols, size_t count)
{
    size_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += symbols[i];
    }
    return (uint8_t)((sum + count / 2) / count);
}

static uint8_t largest(const uint8_t *values, size_t count)
{
    uint8_t most = 0;
    for (size_t i = 0; i < count; i++) {
        most = values[i] > most ? values[i] : most;
    }
    return most;
}

/* The base in steps above `lowest`, the nearest there is. */
static uint8_t nearest(unsigned mean, unsigned lowest, unsigned step)
{
    unsigned steps = mean > lowest ? (mean - lowest + step / 2) / step : 0;
    return (uint8_t)(steps < BASES ? steps : BASES - 1);
}

uint8_t planes_centre(uint8_t *plane, size_t count, uint8_t step, uint8_t *bases, bool wide)
{
    uint8_t means[PLANE_SYMBOLS_MAX / RUN + 1];
    size_t runs = (count + RUN - 1) / RUN;
    EITHER(wide, sum_runs, plane, count / RUN, means);
    if (count % RUN) {
        means[runs - 1] = mean_of(plane + (runs - 1) * RUN, count % RUN);
    }
    unsigned most = largest(means, runs);
    unsigned reach = (BASES - 1u) * step;
    uint8_t lowest = (uint8_t)(most > reach ? most - reach : 0);
    memset(bases, 0, centre_bases_bytes(count));
    for (size_t run = 0; run < runs; run++) {
        uint8_t steps = nearest(means[run], lowest, step);
        bases[run / 2] = (uint8_t)(bases[run / 2] | steps << (run % 2 * 4));
        means[run] = (uint8_t)(MIDDLE - (lowest + steps * step)); /* what is added now, modulo 256 */
    }
    EITHER(wide, add_bases, plane, count, means);
    return lowest;
}

void planes_uncentre(uint8_t *plane, size_t count, uint8_t step, const uint8_t *bases, uint8_t lowest, bool wide)
{
    uint8_t added[PLANE_SYMBOLS_MAX / RUN + 1];
    size_t runs = (count + RUN - 1) / RUN;
    for (size_t run = 0; run < runs; run++) {
        unsigned steps = (unsigned)bases[run / 2] >> (run % 2 * 4) & 15;
        added[run] = (uint8_t)(lowest + steps * step - MIDDLE);
    }
    EITHER(wide, add_bases, plane, count, added);
}

/* Values to small integers, group by group, and back.
 *
 * A step is stored as a byte, in eighths of an octave below the shard's greatest: at most nine percent larger than it need be, and it
 * serves groups that differ by 2**32. What is lowest is stored in steps: then 0 is 0 afterwards, too.
 */
#include "levels.h"

#include "wide.h"

#include <string.h>

enum {
    PARTS_OF_OCTAVE = 8,
    EXPONENT_MIN = -90, /* below it the least step would not be a normal number */
    EXPONENT_MAX = 118, /* GREATEST_MAX * 2 / 15 */
    LOWEST_REACH = 120, /* lowest levels are stored in a signed byte */
    FIXED_LOWEST = -127, /* without lowest levels */
};
#define ROUNDING 12582912.0f /* 1.5 * 2**23: adding it leaves the nearest integer in the lowest bits */
#define ROUNDING_BITS 0x4B400000

static inline int32_t bits_of(float value)
{
    int32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float of_bits(int32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* Integers in the order of the floats: compilers find the least of integers with vectors, and that of floats without. Its own
 * inverse.
 */
static inline int32_t ordered(int32_t bits)
{
    return bits ^ (bits >> 31 & INT32_MAX);
}

static inline int32_t nearest(float value)
{
    return bits_of(value + ROUNDING) - ROUNDING_BITS;
}

size_t band_group_count(const struct band *band)
{
    return band->group ? band->rows * ((band->columns + band->group - 1) / band->group) : band->columns;
}

/* ---- steps ---- */

int step_exponent(const struct scheme *scheme, float greatest)
{
    float most = greatest / ((float)scheme->top / 2);
    int exponent = (bits_of(most) >> 23) - 127 + 1; /* so that 2**exponent is greater */
    return exponent < EXPONENT_MIN ? EXPONENT_MIN : exponent;
}

bool fill_steps(struct step_table *table, int exponent)
{
    static const float octave_parts[PARTS_OF_OCTAVE] = {
        1.0f, 0.917004043f, 0.840896415f, 0.771105413f, 0.707106781f, 0.648419777f, 0.594603558f, 0.545253866f, /* 2**(-i/8) */
    };
    if (exponent < EXPONENT_MIN || exponent > EXPONENT_MAX) {
        return false;
    }
    for (int code = 0; code < STEPS; code++) {
        int whole = exponent - code / PARTS_OF_OCTAVE;
        table->step[code] = octave_parts[code % PARTS_OF_OCTAVE] * of_bits((whole + 127) << 23);
        table->inverse[code] = 1.0f / table->step[code];
    }
    table->exponent = exponent;
    return true;
}

/* The code of the least step that is not below `need`; `scale` is 2**-exponent. */
BODY uint8_t code_of(float need, float scale)
{
    int32_t bits = bits_of(need * scale);
    int32_t mantissa = bits & 0x7FFFFF;
    int32_t parts = (mantissa > 0) + (mantissa > 0x0B95C2) + (mantissa > 0x1837F0) + (mantissa > 0x25FED7) + (mantissa > 0x3504F3) +
                    (mantissa > 0x45672A) + (mantissa > 0x5744FD) + (mantissa > 0x6AC0C7); /* 2**(i/8) - 1, times 2**23 */
    int32_t code = (127 - (bits >> 23)) * PARTS_OF_OCTAVE - parts;
    code = code < 0 ? 0 : code;
    return (uint8_t)(code < STEPS ? code : STEPS - 1);
}

/* `lows`, `highs`: the least and greatest value of each group, ordered. A step must be `per_spread` of their distance at least, and
 * `per_reach` of the greater magnitude.
 */
BODY void choose_codes_body(const int32_t *restrict lows, const int32_t *restrict highs, size_t count, float scale, float per_spread,
                            float per_reach, uint8_t *restrict codes)
{
    for (size_t i = 0; i < count; i++) {
        int32_t low = ordered(lows[i]);
        int32_t high = ordered(highs[i]);
        int32_t far = (low & INT32_MAX) > (high & INT32_MAX) ? low & INT32_MAX : high & INT32_MAX;
        int32_t spread = bits_of((of_bits(high) - of_bits(low)) * per_spread);
        int32_t reach = bits_of(of_bits(far) * per_reach);
        codes[i] = code_of(of_bits(spread > reach ? spread : reach), scale);
    }
}

TWICE(choose_codes,
      (const int32_t *restrict lows, const int32_t *restrict highs, size_t count, float scale, float per_spread, float per_reach,
       uint8_t *restrict codes),
      (lows, highs, count, scale, per_spread, per_reach, codes))

/* ---- ranges ---- */

BODY void column_ranges_body(const float *restrict values, size_t rows, size_t columns, int32_t *restrict lows,
                             int32_t *restrict highs)
{
    for (size_t i = 0; i < columns; i++) {
        lows[i] = INT32_MAX;
        highs[i] = INT32_MIN;
    }
    for (size_t row = 0; row < rows; row++, values += columns) {
        for (size_t i = 0; i < columns; i++) {
            int32_t value = ordered(bits_of(values[i]));
            lows[i] = value < lows[i] ? value : lows[i];
            highs[i] = value > highs[i] ? value : highs[i];
        }
    }
}

BODY void row_ranges_body(const float *restrict values, size_t rows, size_t columns, size_t group, int32_t *restrict lows,
                          int32_t *restrict highs)
{
    for (size_t row = 0; row < rows; row++, values += columns) {
        for (size_t first = 0; first < columns; first += group) {
            size_t end = first + group < columns ? first + group : columns;
            int32_t low = INT32_MAX;
            int32_t high = INT32_MIN;
            for (size_t i = first; i < end; i++) {
                int32_t value = ordered(bits_of(values[i]));
                low = value < low ? value : low;
                high = value > high ? value : high;
            }
            *lows++ = low;
            *highs++ = high;
        }
    }
}

TWICE(column_ranges,
      (const float *restrict values, size_t rows, size_t columns, int32_t *restrict lows, int32_t *restrict highs),
      (values, rows, columns, lows, highs))
TWICE(row_ranges,
      (const float *restrict values, size_t rows, size_t columns, size_t group, int32_t *restrict lows, int32_t *restrict highs),
      (values, rows, columns, group, lows, highs))

/* ---- levels ---- */

BODY uint8_t level_of(float value, float inverse, int32_t lowest, int32_t top)
{
    int32_t level = nearest(value * inverse) - lowest;
    level = level < 0 ? 0 : level;
    return (uint8_t)(level < top ? level : top);
}

BODY void column_levels_body(const float *restrict values, size_t rows, size_t columns, const float *restrict inverses,
                             const int32_t *restrict lowest, int32_t top, uint8_t *restrict levels)
{
    for (size_t row = 0; row < rows; row++, values += columns, levels += columns) {
        for (size_t i = 0; i < columns; i++) {
            levels[i] = level_of(values[i], inverses[i], lowest[i], top);
        }
    }
}

BODY void row_levels_body(const float *restrict values, size_t rows, size_t columns, size_t group, const float *restrict inverses,
                          const int32_t *restrict lowest, int32_t top, uint8_t *restrict levels)
{
    for (size_t row = 0; row < rows; row++, values += columns, levels += columns) {
        for (size_t first = 0; first < columns; first += group, inverses++, lowest++) {
            size_t end = first + group < columns ? first + group : columns;
            float inverse = *inverses;
            int32_t least = *lowest;
            for (size_t i = first; i < end; i++) {
                levels[i] = level_of(values[i], inverse, least, top);
            }
        }
    }
}

TWICE(column_levels,
      (const float *restrict values, size_t rows, size_t columns, const float *restrict inverses, const int32_t *restrict lowest,
       int32_t top, uint8_t *restrict levels),
      (values, rows, columns, inverses, lowest, top, levels))
TWICE(row_levels,
      (const float *restrict values, size_t rows, size_t columns, size_t group, const float *restrict inverses,
       const int32_t *restrict lowest, int32_t top, uint8_t *restrict levels),
      (values, rows, columns, group, inverses, lowest, top, levels))

void band_to_levels(const struct scheme *scheme, const struct step_table *table, const struct band *band, const float *values,
                    struct band_groups *groups, uint8_t *levels, bool wide)
{
    int32_t lows[BAND_GROUPS];
    int32_t highs[BAND_GROUPS];
    float inverses[BAND_GROUPS];
    size_t count = band_group_count(band);
    if (band->group) {
        EITHER(wide, row_ranges, values, band->rows, band->columns, band->group, lows, highs);
    } else {
        EITHER(wide, column_ranges, values, band->rows, band->columns, lows, highs);
    }
    float scale = of_bits((127 - table->exponent) << 23);
    float per_spread = scheme->has_lowest ? 1 / (float)scheme->top : 0;
    float per_reach = scheme->has_lowest ? 1.0f / LOWEST_REACH : 2 / (float)scheme->top;
    EITHER(wide, choose_codes, lows, highs, count, scale, per_spread, per_reach, groups->codes);
    int32_t *lowest = highs; /* done with */
    for (size_t i = 0; i < count; i++) {
        inverses[i] = table->inverse[groups->codes[i]];
        lowest[i] = scheme->has_lowest ? nearest(of_bits(ordered(lows[i])) * inverses[i]) : FIXED_LOWEST;
        groups->lowest[i] = (int8_t)lowest[i];
    }
    if (band->group) {
        EITHER(wide, row_levels, values, band->rows, band->columns, band->group, inverses, lowest, (int32_t)scheme->top, levels);
    } else {
        EITHER(wide, column_levels, values, band->rows, band->columns, inverses, lowest, (int32_t)scheme->top, levels);
    }
}

/* ---- values ---- */

BODY void column_values_body(const uint8_t *restrict levels, size_t rows, size_t columns, const float *restrict steps,
                             const int32_t *restrict lowest, float *restrict values)
{
    for (size_t row = 0; row < rows; row++, values += columns, levels += columns) {
        for (size_t i = 0; i < columns; i++) {
            values[i] = (float)(levels[i] + lowest[i]) * steps[i];
        }
    }
}

BODY void row_values_body(const uint8_t *restrict levels, size_t rows, size_t columns, size_t group, const float *restrict steps,
                          const int32_t *restrict lowest, float *restrict values)
{
    for (size_t row = 0; row < rows; row++, values += columns, levels += columns) {
        for (size_t first = 0; first < columns; first += group, steps++, lowest++) {
            size_t end = first + group < columns ? first + group : columns;
            float step = *steps;
            int32_t least = *lowest;
            for (size_t i = first; i < end; i++) {
                values[i] = (float)(levels[i] + least) * step;
            }
        }
    }
}

TWICE(column_values,
      (const uint8_t *restrict levels, size_t rows, size_t columns, const float *restrict steps, const int32_t *restrict lowest,
       float *restrict values),
      (levels, rows, columns, steps, lowest, values))
TWICE(row_values,
      (const uint8_t *restrict levels, size_t rows, size_t columns, size_t group, const float *restrict steps,
       const int32_t *restrict lowest, float *restrict values),
      (levels, rows, columns, group, steps, lowest, values))

void band_from_levels(const struct scheme *scheme, const struct step_table *table, const struct band *band, const uint8_t *levels,
                      const struct band_groups *groups, float *values, bool wide)
{
    float steps[BAND_GROUPS];
    int32_t lowest[BAND_GROUPS];
    size_t count = band_group_count(band);
    for (size_t i = 0; i < count; i++) {
        steps[i] = table->step[groups->codes[i]];
        lowest[i] = scheme->has_lowest ? groups->lowest[i] : FIXED_LOWEST;
    }
    if (band->group) {
        EITHER(wide, row_values, levels, band->rows, band->columns, band->group, steps, lowest, values);
    } else {
        EITHER(wide, column_values, levels, band->rows, band->columns, steps, lowest, values);
    }
}

/* ---- two a byte ---- */

BODY void pack_body(const uint8_t *restrict levels, uint8_t *restrict packed, size_t count)
{
    for (size_t i = 0; i < count / 2; i++) {
        uint16_t two;
        memcpy(&two, levels + 2 * i, sizeof(two));
        packed[i] = (uint8_t)(two | two >> 4);
    }
}

BODY void unpack_body(const uint8_t *restrict packed, uint8_t *restrict levels, size_t count)
{
    for (size_t i = 0; i < count / 2; i++) {
        uint16_t two = (uint16_t)((packed[i] & 0x0F) | (packed[i] & 0xF0) << 4);
        memcpy(levels + 2 * i, &two, sizeof(two));
    }
}

TWICE(pack, (const uint8_t *restrict levels, uint8_t *restrict packed, size_t count), (levels, packed, count))
TWICE(unpack, (const uint8_t *restrict packed, uint8_t *restrict levels, size_t count), (packed, levels, count))

void levels_pack(const uint8_t *levels, uint8_t *packed, size_t count, bool wide)
{
    EITHER(wide, pack, levels, packed, count);
}

void levels_unpack(const uint8_t *packed, uint8_t *levels, size_t count, bool wide)
{
    EITHER(wide, unpack, packed, levels, count);
}

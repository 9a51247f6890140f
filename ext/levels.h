/* Values to small integers, group by group, and back: the arithmetic of the codecs "int8" and "int4". */
#ifndef UCM_LEVELS_H
#define UCM_LEVELS_H

#include "platform.h"

#include <stdbool.h>
#include <stddef.h>

#define GREATEST_MAX 0x1p120f /* beyond it values of bytes that make no sense might not be finite */

enum {
    BAND_VALUES = 32768,
    BAND_GROUPS = 2048,
    STEPS = 256,
};

/* How values become levels 0 ... top: value / step, rounded, less the group's lowest. */
struct scheme {
    unsigned top;
    bool has_lowest; /* int4 stores the lowest of each group; with int8 it is always -127 */
};

/* What a code of a group's step stands for: step[code] = 2 ** (exponent - code / 8). One table serves a shard. */
struct step_table {
    int exponent;
    float step[STEPS];
    float inverse[STEPS];
};

/* A rectangle of values, row by row. A group is a column of it, or `group` consecutive values of a row, where not 0. */
struct band {
    size_t rows;
    size_t columns;
    size_t group;
};

/* What the groups of a band are given. */
struct band_groups {
    uint8_t codes[BAND_GROUPS];
    int8_t lowest[BAND_GROUPS];
};

size_t band_group_count(const struct band *band);

/* The exponent with which values of up to `greatest`, at most GREATEST_MAX, have a step. */
int step_exponent(const struct scheme *scheme, float greatest);

/* False if there is no such exponent. */
bool fill_steps(struct step_table *table, int exponent);

/* Choose steps and lowest levels for finite values, and the levels, a byte each. */
void band_to_levels(const struct scheme *scheme, const struct step_table *table, const struct band *band, const float *values,
                    struct band_groups *groups, uint8_t *levels, bool wide);

/* Whatever the codes and levels are, the values are finite. */
void band_from_levels(const struct scheme *scheme, const struct step_table *table, const struct band *band, const uint8_t *levels,
                      const struct band_groups *groups, float *values, bool wide);

/* Two levels of 0 ... 15 a byte, the first one in its low half; `count` is even. */
void levels_pack(const uint8_t *levels, uint8_t *packed, size_t count, bool wide);
void levels_unpack(const uint8_t *packed, uint8_t *levels, size_t count, bool wide);

#endif

/* Elements of 16 and 32 bits as float, and back: integer arithmetic that the compiler turns into vectors.
 *
 * No float here is denormal unless an element of 32 bits is: some processors take a hundred cycles for one.
 */
#include "floats.h"

#include "wide.h"

#include <string.h>

enum {
    BFLOAT16_LAST = 0x7F7F, /* bits of the greatest finite number */
    FLOAT16_INFINITY = 0x7C00,
};
#define FLOAT32_INFINITY 0x7F800000u
#define FLOAT16_LAST 65504.0f
#define FLOAT16_NORMAL 0x1p-14f /* least normal number */
#define E4M3_NORMAL 0x1p-6f
#define E4M3_LAST 448.0f

static inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* A choice without a branch: compilers make no vectors where one of two sums of floats, which may trap, is not wanted. */
static inline uint32_t pick(bool first, uint32_t a, uint32_t b)
{
    uint32_t mask = 0u - (uint32_t)first;
    return (a & mask) | (b & ~mask);
}

float power_of_two(int power)
{
    return of_bits((uint32_t)(power + 127) << 23);
}

/* ---- the greatest magnitude ---- */

BODY uint16_t greatest16_body(const uint8_t *restrict elements, size_t count)
{
    int16_t greatest = 0;
    for (size_t i = 0; i < count; i++) {
        int16_t x;
        memcpy(&x, elements + 2 * i, sizeof(x));
        x &= INT16_MAX;
        greatest = x > greatest ? x : greatest;
    }
    return (uint16_t)greatest;
}

BODY uint32_t greatest32_body(const uint8_t *restrict elements, size_t count)
{
    int32_t greatest = 0;
    for (size_t i = 0; i < count; i++) {
        int32_t x;
        memcpy(&x, elements + 4 * i, sizeof(x));
        x &= INT32_MAX;
        greatest = x > greatest ? x : greatest;
    }
    return (uint32_t)greatest;
}

GIVE_TWICE(uint16_t, greatest16, (const uint8_t *restrict elements, size_t count), (elements, count))
GIVE_TWICE(uint32_t, greatest32, (const uint8_t *restrict elements, size_t count), (elements, count))

/* ---- to float ---- */

BODY float from_bfloat16(uint16_t x)
{
    return of_bits((uint32_t)x << 16);
}

BODY float from_float16(uint16_t x)
{
    uint32_t magnitude = (uint32_t)(x & 0x7FFF) << 13;
    uint32_t sign = (uint32_t)(x & 0x8000) << 16;
    /* Its exponent is biased by 15 and not by 127. Below 2**-14 there is no leading 1: put one there and take its value away. */
    float normal = of_bits(magnitude + (112u << 23));
    float denormal = of_bits(magnitude + (113u << 23)) - FLOAT16_NORMAL;
    return of_bits(pick(magnitude < 1u << 23, bits_of(denormal), bits_of(normal)) | sign);
}

BODY void load_bfloat16_body(const uint8_t *restrict elements, float *restrict values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t x;
        memcpy(&x, elements + 2 * i, sizeof(x));
        values[i] = from_bfloat16(x);
    }
}

BODY void load_float16_body(const uint8_t *restrict elements, float *restrict values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t x;
        memcpy(&x, elements + 2 * i, sizeof(x));
        values[i] = from_float16(x);
    }
}

TWICE(load_bfloat16, (const uint8_t *restrict elements, float *restrict values, size_t count), (elements, values, count))
TWICE(load_float16, (const uint8_t *restrict elements, float *restrict values, size_t count), (elements, values, count))

void floats_load(enum dtype dtype, const uint8_t *elements, float *values, size_t count, bool wide)
{
    if (dtype == DTYPE_BFLOAT16) {
        EITHER(wide, load_bfloat16, elements, values, count);
    } else if (dtype == DTYPE_FLOAT16) {
        EITHER(wide, load_float16, elements, values, count);
    } else {
        memcpy(values, elements, count * sizeof(float));
    }
}

float floats_greatest(enum dtype dtype, const uint8_t *elements, size_t count, bool wide)
{
    if (dtype == DTYPE_FLOAT32) {
        uint32_t bits = EITHER(wide, greatest32, elements, count);
        return of_bits(bits < FLOAT32_INFINITY ? bits : FLOAT32_INFINITY);
    }
    uint16_t bits = EITHER(wide, greatest16, elements, count);
    if (dtype == DTYPE_FLOAT16) {
        return bits < FLOAT16_INFINITY ? from_float16(bits) : of_bits(FLOAT32_INFINITY);
    }
    return of_bits(bits <= BFLOAT16_LAST ? (uint32_t)bits << 16 : FLOAT32_INFINITY);
}

/* ---- from float ---- */

/* Drop the lowest `count` bits: to the nearest, ties to even. */
BODY uint32_t round_off(uint32_t bits, unsigned count)
{
    return (bits + (1u << (count - 1)) - 1 + (bits >> count & 1)) >> count;
}

BODY uint16_t to_bfloat16(float value)
{
    uint32_t bits = bits_of(value);
    uint32_t magnitude = round_off(bits & INT32_MAX, 16);
    magnitude = magnitude > BFLOAT16_LAST ? BFLOAT16_LAST : magnitude;
    return (uint16_t)(magnitude | (bits >> 16 & 0x8000));
}

BODY uint16_t to_float16(float value)
{
    uint32_t sign = bits_of(value) >> 16 & 0x8000;
    uint32_t bits = bits_of(value) & INT32_MAX; /* magnitudes compare like their bits */
    bits = bits > bits_of(FLOAT16_LAST) ? bits_of(FLOAT16_LAST) : bits;
    uint32_t normal = round_off(bits, 13) - (112u << 10);
    uint32_t denormal = bits_of(of_bits(bits) + 0.5f) - bits_of(0.5f); /* the last bit of 0.5 stands for 2**-24, as here */
    return (uint16_t)(pick(bits < bits_of(FLOAT16_NORMAL), denormal, normal) | sign);
}

BODY void store_bfloat16_body(uint8_t *restrict elements, const float *restrict values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t x = to_bfloat16(values[i]);
        memcpy(elements + 2 * i, &x, sizeof(x));
    }
}

BODY void store_float16_body(uint8_t *restrict elements, const float *restrict values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t x = to_float16(values[i]);
        memcpy(elements + 2 * i, &x, sizeof(x));
    }
}

TWICE(store_bfloat16, (uint8_t *restrict elements, const float *restrict values, size_t count), (elements, values, count))
TWICE(store_float16, (uint8_t *restrict elements, const float *restrict values, size_t count), (elements, values, count))

void floats_store(enum dtype dtype, uint8_t *elements, const float *values, size_t count, bool wide)
{
    if (dtype == DTYPE_BFLOAT16) {
        EITHER(wide, store_bfloat16, elements, values, count);
    } else if (dtype == DTYPE_FLOAT16) {
        EITHER(wide, store_float16, elements, values, count);
    } else {
        memcpy(elements, values, count * sizeof(float));
    }
}

/* ---- E4M3 ---- */

BODY void to_e4m3_body(const float *restrict values, float factor, uint8_t *restrict codes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t sign = bits_of(values[i]) >> 24 & 0x80;
        uint32_t bits = bits_of(values[i] * factor) & INT32_MAX;
        bits = bits > bits_of(E4M3_LAST) ? bits_of(E4M3_LAST) : bits;
        uint32_t normal = round_off(bits, 20) - (120u << 3);
        uint32_t denormal = bits_of(of_bits(bits) + 0x1p14f) - bits_of(0x1p14f); /* the last bit of 2**14 stands for 2**-9, as here */
        codes[i] = (uint8_t)(pick(bits < bits_of(E4M3_NORMAL), denormal, normal) | sign);
    }
}

BODY void from_e4m3_body(const uint8_t *restrict codes, float factor, float *restrict values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t magnitude = codes[i] & 0x7Fu;
        uint32_t sign = (uint32_t)(codes[i] & 0x80) << 24;
        float normal = of_bits((magnitude << 20) + (120u << 23));
        float denormal = of_bits((magnitude << 20) + (121u << 23)) - E4M3_NORMAL;
        float value = of_bits(pick(magnitude < 8, bits_of(denormal), bits_of(normal))) * factor;
        values[i] = of_bits(bits_of(value) | sign);
    }
}

TWICE(to_e4m3, (const float *restrict values, float factor, uint8_t *restrict codes, size_t count), (values, factor, codes, count))
TWICE(from_e4m3, (const uint8_t *restrict codes, float factor, float *restrict values, size_t count), (codes, factor, values, count))

void floats_to_e4m3(const float *values, int power, uint8_t *codes, size_t count, bool wide)
{
    EITHER(wide, to_e4m3, values, power_of_two(power), codes, count);
}

void floats_from_e4m3(const uint8_t *codes, int power, float *values, size_t count, bool wide)
{
    EITHER(wide, from_e4m3, codes, power_of_two(-power), values, count);
}

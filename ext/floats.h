/* Elements of 16 and 32 bits as float, and back. */
#ifndef UCM_FLOATS_H
#define UCM_FLOATS_H

#include "planes.h"

#define FLOAT_INFINITY __builtin_inff()

/* Bytes of an element of DTYPE_BFLOAT16, DTYPE_FLOAT16 or DTYPE_FLOAT32; 0 for the other types, which have no place here. */
static inline size_t float_width(uint8_t dtype)
{
    return dtype == DTYPE_BFLOAT16 || dtype == DTYPE_FLOAT16 ? 2 : dtype == DTYPE_FLOAT32 ? 4 : 0;
}

/* The greatest magnitude among `count` elements; infinity if one of them is infinite or not a number. */
float floats_greatest(enum dtype dtype, const uint8_t *elements, size_t count, bool wide);

/* DTYPE_BFLOAT16, DTYPE_FLOAT16 or DTYPE_FLOAT32 to float, exactly. */
void floats_load(enum dtype dtype, const uint8_t *elements, float *values, size_t count, bool wide);

/* The nearest element, ties to even. What is out of range becomes the greatest finite one; values are numbers. */
void floats_store(enum dtype dtype, uint8_t *elements, const float *values, size_t count, bool wide);

/* float times 2**power to OCP E4M3 and back (OCP 8-bit Floating Point Specification, 1.0). Nearest, ties to even; beyond 448 it is 448.
 * The code of what is not a number is never stored; it comes back as the 480 that its bits would be.
 */
void floats_to_e4m3(const float *values, int power, uint8_t *codes, size_t count, bool wide);
void floats_from_e4m3(const uint8_t *codes, int power, float *values, size_t count, bool wide);

/* 2**power, for a power that float has. */
float power_of_two(int power);

#endif

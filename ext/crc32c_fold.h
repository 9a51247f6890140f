/* CRC-32C of whole lines by carry-less multiplication, for processors that multiply 64 bytes at a time. */
#ifndef UCM_CRC32C_FOLD_H
#define UCM_CRC32C_FOLD_H

#include "platform.h"

#include <stdbool.h>
#include <stddef.h>

enum {
    LINE_BYTES = 64,
    FOLD_LINES_MIN = 16, /* fewer are as fast by the crc32 instruction */
};

/* `power(bits)` is x**bits modulo the polynomial, reflected: bit 31 is x**0. False if the processor cannot do it. */
bool crc32c_fold_setup(uint32_t (*power)(size_t bits));

/* The raw register (without inversion) after `lines` >= FOLD_LINES_MIN lines. */
uint32_t crc32c_fold(uint32_t value, const unsigned char *from, size_t lines);

/* The same, and copy them; for `streaming`, past the caches, `to` lies on a line. */
uint32_t crc32c_fold_copy(uint32_t value, unsigned char *to, const unsigned char *from, size_t lines, bool streaming);

#endif

/* CRC-32C (Castagnoli, RFC 3720 appendix B.4), alone and together with a copy. Values are final ones: 0 starts. */
#ifndef UCM_CRC32C_H
#define UCM_CRC32C_H

#include "platform.h"

#include <stdbool.h>
#include <stddef.h>

/* Build the tables and choose the kernel. Call it once before the others; calling it again is harmless. */
void crc32c_setup(void);
bool crc32c_in_hardware(void);

uint32_t crc32c_update(uint32_t value, const void *data, size_t length);

/* The same, and copy the bytes to `target`, which must not overlap. Reads the source from memory once. With `streaming` the
 * target goes past the caches: a third faster for what does not fit in them.
 */
uint32_t crc32c_copy(uint32_t value, void *target, const void *source, size_t length, bool streaming);

#endif

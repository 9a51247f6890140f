/* Copies without a checksum. */
#ifndef UCM_MOVE_H
#define UCM_MOVE_H

#include "platform.h"

#include <stdbool.h>
#include <stddef.h>

/* The longest that a gate is held: a few microseconds. */
enum { PIECE_BYTES = 64 * 1024 };

/* From here on a batch of copies is larger than a core's caches; what is copied goes past them. */
enum { STREAMING_BYTES = 64 * 1024 };

/* memcpy, in pieces inside the gate (NULL: none). False if the gate was closed before the end. */
bool move_gated(uint32_t *gate, void *target, const void *source, size_t length);

#endif

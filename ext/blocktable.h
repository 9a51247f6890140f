/* A table of slots in memory that processes share. */
#ifndef UCM_BLOCKTABLE_H
#define UCM_BLOCKTABLE_H

#include "platform.h"

/* What became of an id that was claimed. */
enum { CLAIM_NONE = 0, CLAIM_HIT = 1, CLAIM_MINE = 2, CLAIM_THEIRS = 3, CLAIM_BUSY = 4 };

/* How a slot is that somebody watches. */
enum { WATCH_GONE = 0, WATCH_FILLING = 1, WATCH_READY = 2, WATCH_DIRTY = 3, WATCH_FAILED = 0x80, REASON_MAX = 0x7F };

enum { PROCESSES_MAX = 48, TABLE_USER_OFFSET = 1024, TABLE_USER_BYTES = 3072 };

#endif

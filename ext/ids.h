/* Block ids, and where a hash of them points. */
#ifndef UCM_IDS_H
#define UCM_IDS_H

#include "platform.h"

#include <string.h>

enum { ID_BYTES = 16 };

struct id {
    uint64_t low, high;
};

__extension__ typedef unsigned __int128 uint128;

static inline struct id load_id(const char *at)
{
    struct id id;
    memcpy(&id, at, sizeof(id));
    return id;
}

static inline uint64_t fold(uint64_t a, uint64_t b)
{
    uint128 product = (uint128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Two folded multiplications: ids may be counters, or share most of their bytes. */
static inline uint64_t hash_id(struct id id)
{
    uint64_t hash = fold(id.low ^ 0x9E3779B97F4A7C15u, id.high ^ 0xC2B2AE3D27D4EB4Fu);
    return fold(hash ^ id.low ^ (id.high << 32 | id.high >> 32), 0xD6E8FEB86659FD93u);
}

/* Spread a hash over 0 ... count - 1 by its upper bits. */
static inline uint64_t spread(uint64_t hash, uint64_t count)
{
    return (uint64_t)(((uint128)hash * count) >> 64);
}

#endif

/* The index of a table: from ids to slots. Each id has two buckets of eight entries, one cache line each.
 *
 * An entry goes into the first bucket, or into the second when that is full, so most ids are found with one miss of the cache; when both
 * are, one of theirs moves to its other bucket. Nothing marks what was removed: a look always ends within sixteen entries. Readers need no lock: what
 * they find is a hint, and the slot tells whether it is true. An entry that moves is for a moment there twice, or missed by a reader that
 * looked at the other bucket too early; whoever must know looks under the mutex.
 */
#include "blocktable.h"

static inline uint64_t load_entry(const uint64_t *entry)
{
    return __atomic_load_n(entry, __ATOMIC_RELAXED);
}

static inline void store_entry(uint64_t *entry, uint64_t value)
{
    __atomic_store_n(entry, value, __ATOMIC_RELEASE);
}

static inline uint64_t entry_of(uint32_t tag, uint32_t slot)
{
    return (uint64_t)tag << 32 | (slot + 1);
}

static inline uint32_t slot_in(uint64_t entry)
{
    return (uint32_t)entry - 1; /* of a free one: NIL */
}

struct place index_place(const struct table *table, struct id id)
{
    uint64_t hash = hash_id(id);
    uint64_t first = spread(hash, table->bucket_count);
    /* Another bucket, always: there are at least eight. */
    uint64_t second = first + 1 + spread(hash * 0x9E3779B97F4A7C15u, table->bucket_count - 1);
    return (struct place){
        .first = first,
        .second = second < table->bucket_count ? second : second - table->bucket_count,
        .tag = (uint32_t)hash,
    };
}

uint32_t index_next(const struct table *table, const struct place *place, unsigned *cursor)
{
    while (*cursor < 2 * WAYS) {
        const struct bucket *bucket = &table->index[*cursor < WAYS ? place->first : place->second];
        uint64_t entry = load_entry(&bucket->entries[*cursor % WAYS]);
        ++*cursor;
        if ((uint32_t)(entry >> 32) == place->tag && slot_in(entry) < table->slot_count) {
            return slot_in(entry);
        }
    }
    return NIL;
}

/* The first slot with this tag in one bucket, or NIL. */
static uint32_t look_in(const struct table *table, uint64_t bucket, uint32_t tag)
{
    const uint64_t *entries = table->index[bucket].entries;
    for (unsigned way = 0; way < WAYS; way++) {
        uint64_t entry = load_entry(&entries[way]);
        if ((uint32_t)(entry >> 32) == tag && slot_in(entry) < table->slot_count) {
            return slot_in(entry);
        }
    }
    return NIL;
}

void index_candidates(const struct table *table, const char *ids, size_t count, struct place *places, uint32_t *candidates)
{
    for (size_t i = 0; i < count; i++) {
        places[i] = index_place(table, load_id(ids + i * ID_BYTES));
        __builtin_prefetch(&table->index[places[i].first]);
    }
    size_t missing = 0;
    uint8_t missed[GROUP];
    for (size_t i = 0; i < count; i++) {
        candidates[i] = look_in(table, places[i].first, places[i].tag);
        if (candidates[i] != NIL) {
            __builtin_prefetch(&table->slots[candidates[i]]);
        } else {
            __builtin_prefetch(&table->index[places[i].second]);
            missed[missing++] = (uint8_t)i;
        }
    }
    for (size_t k = 0; k < missing; k++) {
        size_t i = missed[k];
        candidates[i] = look_in(table, places[i].second, places[i].tag);
        if (candidates[i] != NIL) {
            __builtin_prefetch(&table->slots[candidates[i]]);
        }
    }
}

/* ---- under the mutex ---- */

/* An entry with this value, or NULL. */
static uint64_t *find_entry(struct table *table, uint64_t bucket, uint64_t value)
{
    uint64_t *entries = table->index[bucket].entries;
    for (unsigned way = 0; way < WAYS; way++) {
        if (load_entry(&entries[way]) == value) {
            return &entries[way];
        }
    }
    return NULL;
}

/* Move one entry of a full bucket to its other one; the room that makes, or NULL. */
static uint64_t *make_room(struct table *table, uint64_t bucket)
{
    for (unsigned way = 0; way < WAYS; way++) {
        uint64_t *entry = &table->index[bucket].entries[way];
        uint32_t slot = slot_in(load_entry(entry));
        if (slot >= table->slot_count) {
            return entry; /* damaged: points nowhere */
        }
        struct place place = index_place(table, slot_id(&table->slots[slot]));
        uint64_t *other = find_entry(table, place.first == bucket ? place.second : place.first, 0);
        if (other) {
            store_entry(other, load_entry(entry)); /* before the old one goes, so that hardly a reader misses it */
            return entry;
        }
    }
    return NULL;
}

bool index_insert(struct table *table, const struct place *place, uint32_t slot)
{
    uint64_t *entry = find_entry(table, place->first, 0);
    entry = entry ? entry : find_entry(table, place->second, 0);
    entry = entry ? entry : make_room(table, place->first);
    entry = entry ? entry : make_room(table, place->second);
    if (!entry) {
        return false;
    }
    store_entry(entry, entry_of(place->tag, slot));
    return true;
}

void index_remove(struct table *table, const struct place *place, uint32_t slot)
{
    uint64_t value = entry_of(place->tag, slot);
    uint64_t *entry = find_entry(table, place->first, value);
    entry = entry ? entry : find_entry(table, place->second, value);
    if (entry) {
        store_entry(entry, 0);
    }
}

void index_clear(struct table *table)
{
    for (uint64_t bucket = 0; bucket < table->bucket_count; bucket++) {
        for (unsigned way = 0; way < WAYS; way++) {
            store_entry(&table->index[bucket].entries[way], 0);
        }
    }
}

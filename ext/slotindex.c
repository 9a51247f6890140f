/* From ids to slots. Each id has two buckets of eight entries; what is found there is a hint, and the slot tells whether it is true.
 *
 * Nothing ever moves, and nothing marks what was removed: a look ends within sixteen entries, and finds what is there, without a lock.
 */
#include "slots.h"

enum { GROUP = 16 /* ids whose cache misses overlap */ };

struct place slots_place(const struct slots *table, struct id id)
{
    uint64_t hash = hash_id(id);
    uint64_t first = spread(hash, table->bucket_count);
    uint64_t second = first + 1 + spread(hash * 0x9E3779B97F4A7C15u, table->bucket_count - 1); /* always another one */
    second = second < table->bucket_count ? second : second - table->bucket_count;
    return (struct place){{&table->index[first], &table->index[second]}, (uint32_t)hash};
}

static uint64_t entry_of(struct place place, uint32_t at)
{
    return (uint64_t)place.tag << 32 | (at + 1);
}

/* The slot of an entry with this tag, or SLOT_NOWHERE. */
static uint32_t slot_in(const struct slots *table, uint64_t entry, uint32_t tag)
{
    uint32_t at = (uint32_t)entry - 1; /* of a free one: SLOT_NOWHERE */
    return (uint32_t)(entry >> 32) == tag && at < table->count ? at : SLOT_NOWHERE;
}

static uint64_t load_entry(const uint64_t *entry)
{
    return __atomic_load_n(entry, __ATOMIC_SEQ_CST);
}

uint32_t slots_find_one(const struct slots *table, struct place place, struct id id, uint32_t but, uint64_t *word)
{
    for (unsigned way = 0; way < 2 * INDEX_WAYS; way++) {
        uint64_t entry = load_entry(&place.buckets[way / INDEX_WAYS]->entries[way % INDEX_WAYS]);
        uint32_t at = slot_in(table, entry, place.tag);
        if (at == SLOT_NOWHERE || at == but) {
            continue;
        }
        *word = stored_word(&table->slots[at], id);
        if (*word) {
            return at;
        }
    }
    return SLOT_NOWHERE;
}

/* An entry is there before its slot is STORED, so one whose slot is still TAKEN may be needed. */
static bool entry_may_be_true(const struct slots *table, const struct index_bucket *bucket, uint64_t entry)
{
    uint32_t at = (uint32_t)entry - 1;
    if (at >= table->count) {
        return false;
    }
    unsigned state = slot_state(load_slot_word(&table->slots[at]));
    struct place place = slots_place(table, slot_id(&table->slots[at]));
    return (uint32_t)(entry >> 32) == place.tag && (bucket == place.buckets[0] || bucket == place.buckets[1]) &&
           (state == SLOT_STORED || state == SLOT_TAKEN);
}

/* Entries of processes that died before they took them out. One that becomes true again while we look is put back. */
static void sweep(struct slots *table, struct index_bucket *bucket)
{
    for (unsigned way = 0; way < INDEX_WAYS; way++) {
        uint64_t entry = load_entry(&bucket->entries[way]);
        uint64_t expected = entry, none = 0;
        if (!entry || entry_may_be_true(table, bucket, entry) ||
            !__atomic_compare_exchange_n(&bucket->entries[way], &expected, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
            continue;
        }
        if (entry_may_be_true(table, bucket, entry)) {
            __atomic_compare_exchange_n(&bucket->entries[way], &none, entry, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
        }
    }
}

static unsigned free_ways(const struct index_bucket *bucket)
{
    unsigned count = 0;
    for (unsigned way = 0; way < INDEX_WAYS; way++) {
        count += !load_entry(&bucket->entries[way]);
    }
    return count;
}

static bool put_entry(struct index_bucket *bucket, uint64_t entry)
{
    for (unsigned way = 0; way < INDEX_WAYS; way++) {
        uint64_t none = 0;
        if (__atomic_compare_exchange_n(&bucket->entries[way], &none, entry, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
            return true;
        }
    }
    return false;
}

bool slots_index_put(struct slots *table, struct place place, uint32_t at)
{
    uint64_t entry = entry_of(place, at);
    for (unsigned attempt = 0; attempt < 2; attempt++) {
        unsigned emptier = free_ways(place.buckets[1]) > free_ways(place.buckets[0]);
        if (put_entry(place.buckets[emptier], entry) || put_entry(place.buckets[!emptier], entry)) {
            return true;
        }
        sweep(table, place.buckets[0]);
        sweep(table, place.buckets[1]);
    }
    return false;
}

void slots_index_remove(struct place place, uint32_t at)
{
    for (unsigned way = 0; way < 2 * INDEX_WAYS; way++) {
        uint64_t expected = entry_of(place, at);
        __atomic_compare_exchange_n(&place.buckets[way / INDEX_WAYS]->entries[way % INDEX_WAYS], &expected, 0, false, __ATOMIC_SEQ_CST,
                                    __ATOMIC_RELAXED);
    }
}

/* ---- finding ---- */

/* Places of up to GROUP ids, whose buckets and slots are on their way to the cache then. */
static void fetch(const struct slots *table, const char *ids, size_t count, struct place *places)
{
    for (size_t i = 0; i < count; i++) {
        places[i] = slots_place(table, load_id(ids + i * ID_BYTES));
        __builtin_prefetch(places[i].buckets[0]);
        __builtin_prefetch(places[i].buckets[1]);
    }
    for (size_t i = 0; i < count; i++) {
        for (unsigned way = 0; way < 2 * INDEX_WAYS; way++) {
            uint64_t entry = load_entry(&places[i].buckets[way / INDEX_WAYS]->entries[way % INDEX_WAYS]);
            uint32_t at = slot_in(table, entry, places[i].tag);
            if (at != SLOT_NOWHERE) {
                __builtin_prefetch(&table->slots[at]);
                break;
            }
        }
    }
}

static void touch(struct slots *table, uint32_t at, uint32_t stamp)
{
    if (stamp) {
        __atomic_store_n(&table->slots[at].stamp, stamp, __ATOMIC_RELAXED);
    }
}

size_t slots_find(struct slots *table, const char *ids, size_t count, int64_t *slots, uint64_t *words, uint32_t stamp)
{
    size_t hits = 0;
    for (size_t from = 0; from < count; from += GROUP) {
        size_t size = count - from < GROUP ? count - from : GROUP;
        struct place places[GROUP];
        fetch(table, ids + from * ID_BYTES, size, places);
        for (size_t i = 0; i < size; i++) {
            uint64_t word = 0;
            uint32_t at = slots_find_one(table, places[i], load_id(ids + (from + i) * ID_BYTES), SLOT_NOWHERE, &word);
            slots[from + i] = at == SLOT_NOWHERE ? -1 : (int64_t)at;
            words[from + i] = word;
            if (at != SLOT_NOWHERE) {
                touch(table, at, stamp);
                hits++;
            }
        }
    }
    return hits;
}

size_t slots_prefix(struct slots *table, const char *ids, size_t count)
{
    for (size_t from = 0; from < count; from += GROUP) {
        size_t size = count - from < GROUP ? count - from : GROUP;
        struct place places[GROUP];
        fetch(table, ids + from * ID_BYTES, size, places);
        for (size_t i = 0; i < size; i++) {
            uint64_t word;
            if (slots_find_one(table, places[i], load_id(ids + (from + i) * ID_BYTES), SLOT_NOWHERE, &word) == SLOT_NOWHERE) {
                return from + i;
            }
        }
    }
    return count;
}

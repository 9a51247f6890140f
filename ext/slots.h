/* A table of slots of files in memory that processes share: what each slot holds, and an index from ids to slots.
 *
 * The truth is in the slots: a word (state, who has it, how often its bytes have changed) and the id. A word changes by compare-and-swap,
 * from any process; nothing else is ever waited for, so a process may stop or die between any two instructions, and the others go on. What it had taken
 * is given back by its number, once it is known to be dead.
 *
 *                 add              take              publish
 *      ABSENT ----------> FREE ----------> TAKEN --------------> STORED
 *         ^                 ^               | |  ^                  |
 *         |      clear      |     give      | |  |     withdraw     |
 *         +-----------------+---------------+ |  +------------------+
 *                                             +--> BAD (spoil)
 *
 * Slots come in segments of equally many, whose slots are all of one kind: so long, say. Who takes a slot asks for a kind.
 *
 * Only who has taken a slot writes to its bytes. Reading needs no permission: who reads a slot looks at its word before and after, and at what
 * the bytes say of themselves. Index, bitmap and counts only help to find slots; they can be behind, and are made good by a repair.
 * Every number that comes from shared memory and is used to find something is checked first: it may be damaged.
 */
#ifndef UCM_SLOTS_H
#define UCM_SLOTS_H

#include "ids.h"

#include <stdbool.h>
#include <stddef.h>

#define SLOTS_MAX ((uint64_t)1 << 28)
#define SLOTS_MAGIC 0x53544F4C534D4355u /* "UCMSLOTS" in memory */
#define SLOTS_VERSION 2u

enum slot_state { SLOT_ABSENT = 0, SLOT_FREE = 1, SLOT_TAKEN = 2, SLOT_STORED = 3, SLOT_BAD = 4, SLOT_STATES = 5 };
enum { SLOT_OWNERS_MAX = 255, SLOT_KINDS = 32 };

/* ---- the word: version 48 | owner 8 | state 8; the owner is 0 but in TAKEN ---- */

static inline unsigned slot_state(uint64_t word)
{
    return (unsigned)(word & 0xFF);
}

static inline unsigned slot_owner(uint64_t word)
{
    return (unsigned)(word >> 8 & 0xFF);
}

static inline uint64_t slot_word(uint64_t version, unsigned owner, enum slot_state state)
{
    return version << 16 | (uint64_t)owner << 8 | (uint64_t)state;
}

static inline uint64_t slot_version(uint64_t word)
{
    return word >> 16;
}

struct file_slot {
    uint64_t word;
    struct id id;   /* written while it is TAKEN */
    uint32_t stamp; /* when it was last asked for, as the callers count time; lost updates are fine */
    uint32_t lost;  /* tells the version whose bytes may not reach the medium, see lost_tag(); 0: none */
};
_Static_assert(sizeof(struct file_slot) == 32, "two slots share a cache line");

static inline uint32_t lost_tag(uint64_t word)
{
    uint32_t tag = (uint32_t)slot_version(word) + 1;
    return tag ? tag : 1;
}

static inline uint64_t load_slot_word(const struct file_slot *slot)
{
    return __atomic_load_n(&slot->word, __ATOMIC_ACQUIRE);
}

static inline struct id slot_id(const struct file_slot *slot)
{
    return (struct id){
        .low = __atomic_load_n(&slot->id.low, __ATOMIC_RELAXED),
        .high = __atomic_load_n(&slot->id.high, __ATOMIC_RELAXED),
    };
}

/* The word if the slot is STORED with this id, else 0. A word that is the same before and after speaks of the id between. */
static inline uint64_t stored_word(const struct file_slot *slot, struct id id)
{
    uint64_t word = load_slot_word(slot);
    struct id found = slot_id(slot);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    bool same = slot_state(word) == SLOT_STORED && found.low == id.low && found.high == id.high;
    return same && __atomic_load_n(&slot->word, __ATOMIC_RELAXED) == word ? word : 0;
}

/* ---- the memory: header, bitmap, index, slots, kinds of segments ---- */

struct slots_header {
    uint64_t magic;
    uint32_t version;
    uint32_t ready; /* 0 while it is formatted */
    uint64_t slots, segment_slots;
    uint64_t sequence;
    int64_t counts[SLOT_STATES];
    uint8_t unused[48];
    int64_t free[SLOT_KINDS];   /* slots that are FREE, by kind */
    uint64_t hints[SLOT_KINDS]; /* words of the bitmap, by kind: those before have no bit of that kind, probably */
};
_Static_assert(sizeof(struct slots_header) == 128 + 16 * SLOT_KINDS, "the header is whole cache lines");

enum { INDEX_WAYS = 8 };

struct index_bucket {
    uint64_t entries[INDEX_WAYS]; /* tag 32 | slot + 1 32; 0 = free */
};

/* One process' view. */
struct slots {
    struct slots_header *header;
    uint64_t *bitmap; /* a bit is set if the slot is FREE, or was lately; no word has bits of two segments */
    struct index_bucket *index;
    struct file_slot *slots;
    uint8_t *kinds; /* of segments; changed while all of their slots are ABSENT */
    /* Our own numbers, not those that the memory says. */
    uint32_t count, segment_slots;
    uint64_t bitmap_words, segment_words, bucket_count;
    unsigned number; /* who we are, 0: nobody */
};

size_t slots_bytes(uint64_t count, uint64_t segment_slots);

enum slots_attached { SLOTS_ATTACHED, SLOTS_NOT_READY, SLOTS_FOREIGN, SLOTS_OTHER_VERSION, SLOTS_OTHER_COUNT };

/* A view of `memory`, which has slots_bytes(count, segment_slots) bytes; `create` formats it. */
enum slots_attached slots_attach(struct slots *table, void *memory, uint32_t count, uint32_t segment_slots, bool create);

/* ---- the index, slotindex.c ---- */

#define SLOT_NOWHERE UINT32_MAX

struct place {
    struct index_bucket *buckets[2];
    uint32_t tag;
};

struct place slots_place(const struct slots *table, struct id id);
/* A slot, not `but`, that is STORED with this id, and its word; or SLOT_NOWHERE. */
uint32_t slots_find_one(const struct slots *table, struct place place, struct id id, uint32_t but, uint64_t *word);
/* False if there is no room, practically never. */
bool slots_index_put(struct slots *table, struct place place, uint32_t at);
void slots_index_remove(struct place place, uint32_t at);

/* ---- finding, slotindex.c; `stamp` 0: leave no trace ---- */

/* Slot and word of each id, -1 and 0 where it is not stored; how many are. */
size_t slots_find(struct slots *table, const char *ids, size_t count, int64_t *slots, uint64_t *words, uint32_t stamp);
/* Length of the run of stored ids that begins with the first. */
size_t slots_prefix(struct slots *table, const char *ids, size_t count);

/* ---- changing, slots.c; those that need slots of ours say which element is not: its position, or -1 ---- */

size_t slots_take(struct slots *table, int64_t *slots, size_t count, unsigned kind);
ptrdiff_t slots_give(struct slots *table, const int64_t *slots, size_t count);
ptrdiff_t slots_spoil(struct slots *table, const int64_t *slots, size_t count);

enum published { PUBLISHED = 0, PUBLISHED_ELSEWHERE = 1, PUBLISHED_NOT = 2 };

/* ELSEWHERE: another slot has the block. NOT: the index has no room, practically never. The slot is TAKEN still then. */
ptrdiff_t slots_publish(struct slots *table, const int64_t *slots, const char *ids, size_t count, uint8_t *out, uint32_t stamp);
/* Take slots whose word is still what it was: 1, else 0. */
size_t slots_withdraw(struct slots *table, const int64_t *slots, const uint64_t *words, size_t count, uint8_t *out);

/* ---- whole ranges ---- */

/* The segments of the range must be absent as a whole, and are of this kind from then on. */
void slots_add(struct slots *table, uint64_t first, uint64_t count, unsigned kind);
/* Take what is FREE, STORED or BAD; how many of the range are not ours now. */
uint64_t slots_seize(struct slots *table, uint64_t first, uint64_t count);
/* Ours become ABSENT. */
void slots_clear(struct slots *table, uint64_t first, uint64_t count);
/* Give back what `owner` had taken, 0: what any had; count everything anew. How many were given back. Nobody else may do so meanwhile. */
uint64_t slots_repair(struct slots *table, bool everybody, unsigned owner);
/* What is in the slots of a range now, or on its way there, may never reach the medium. */
void slots_distrust(struct slots *table, uint64_t first, uint64_t count);
/* Whether that was said of what is in a slot. */
bool slots_is_distrusted(const struct slots *table, int64_t at);
/* States, ids, and stamps of a range, as they are now. */
void slots_scan(const struct slots *table, uint64_t first, uint64_t count, uint8_t *states, char *ids, uint32_t *stamps);

#endif

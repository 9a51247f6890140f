/* A table of slots in memory that processes share: its layout, and what its parts offer each other.
 *
 * The truth is in the slots: a word (who holds it, how often it was filled, what it is in) and the id. Index, lists and ghosts only
 * help to find them, and can be rebuilt. Words change by compare-and-swap, from any process, without a lock; index, lists,
 * ghosts and the process table only under the mutex. A process may stop or die between any two instructions.
 *
 *              claim              publish             evict
 *     EMPTY ----------> FILLING ----------> READY ------------> EVICTING --> FILLING with the next generation
 *       ^                  |  \               |
 *       |     fail: FAILED |   \--- drop: ORPHAN      (whoever leaves FAILED or ORPHAN does so under the mutex)
 *
 * Nobody but its fillers writes to a slot's bytes, and those only while it is FILLING (or ORPHAN from there).
 * Every number that comes from shared memory and is used to find something is checked first: it may be damaged.
 */
#ifndef UCM_BLOCKTABLE_H
#define UCM_BLOCKTABLE_H

#include "ids.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

/* What became of an id that was claimed. */
enum { CLAIM_NONE = 0, CLAIM_HIT = 1, CLAIM_MINE = 2, CLAIM_THEIRS = 3, CLAIM_BUSY = 4 };

/* How a slot is that somebody watches. */
enum { WATCH_GONE = 0, WATCH_FILLING = 1, WATCH_READY = 2, WATCH_DIRTY = 3, WATCH_FAILED = 0x80, REASON_MAX = 0x7F };

enum { REST_S_MAX = 3600 };
enum { PROCESSES_MAX = 48, TABLE_USER_OFFSET = 1024, TABLE_USER_BYTES = 3072 };

#define TABLE_SLOTS_MAX ((uint64_t)1 << 28)
#define TABLE_MAGIC 0x454C424154434D55u /* "UCMTABLE" in memory */
#define TABLE_VERSION 2u

/* Ids that are worked on together: their cache misses overlap, and the mutex is held for as many at most. */
enum { GROUP = 64 };

#define NIL UINT32_MAX /* no slot */

/* ---- the word of a slot: holders 48 | generation 12 | state 4 ---- */

enum slot_state { EMPTY = 0, FILLING = 1, READY = 2, FAILED = 3, EVICTING = 4, ORPHAN = 5 };
enum { SLOT_STATES = 6, GENERATION_SHIFT = 4, HOLDERS_SHIFT = 16 };

#define STATE_MASK ((uint64_t)0xF)
#define GENERATION_MASK ((uint64_t)0xFFF0)

static inline unsigned state_of(uint64_t word)
{
    return (unsigned)(word & STATE_MASK);
}

static inline uint32_t generation_of(uint64_t word)
{
    return (uint32_t)((word & GENERATION_MASK) >> GENERATION_SHIFT);
}

static inline uint64_t holders_of(uint64_t word)
{
    return word >> HOLDERS_SHIFT;
}

static inline uint64_t bit_of(int number)
{
    return (uint64_t)1 << (HOLDERS_SHIFT + number);
}

static inline uint64_t with_state(uint64_t word, enum slot_state state)
{
    return (word & ~STATE_MASK) | state;
}

/* FILLING by one process, of the next generation. */
static inline uint64_t refilled(uint64_t word, int number)
{
    return ((word + ((uint64_t)1 << GENERATION_SHIFT)) & GENERATION_MASK) | FILLING | bit_of(number);
}

struct slot {
    uint64_t word;
    struct id id;            /* written under the mutex, while no lease is possible */
    uint32_t next, previous; /* in its list; under the mutex */
    uint8_t list;            /* enum list_name; under the mutex */
    uint8_t visits;          /* accesses since it was last looked at, at most VISITS_MAX; lost updates are fine */
    uint8_t dirty;           /* not stored below: set by the filler before READY, cleared by a holder */
    uint8_t debtor;          /* number + 1 of the process that owes the store below */
    uint8_t reason;          /* of FAILED; written before it */
    uint8_t unused_1[3];
    uint32_t rests_until_s;  /* not to be filled before, on the clock of clock_s(); under the mutex */
    uint8_t unused_2[20];
};
_Static_assert(sizeof(struct slot) == 64, "a slot is a cache line");

enum { VISITS_MAX = 3 };

/* ---- the segment: header, process table, index, slots, ghosts ---- */

enum process_state { PROCESS_FREE = 0, PROCESS_IN = 1, PROCESS_REAPED = 2 }; /* REAPED: being taken back */

struct process {
    uint32_t state;
    int32_t pid;
    uint64_t start_time;
};

enum list_name { LIST_NONE, LIST_FREE, LIST_FAILED, LIST_ORPHANS, LIST_MAIN, LIST_SMALL, LISTS };

struct list {
    uint32_t head, tail, count;
};

struct counters {
    uint64_t hits, misses, evictions, takeovers, repairs, busy;
};

struct segment {
    uint64_t magic;
    uint32_t version;
    uint32_t ready; /* 0 while it is formatted */
    uint32_t slots;
    uint32_t policy;
    uint32_t mutex_bytes; /* another libc's would be another layout */
    uint8_t unused_1[36];
    uint32_t published; /* a futex: counts what somebody may wait for */
    uint32_t unused_2;
    uint64_t watchers; /* a bit a process that waits for it */
    uint8_t unused_3[48];
    struct counters counters;
    uint8_t unused_4[16];
    pthread_mutex_t mutex;
    uint8_t unused_5[64 - sizeof(pthread_mutex_t) % 64];
    /* Under the mutex. */
    struct list lists[LISTS];
    uint32_t hand; /* of SIEVE */
    uint32_t ghosts_made;
};
_Static_assert(sizeof(struct segment) <= TABLE_USER_OFFSET, "the user's part of the first page is free");

enum { WAYS = 8 };

struct bucket {
    uint64_t entries[WAYS]; /* tag 32 | slot + 1 32; 0 = free */
};

/* ---- one process' view ---- */

struct policy;

struct table {
    struct segment *segment;
    struct process *processes;
    struct bucket *index;
    struct slot *slots;
    struct bucket *ghosts; /* entries: fingerprint 32 | when 32 */
    /* Our own numbers, not those that the segment says. */
    uint32_t slot_count;
    uint64_t bucket_count, ghost_bucket_count;
    size_t bytes;
    const struct policy *policy;
    bool damaged; /* a link led nowhere: rebuild before the mutex is given up; under the mutex */
    int mutex_kind;
    int number; /* ours in the process table, -1: not in */
    struct process joined; /* what we wrote there */
    /* How many leases we have of each slot; its holder's bit is set while there are any. Private, so that what a dead process held
     * is known from its bits alone. The lock comes after the mutex, and is held for a few microseconds.
     */
    pthread_mutex_t lock;
    uint32_t *counts;
    uint64_t leases;
    bool left_orphans; /* one that we released last can be used again */
};

static inline uint64_t load_word(const struct slot *slot)
{
    return __atomic_load_n(&slot->word, __ATOMIC_ACQUIRE);
}

/* Acquire: what the word says of the slot is true for what is read next. Release: what was written before is there for who sees it.
 * A try fails only if somebody else's succeeded at the same slot at the same moment, so loops around it are short.
 */
static inline bool swap_word(struct slot *slot, uint64_t *seen, uint64_t wanted)
{
    return __atomic_compare_exchange_n(&slot->word, seen, wanted, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* Ids and what goes with them are written before the word says FILLING, and after it said that the slot is in no state to be leased. So who
 * reads them with acquire, and then finds the word as it was before, has read what belongs to it.
 */
static inline uint8_t load_byte(const uint8_t *at)
{
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

static inline void store_byte(uint8_t *at, uint8_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELEASE);
}

static inline bool id_is(const struct slot *slot, struct id id)
{
    return __atomic_load_n(&slot->id.low, __ATOMIC_ACQUIRE) == id.low && __atomic_load_n(&slot->id.high, __ATOMIC_ACQUIRE) == id.high;
}

static inline struct id slot_id(const struct slot *slot)
{
    return (struct id){
        .low = __atomic_load_n(&slot->id.low, __ATOMIC_ACQUIRE),
        .high = __atomic_load_n(&slot->id.high, __ATOMIC_ACQUIRE),
    };
}

static inline void count_up(uint64_t *counter, uint64_t by)
{
    if (by) {
        __atomic_fetch_add(counter, by, __ATOMIC_RELAXED);
    }
}

/* ---- segment.c ---- */

/* Bytes of a table; 0 < slots <= TABLE_SLOTS_MAX. */
size_t table_bytes(uint64_t slots);

enum attach_result { ATTACHED, ATTACH_NOT_READY, ATTACH_FOREIGN, ATTACH_VERSION, ATTACH_SLOTS, ATTACH_POLICY, ATTACH_NO_MEMORY };

/* A view of `memory`, which has table_bytes(slots) bytes; `create` formats it. */
enum attach_result table_attach(struct table *table, void *memory, uint32_t slots, const struct policy *policy, bool create);
void table_detach(struct table *table);

#define PATIENCE_SHORT_NS 200000u     /* of calls that have another way */
#define PATIENCE_LONG_NS 1000000000u /* of those that have not: join, leave, repair */

/* Take the mutex; false if that took longer than `patience_ns`. Whoever follows a dead process repairs what it left. */
bool table_lock(struct table *table, uint64_t patience_ns);
/* Once, without waiting. */
bool table_trylock(struct table *table);
void table_unlock(struct table *table);
/* Rebuild index and lists from the slots. Under the mutex. */
void table_rebuild(struct table *table);

/* CLOCK_MONOTONIC in seconds: the same for all processes of a host, and shared memory does not outlive a boot. */
uint32_t clock_s(void);

/* Something happened that somebody may wait for. */
void table_announce(struct table *table);

/* ---- processes.c ---- */

/* The number, -1: all are taken, -2: locked. */
int table_join(struct table *table, int32_t pid, uint64_t start_time);
/* How many others are in, -1: locked, and still in. */
int table_leave(struct table *table);
/* Slots that changed; *finished says whether that were all. With `expected` only if the number is (still) that process'.
 * What it was filling is given to nobody for `rest_s` seconds.
 */
uint64_t table_reap(struct table *table, int number, const struct process *expected, uint32_t rest_s, uint64_t patience_ns,
                    bool *finished);
unsigned table_others(const struct table *table);

/* ---- blockindex.c ---- */

/* Where an id may be. */
struct place {
    uint64_t first, second; /* buckets */
    uint32_t tag;
};

struct place index_place(const struct table *table, struct id id);
/* The next slot with the tag of `place`, from *cursor (at first 0) on; NIL: no more. Whether it has the id is for the caller to see. */
uint32_t index_next(const struct table *table, const struct place *place, unsigned *cursor);
/* Places and first candidates (slots or NIL) of `count` <= GROUP ids, whose slots are on their way to the cache then. */
void index_candidates(const struct table *table, const char *ids, size_t count, struct place *places, uint32_t *candidates);
/* Under the mutex. False where there is no room: practically never. */
bool index_insert(struct table *table, const struct place *place, uint32_t slot);
void index_remove(struct table *table, const struct place *place, uint32_t slot);
void index_clear(struct table *table);

/* ---- lists.c; all of it under the mutex ---- */

void list_push_head(struct table *table, enum list_name list, uint32_t slot);
void list_push_tail(struct table *table, enum list_name list, uint32_t slot);
/* Out of whichever it is in. */
void list_remove(struct table *table, uint32_t slot);
/* One end of a list, or NIL. */
uint32_t list_head(struct table *table, enum list_name list);
uint32_t list_tail(struct table *table, enum list_name list);
void lists_clear(struct table *table);

/* ---- policy.c; all of it under the mutex ---- */

struct policy {
    const char *name;
    enum list_name resting; /* where a rebuild puts slots whose list is unknown */
    bool by_touch;          /* wants to know of accesses in order */
    void (*insert)(struct table *table, uint32_t slot);
    /* A slot that was taken out of its list and is in use no more (EVICTING or older), or NIL. Each look costs a step. */
    uint32_t (*victim)(struct table *table, unsigned *steps);
};

extern const struct policy policies[];
enum { POLICIES = 4 };

/* By its name; NULL. */
const struct policy *policy_named(const char *name);

/* An access in order, for policies that want it. */
void policy_touch(struct table *table, uint32_t slot);

/* ---- leases.c; without the mutex ---- */

/* Calls whose slots must be ours say which element is not: its position, or -1. */
size_t table_probe(const struct table *table, const char *ids, size_t count, uint8_t *out);
size_t table_prefix(const struct table *table, const char *ids, size_t count);
size_t table_lease(struct table *table, const char *ids, size_t count, int64_t *slots);
ptrdiff_t table_release(struct table *table, const int64_t *slots, size_t count);
ptrdiff_t table_publish(struct table *table, const int64_t *slots, size_t count, bool dirty, bool keep_lease);
ptrdiff_t table_clean(struct table *table, const int64_t *slots, size_t count);
void table_watch(const struct table *table, const int64_t *slots, const uint32_t *generations, size_t count, uint8_t *out);

/* What is done with each, under the private lock; `how` is for the call to say. */
typedef void (*slot_action)(struct table *table, uint32_t at, unsigned how);
/* -1 is skipped. The position of the first element that is not ours, or -1. */
ptrdiff_t table_for_ours(struct table *table, const int64_t *slots, size_t count, slot_action action, unsigned how);

/* Whether a caller's number is that of a slot we hold. The private lock is held. */
bool is_ours(const struct table *table, int64_t at);
/* Lease slot `at` if it is READY with this id. The private lock is held. */
bool lease_one(struct table *table, uint32_t at, struct id id);
/* Give one lease back; there is one. The private lock is held. */
void release_one(struct table *table, uint32_t at);

/* ---- claims.c ---- */

void table_claim(struct table *table, const char *ids, size_t count, int64_t *slots, uint8_t *states, uint32_t *generations);
ptrdiff_t table_fail(struct table *table, const int64_t *slots, size_t count, uint8_t reason);
ptrdiff_t table_rename(struct table *table, const int64_t *slots, const char *ids, size_t count, uint8_t *states);
size_t table_drop(struct table *table, const char *ids, size_t count);

/* Make orphans that nobody holds EMPTY, if the mutex is free; else a later claim does it. */
void orphans_sweep(struct table *table);

/* A slot that is FAILED, ORPHAN, or FILLING by nobody: out of the index, into the list where it waits to be used again. Under the mutex. */
void slot_retire(struct table *table, uint32_t at);

#endif

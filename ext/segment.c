/* The segment of a table: where its parts lie, formatting, attaching, the mutex, and repair. */
#include "blocktable.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { PAGE_BYTES = 4096 };

/* ---- where things are ---- */

struct layout {
    uint64_t buckets, ghost_buckets;
    size_t processes, index, slots, ghosts, end; /* offsets */
};

static struct layout layout_of(uint64_t slots)
{
    struct layout at = {
        /* At most half full, so a bucket holds four of its eight on average; the few more are for small tables. */
        .buckets = slots / 4 + 8,
        /* S3-FIFO remembers as many as there are slots, in sets that have twice the room. */
        .ghost_buckets = slots / 4 + 64,
        .processes = PAGE_BYTES,
        .index = 2 * PAGE_BYTES,
    };
    at.slots = at.index + at.buckets * sizeof(struct bucket);
    at.ghosts = at.slots + slots * sizeof(struct slot);
    at.end = at.ghosts + at.ghost_buckets * sizeof(struct bucket);
    at.end = (at.end + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    return at;
}
_Static_assert(PROCESSES_MAX * sizeof(struct process) <= PAGE_BYTES, "the process table is one page");

size_t table_bytes(uint64_t slots)
{
    return layout_of(slots).end;
}

static void place_view(struct table *table, char *memory, uint32_t slots)
{
    struct layout at = layout_of(slots);
    table->segment = (void *)memory;
    table->processes = (void *)(memory + at.processes);
    table->index = (void *)(memory + at.index);
    table->slots = (void *)(memory + at.slots);
    table->ghosts = (void *)(memory + at.ghosts);
    table->slot_count = slots;
    table->bucket_count = at.buckets;
    table->ghost_bucket_count = at.ghost_buckets;
    table->bytes = at.end;
}

/* ---- the mutex ---- */

static int make_mutex(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t attributes;
    int error = pthread_mutexattr_init(&attributes);
    if (error) {
        return error;
    }
    error = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    error = error ? error : pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    error = error ? error : pthread_mutex_init(mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return error;
}

static int kind_of(const pthread_mutex_t *mutex)
{
#ifdef __GLIBC__
    return mutex->__data.__kind;
#else
    (void)mutex;
    return 0;
#endif
}

static int kind_expected(void)
{
    pthread_mutex_t fresh;
    if (make_mutex(&fresh)) {
        return -1;
    }
    int kind = kind_of(&fresh);
    pthread_mutex_destroy(&fresh);
    return kind;
}

uint32_t clock_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint32_t)now.tv_sec;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int lock_attempt(struct table *table)
{
    /* Damaged memory could make libc take it for a mutex of a kind whose rules it then finds broken, and abort. */
    if (kind_of(&table->segment->mutex) != table->mutex_kind) {
        return EINVAL;
    }
    int error = pthread_mutex_trylock(&table->segment->mutex);
    if (error == EOWNERDEAD) {
        /* Who dies in here before the next line leaves it to the one after. */
        table_rebuild(table);
        pthread_mutex_consistent(&table->segment->mutex);
        error = 0;
    }
    return error;
}

bool table_trylock(struct table *table)
{
    return lock_attempt(table) == 0;
}

enum { SPINS = 64, NAP_NS = 50000 };

/* The mutex is held for microseconds, so waiting in the kernel would cost more than the wait. Its holder may have lost its processor. */
static void wait_a_little(unsigned round, uint64_t waited_ns)
{
    if (round < SPINS) {
        cpu_relax();
    } else if (waited_ns < PATIENCE_SHORT_NS) {
        sched_yield();
    } else {
        struct timespec nap = {.tv_nsec = NAP_NS};
        nanosleep(&nap, NULL);
    }
}

bool table_lock(struct table *table, uint64_t patience_ns)
{
    int error = lock_attempt(table);
    uint64_t start = error == EBUSY ? now_ns() : 0;
    for (unsigned round = 0; error == EBUSY; round++) {
        uint64_t waited = now_ns() - start;
        if (waited >= patience_ns) {
            break;
        }
        wait_a_little(round, waited);
        error = lock_attempt(table);
    }
    count_up(&table->segment->counters.busy, error != 0);
    return error == 0;
}

void table_unlock(struct table *table)
{
    if (table->damaged) {
        table_rebuild(table);
    }
    pthread_mutex_unlock(&table->segment->mutex);
}

/* ---- repair ---- */

/* The bits of processes that are in. What else is set in a word belongs to nobody. */
static uint64_t bits_in_use(struct table *table)
{
    uint64_t bits = 0;
    for (int number = 0; number < PROCESSES_MAX; number++) {
        struct process *process = &table->processes[number];
        if (process->state == PROCESS_IN || process->state == PROCESS_REAPED) {
            bits |= bit_of(number);
        } else {
            process->state = PROCESS_FREE;
        }
    }
    return bits;
}

/* What a word should be when nobody is in the middle of anything but filling. */
static uint64_t settled(uint64_t word, uint64_t bits, bool duplicate)
{
    uint64_t rest = word & GENERATION_MASK;
    uint64_t held = word & bits;
    switch (state_of(word)) {
    case READY:
        return rest | held | (duplicate ? ORPHAN : READY);
    case FILLING:
        return rest | held | (!held ? EMPTY : duplicate ? ORPHAN : FILLING);
    case ORPHAN:
        return rest | held | (held ? ORPHAN : EMPTY);
    case FAILED:
        return rest | FAILED;
    default:
        return rest | EMPTY;
    }
}

static bool is_indexed(const struct table *table, const struct place *place, struct id id)
{
    unsigned cursor = 0;
    for (uint32_t at = index_next(table, place, &cursor); at != NIL; at = index_next(table, place, &cursor)) {
        if (id_is(&table->slots[at], id)) {
            return true;
        }
    }
    return false;
}

/* Leases, hits and publishing go on meanwhile, so words are swapped here, too; nobody makes more than a few changes to one. */
static void settle_slot(struct table *table, uint32_t at, uint64_t bits)
{
    struct slot *slot = &table->slots[at];
    struct place place = index_place(table, slot_id(slot));
    bool duplicate = is_indexed(table, &place, slot_id(slot));
    uint64_t word = load_word(slot);
    uint64_t wanted = settled(word, bits, duplicate);
    while (word != wanted && !swap_word(slot, &word, wanted)) {
        wanted = settled(word, bits, duplicate);
    }
    enum list_name before = slot->list;
    slot->list = LIST_NONE;
    switch (state_of(wanted)) {
    case EMPTY:
        list_push_tail(table, LIST_FREE, at);
        return;
    case FAILED:
        list_push_tail(table, LIST_FAILED, at);
        return;
    case ORPHAN:
        list_push_tail(table, LIST_ORPHANS, at);
        return;
    default:
        list_push_head(table, before == LIST_SMALL || before == LIST_MAIN ? before : table->policy->resting, at);
    }
    if (!index_insert(table, &place, at)) {
        word = wanted;
        while (!swap_word(slot, &word, with_state(word, ORPHAN))) {
        }
        slot_retire(table, at);
    }
}

void table_rebuild(struct table *table)
{
    uint64_t bits = bits_in_use(table);
    table->damaged = false;
    index_clear(table);
    lists_clear(table);
    for (uint32_t at = 0; at < table->slot_count; at++) {
        settle_slot(table, at, bits);
    }
    count_up(&table->segment->counters.repairs, 1);
    table_announce(table);
}

/* ---- who waits ---- */

/* First the change, then this. Watchers set their bit, look at the number, look at what they wait for, and sleep only while the number
 * is what it was; both sides are sequentially consistent, so either we see the bit or they see the number.
 */
void table_announce(struct table *table)
{
    struct segment *segment = table->segment;
    __atomic_fetch_add(&segment->published, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&segment->watchers, __ATOMIC_SEQ_CST)) {
        syscall(SYS_futex, &segment->published, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    }
}

/* ---- formatting and attaching ---- */

static int format(struct table *table)
{
    struct segment *segment = table->segment;
    char *memory = (char *)segment;
    __atomic_store_n(&segment->ready, 0, __ATOMIC_RELEASE);
    memset(memory + sizeof(segment->magic), 0, TABLE_USER_OFFSET - sizeof(segment->magic));
    memset(memory + PAGE_BYTES, 0, table->bytes - PAGE_BYTES);
    segment->magic = TABLE_MAGIC;
    segment->version = TABLE_VERSION;
    segment->slots = table->slot_count;
    segment->policy = (uint32_t)(table->policy - policies);
    segment->mutex_bytes = sizeof(pthread_mutex_t);
    int error = make_mutex(&segment->mutex);
    if (error) {
        return error;
    }
    lists_clear(table);
    for (uint32_t at = 0; at < table->slot_count; at++) {
        list_push_tail(table, LIST_FREE, at);
    }
    /* Whoever sees it finds the rest. */
    __atomic_store_n(&segment->ready, 1, __ATOMIC_RELEASE);
    return 0;
}

static enum attach_result check(const struct table *table)
{
    const struct segment *segment = table->segment;
    uint32_t ready = __atomic_load_n(&segment->ready, __ATOMIC_ACQUIRE);
    if (segment->magic != TABLE_MAGIC) {
        return segment->magic ? ATTACH_FOREIGN : ATTACH_NOT_READY;
    }
    if (!ready) {
        return ATTACH_NOT_READY;
    }
    if (segment->version != TABLE_VERSION || segment->mutex_bytes != sizeof(pthread_mutex_t)) {
        return ATTACH_VERSION;
    }
    if (segment->slots != table->slot_count) {
        return ATTACH_SLOTS;
    }
    if (segment->policy >= POLICIES || &policies[segment->policy] != table->policy) {
        return ATTACH_POLICY;
    }
    return kind_of(&segment->mutex) == table->mutex_kind ? ATTACHED : ATTACH_FOREIGN;
}

enum attach_result table_attach(struct table *table, void *memory, uint32_t slots, const struct policy *policy, bool create)
{
    *table = (struct table){.policy = policy, .number = -1, .mutex_kind = kind_expected()};
    place_view(table, memory, slots);
    if (create && format(table)) {
        return ATTACH_NO_MEMORY;
    }
    enum attach_result result = check(table);
    if (result != ATTACHED) {
        return result;
    }
    table->counts = calloc(slots, sizeof(table->counts[0]));
    if (!table->counts || pthread_mutex_init(&table->lock, NULL)) {
        free(table->counts);
        table->counts = NULL;
        return ATTACH_NO_MEMORY;
    }
    return ATTACHED;
}

void table_detach(struct table *table)
{
    if (table->counts) {
        pthread_mutex_destroy(&table->lock);
        free(table->counts);
        table->counts = NULL;
    }
}

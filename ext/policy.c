/* Which slot is used again: S3-FIFO, SIEVE, LRU and FIFO. Under the mutex.
 *
 * A hit only counts itself in its slot, without the mutex; what it means is found when the slot comes to an end of its list. A slot that cannot
 * be taken (leased, FILLING, not stored below) goes back to the head. Every look costs a step, so a search ends; lists and hand
 * keep what it did, and the next one goes on from there.
 */
#include "blocktable.h"

/* ---- taking ---- */

/* Make a slot ours that nobody holds; false if it is in use. A READY one is evicted; others are left over. */
static bool take(struct table *table, uint32_t at, bool *evicted)
{
    struct slot *slot = &table->slots[at];
    uint64_t word = load_word(slot);
    *evicted = state_of(word) == READY;
    /* The filler set `dirty` before READY, so who sees READY sees it, too. A lease in between changes the word. */
    if (holders_of(word) || (*evicted && load_byte(&slot->dirty))) {
        return false;
    }
    if (!swap_word(slot, &word, with_state(word, EVICTING))) {
        return false;
    }
    count_up(&table->segment->counters.evictions, *evicted);
    return true;
}

static bool is_visited(const struct slot *slot)
{
    return load_byte(&slot->visits) && state_of(load_word(slot)) == READY;
}

static void move_to_head(struct table *table, enum list_name list, uint32_t at)
{
    list_remove(table, at);
    list_push_head(table, list, at);
}

/* ---- ghosts: whom S3-FIFO evicted from its small queue, in sets of eight; an entry is a fingerprint and when it was made ---- */

static struct bucket *ghosts_of(struct table *table, uint64_t hash)
{
    return &table->ghosts[spread(hash, table->ghost_bucket_count)];
}

static bool ghost_is_alive(const struct table *table, uint64_t entry)
{
    return entry && table->segment->ghosts_made - (uint32_t)entry < table->slot_count;
}

static void ghost_put(struct table *table, struct id id)
{
    uint64_t hash = hash_id(id);
    uint64_t *entries = ghosts_of(table, hash)->entries;
    uint32_t now = ++table->segment->ghosts_made;
    unsigned oldest = 0;
    for (unsigned way = 0; way < WAYS; way++) {
        if (!ghost_is_alive(table, entries[way])) {
            oldest = way;
            break;
        }
        if (now - (uint32_t)entries[way] > now - (uint32_t)entries[oldest]) {
            oldest = way;
        }
    }
    entries[oldest] = hash << 32 | now;
}

/* Was it there? It is not any more. */
static bool ghost_take(struct table *table, struct id id)
{
    uint64_t hash = hash_id(id);
    uint64_t *entries = ghosts_of(table, hash)->entries;
    for (unsigned way = 0; way < WAYS; way++) {
        if (entries[way] >> 32 == (uint32_t)hash && ghost_is_alive(table, entries[way])) {
            entries[way] = 0;
            return true;
        }
    }
    return false;
}

/* ---- S3-FIFO: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction", SOSP 2023, algorithm 1
 *
 * With other numbers than for web caches, where the small queue has a tenth, and two uses take out of it. A chat comes back once a turn,
 * minutes later: a tenth is through long before the second turn, and two uses are two turns. So the small queue has five eighths, and
 * one use is enough; `ucm-async bench policies` compares. ---- */

/* Slots of the small queue, from which it gives the victims. */
static uint32_t small_share(const struct table *table)
{
    uint32_t share = (uint32_t)((uint64_t)table->slot_count * 5 / 8);
    return share ? share : 1;
}

/* What was evicted from the small queue not long ago goes to the main one. */
static void s3fifo_insert(struct table *table, uint32_t at)
{
    list_push_head(table, ghost_take(table, slot_id(&table->slots[at])) ? LIST_MAIN : LIST_SMALL, at);
}

/* The tail of the small queue: taken, or moved to the main queue if it was used. */
static bool small_tail(struct table *table, uint32_t at)
{
    struct slot *slot = &table->slots[at];
    bool evicted;
    if (is_visited(slot)) {
        store_byte(&slot->visits, 0);
        move_to_head(table, LIST_MAIN, at);
        return false;
    }
    if (!take(table, at, &evicted)) {
        move_to_head(table, LIST_SMALL, at);
        return false;
    }
    if (evicted) {
        ghost_put(table, slot_id(slot));
    }
    return true;
}

/* The tail of the main queue: taken, or put back with one use less. */
static bool main_tail(struct table *table, uint32_t at)
{
    struct slot *slot = &table->slots[at];
    bool evicted;
    if (is_visited(slot)) {
        store_byte(&slot->visits, (uint8_t)(load_byte(&slot->visits) - 1));
    } else if (take(table, at, &evicted)) {
        return true;
    }
    move_to_head(table, LIST_MAIN, at);
    return false;
}

/* The paper evicts a second object when a promotion overfills the main queue; here the small queue is then short, so main is next. */
static uint32_t s3fifo_victim(struct table *table, unsigned *steps)
{
    const struct list *small = &table->segment->lists[LIST_SMALL];
    const struct list *main = &table->segment->lists[LIST_MAIN];
    uint32_t share = small_share(table);
    uint64_t small_looks = small->count;
    uint64_t main_looks = (uint64_t)(VISITS_MAX + 1) * ((uint64_t)main->count + small->count);
    while (*steps) {
        bool from_small = small_looks && (small->count >= share || !main_looks || main->head == NIL);
        uint32_t at = from_small ? list_tail(table, LIST_SMALL) : list_tail(table, LIST_MAIN);
        if (at == NIL || (!from_small && !main_looks)) {
            return NIL;
        }
        --*steps;
        --*(from_small ? &small_looks : &main_looks);
        if (from_small ? small_tail(table, at) : main_tail(table, at)) {
            list_remove(table, at);
            return at;
        }
    }
    return NIL;
}

/* ---- SIEVE: Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is simpler than LRU", NSDI 2024, algorithm 1 ---- */

static void insert_at_head(struct table *table, uint32_t at)
{
    list_push_head(table, LIST_MAIN, at);
}

/* The hand goes from the tail to the head and round again; what was used since it passed is spared once. */
static uint32_t sieve_victim(struct table *table, unsigned *steps)
{
    struct segment *segment = table->segment;
    for (uint64_t looks = 2 * (uint64_t)segment->lists[LIST_MAIN].count; looks && *steps; looks--, --*steps) {
        uint32_t at = segment->hand < table->slot_count ? segment->hand : list_tail(table, LIST_MAIN);
        if (at == NIL) {
            return NIL;
        }
        struct slot *slot = &table->slots[at];
        bool evicted;
        segment->hand = slot->previous;
        if (is_visited(slot)) {
            store_byte(&slot->visits, 0);
        } else if (take(table, at, &evicted)) {
            list_remove(table, at);
            return at;
        }
    }
    return NIL;
}

/* ---- LRU and FIFO: the tail goes ---- */

static uint32_t tail_victim(struct table *table, unsigned *steps)
{
    for (uint64_t looks = table->segment->lists[LIST_MAIN].count; looks && *steps; looks--, --*steps) {
        uint32_t at = list_tail(table, LIST_MAIN);
        bool evicted;
        if (at == NIL) {
            return NIL;
        }
        if (take(table, at, &evicted)) {
            list_remove(table, at);
            return at;
        }
        move_to_head(table, LIST_MAIN, at);
    }
    return NIL;
}

void policy_touch(struct table *table, uint32_t at)
{
    if (table->slots[at].list == LIST_MAIN) {
        move_to_head(table, LIST_MAIN, at);
    }
}

/* ---- by name; the order is that of segment.policy ---- */

const struct policy policies[POLICIES] = {
    {.name = "s3fifo", .resting = LIST_SMALL, .insert = s3fifo_insert, .victim = s3fifo_victim},
    {.name = "sieve", .resting = LIST_MAIN, .insert = insert_at_head, .victim = sieve_victim},
    {.name = "lru", .resting = LIST_MAIN, .by_touch = true, .insert = insert_at_head, .victim = tail_victim},
    {.name = "fifo", .resting = LIST_MAIN, .insert = insert_at_head, .victim = tail_victim},
};

const struct policy *policy_named(const char *name)
{
    for (int i = 0; i < POLICIES; i++) {
        if (!strcmp(policies[i].name, name)) {
            return &policies[i];
        }
    }
    return NULL;
}

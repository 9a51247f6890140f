/* What finds, takes and gives up slots: claim, fail, drop. */
#include "blocktable.h"

enum {
    STEPS_MAX = 2048, /* looks for victims while the mutex is held: about 100 us where each is a miss of the cache */
    ORPHAN_LOOKS = 4,
    REST_LOOKS = 8,
    /* One slot in as many, and no more than that, stay FAILED while others can be used: somebody may still ask for the reason. */
    FAILED_SHARE = 8,
    FAILED_KEPT = 64,
};

/* ---- one slot, under the mutex ---- */

static void unindex(struct table *table, uint32_t at)
{
    struct place place = index_place(table, slot_id(&table->slots[at]));
    index_remove(table, &place, at);
}

void slot_retire(struct table *table, uint32_t at)
{
    struct slot *slot = &table->slots[at];
    uint64_t word = load_word(slot);
    enum list_name list = LIST_FAILED;
    unindex(table, at);
    if (state_of(word) != FAILED) {
        list = LIST_ORPHANS;
        /* Nobody comes to hold it any more, but a holder may just have left. */
        if (!holders_of(word) && swap_word(slot, &word, with_state(word, EMPTY))) {
            list = LIST_FREE;
        }
    }
    list_remove(table, at);
    list_push_tail(table, list, at);
}

/* An orphan whose last holder has left, or NIL. */
static uint32_t left_orphan(struct table *table)
{
    for (int looks = 0; looks < ORPHAN_LOOKS; looks++) {
        uint32_t at = list_head(table, LIST_ORPHANS);
        if (at == NIL) {
            return NIL;
        }
        list_remove(table, at);
        if (!holders_of(load_word(&table->slots[at]))) {
            return at;
        }
        list_push_tail(table, LIST_ORPHANS, at);
    }
    return NIL;
}

void orphans_sweep(struct table *table)
{
    if (!table_trylock(table)) {
        return;
    }
    uint32_t at = left_orphan(table);
    for (int swept = 0; swept < GROUP && at != NIL; swept++) {
        slot_retire(table, at);
        at = left_orphan(table);
    }
    if (at != NIL) {
        list_push_head(table, LIST_ORPHANS, at);
    }
    table_unlock(table);
}

static uint32_t first_of(struct table *table, enum list_name list)
{
    uint32_t at = list_head(table, list);
    if (at != NIL) {
        list_remove(table, at);
    }
    return at;
}

/* What a dead process was filling may still be written to: its reads end after it (see table_reap). A time that nobody can have set is none. */
static bool still_rests(const struct slot *slot)
{
    uint32_t left_s = slot->rests_until_s - clock_s();
    return slot->rests_until_s && left_s && left_s <= REST_S_MAX;
}

/* A free slot that need not rest any more, or NIL. */
static uint32_t free_slot(struct table *table)
{
    for (int looks = 0; looks < REST_LOOKS; looks++) {
        uint32_t at = first_of(table, LIST_FREE);
        if (at == NIL || !still_rests(&table->slots[at])) {
            return at;
        }
        list_push_tail(table, LIST_FREE, at);
    }
    return NIL;
}

/* A slot in no list and no index that nobody holds, or NIL. */
static uint32_t take_slot(struct table *table, unsigned *steps)
{
    uint32_t failed = table->segment->lists[LIST_FAILED].count;
    uint32_t at = free_slot(table);
    if (at == NIL && (failed > FAILED_KEPT || failed > table->slot_count / FAILED_SHARE)) {
        at = first_of(table, LIST_FAILED);
    }
    if (at == NIL) {
        at = left_orphan(table);
    }
    if (at == NIL) {
        at = table->policy->victim(table, steps);
        if (at != NIL) {
            unindex(table, at);
        }
    }
    return at != NIL ? at : first_of(table, LIST_FAILED);
}

/* Release, so that who reads the new id finds the word changed; see load_byte(). */
static void write_id(struct slot *slot, struct id id)
{
    __atomic_store_n(&slot->id.low, id.low, __ATOMIC_RELEASE);
    __atomic_store_n(&slot->id.high, id.high, __ATOMIC_RELEASE);
}

/* Give a free slot to an id, to be filled by us. False where the index has no room. */
static bool assign(struct table *table, uint32_t at, struct id id, const struct place *place)
{
    struct slot *slot = &table->slots[at];
    uint64_t word = load_word(slot);
    if (!index_insert(table, place, at)) {
        __atomic_store_n(&slot->word, with_state(word & GENERATION_MASK, EMPTY), __ATOMIC_RELEASE);
        list_push_tail(table, LIST_FREE, at);
        return false;
    }
    write_id(slot, id);
    slot->rests_until_s = 0;
    store_byte(&slot->visits, 0);
    store_byte(&slot->dirty, 0);
    store_byte(&slot->debtor, 0);
    store_byte(&slot->reason, 0);
    /* From here on, if we die, the slot is given back with our bit. */
    __atomic_store_n(&slot->word, refilled(word, table->number), __ATOMIC_RELEASE);
    table->policy->insert(table, at);
    table->counts[at] = 1;
    table->leases++;
    return true;
}

/* ---- claim ---- */

struct claim {
    int64_t slot;
    uint32_t generation;
    uint8_t state;
};

static struct claim claimed(const struct table *table, uint32_t at, uint8_t state)
{
    return (struct claim){at, generation_of(load_word(&table->slots[at])), state};
}

/* Who filled it died: go on in its place. */
static bool take_over(struct table *table, uint32_t at, uint64_t word)
{
    if (!swap_word(&table->slots[at], &word, refilled(word, table->number))) {
        return false;
    }
    table->counts[at] = 1;
    table->leases++;
    count_up(&table->segment->counters.takeovers, 1);
    return true;
}

/* The id is in this slot: see what it is in. False where that is over, and the slot does not have the id any more. */
static bool claim_found(struct table *table, uint32_t at, struct id id, struct claim *claim)
{
    uint64_t word = load_word(&table->slots[at]);
    switch (state_of(word)) {
    case READY:
        if (lease_one(table, at, id)) {
            *claim = claimed(table, at, CLAIM_HIT);
            return true;
        }
        if (state_of(load_word(&table->slots[at])) == READY) {
            claim->state = CLAIM_BUSY; /* others were always faster */
            return true;
        }
        break; /* dropped just now */
    case FILLING:
        if (holders_of(word)) {
            *claim = (struct claim){at, generation_of(word), CLAIM_THEIRS};
            return true;
        }
        if (take_over(table, at, word)) {
            *claim = claimed(table, at, CLAIM_MINE);
            return true;
        }
        break;
    default:
        break;
    }
    slot_retire(table, at);
    return false;
}

/* Both locks are held. */
static struct claim claim_one(struct table *table, struct id id, unsigned *steps)
{
    struct place place = index_place(table, id);
    struct claim claim = {-1, 0, CLAIM_NONE};
    unsigned cursor = 0;
    for (uint32_t at = index_next(table, &place, &cursor); at != NIL; at = index_next(table, &place, &cursor)) {
        if (id_is(&table->slots[at], id) && claim_found(table, at, id, &claim)) {
            return claim;
        }
    }
    uint32_t at = take_slot(table, steps);
    if (at != NIL && assign(table, at, id, &place)) {
        claim = claimed(table, at, CLAIM_MINE);
    }
    return claim;
}

/* What the lock-free look did not find is looked for, or given a slot, under the mutex. */
static void claim_group(struct table *table, const char *ids, size_t size, int64_t *slots, uint8_t *states, uint32_t *generations)
{
    size_t hits = table_lease(table, ids, size, slots);
    bool locked = hits < size && table_lock(table, PATIENCE_SHORT_NS);
    unsigned steps = STEPS_MAX;
    count_up(&table->segment->counters.misses, size - hits);
    pthread_mutex_lock(&table->lock);
    for (size_t i = 0; i < size; i++) {
        struct claim claim = {-1, 0, CLAIM_BUSY};
        if (slots[i] >= 0) {
            claim = claimed(table, (uint32_t)slots[i], CLAIM_HIT);
        } else if (locked && table->number >= 0) {
            claim = claim_one(table, load_id(ids + i * ID_BYTES), &steps);
        }
        slots[i] = claim.slot;
        states[i] = claim.state;
        generations[i] = claim.generation;
    }
    pthread_mutex_unlock(&table->lock);
    if (locked) {
        table_unlock(table);
    }
}

void table_claim(struct table *table, const char *ids, size_t count, int64_t *slots, uint8_t *states, uint32_t *generations)
{
    for (size_t from = 0; from < count; from += GROUP) {
        size_t size = count - from < GROUP ? count - from : GROUP;
        claim_group(table, ids + from * ID_BYTES, size, slots + from, states + from, generations + from);
    }
}

/* ---- rename ---- */

/* CLAIM_HIT or CLAIM_THEIRS where an id is in a slot; what is left over of it is cleared up. */
static uint8_t state_of_id(struct table *table, const struct place *place, struct id id)
{
    unsigned cursor = 0;
    for (uint32_t at = index_next(table, place, &cursor); at != NIL; at = index_next(table, place, &cursor)) {
        uint64_t word = load_word(&table->slots[at]);
        if (!id_is(&table->slots[at], id)) {
            continue;
        }
        if (state_of(word) == READY) {
            return CLAIM_HIT;
        }
        if (state_of(word) == FILLING && holders_of(word)) {
            return CLAIM_THEIRS;
        }
        slot_retire(table, at);
    }
    return CLAIM_NONE;
}

/* Both locks are held. Nobody reads the id of a slot that is FILLING, and if we die in between, it is given back. */
static uint8_t rename_one(struct table *table, uint32_t at, struct id id)
{
    struct slot *slot = &table->slots[at];
    struct place before = index_place(table, slot_id(slot)), after = index_place(table, id);
    if (state_of(load_word(slot)) != FILLING) {
        return CLAIM_NONE;
    }
    uint8_t state = state_of_id(table, &after, id);
    if (state != CLAIM_NONE) {
        return state;
    }
    index_remove(table, &before, at);
    if (!index_insert(table, &after, at)) {
        index_insert(table, &before, at); /* there was room for it */
        return CLAIM_BUSY;
    }
    write_id(slot, id);
    list_remove(table, at);
    table->policy->insert(table, at);
    return CLAIM_MINE;
}

ptrdiff_t table_rename(struct table *table, const int64_t *slots, const char *ids, size_t count, uint8_t *states)
{
    ptrdiff_t wrong = -1;
    for (size_t from = 0; from < count && wrong < 0; from += GROUP) {
        size_t end = count - from < GROUP ? count : from + GROUP;
        bool locked = table_lock(table, PATIENCE_SHORT_NS);
        pthread_mutex_lock(&table->lock);
        for (size_t i = from; i < end && wrong < 0; i++) {
            wrong = is_ours(table, slots[i]) ? -1 : (ptrdiff_t)i;
            if (wrong < 0) {
                states[i] = locked ? rename_one(table, (uint32_t)slots[i], load_id(ids + i * ID_BYTES)) : CLAIM_BUSY;
            }
        }
        pthread_mutex_unlock(&table->lock);
        if (locked) {
            table_unlock(table);
        }
    }
    return wrong;
}

/* ---- fail ---- */

static void fail_action(struct table *table, uint32_t at, unsigned reason)
{
    struct slot *slot = &table->slots[at];
    uint64_t word = load_word(slot);
    if (state_of(word) == FILLING) {
        store_byte(&slot->reason, (uint8_t)reason);
        /* The one change that another process may make meanwhile is that it is dropped. */
        while (state_of(word) == FILLING && !swap_word(slot, &word, with_state(word, FAILED))) {
        }
    }
    release_one(table, at);
}

/* FAILED and released; perhaps it waits for the next user already, or has one. */
static bool is_left_failed(const struct table *table, uint32_t at)
{
    uint64_t word = load_word(&table->slots[at]);
    return state_of(word) == FAILED && table->slots[at].list != LIST_FAILED;
}

/* FAILED already; what is left is to make room in the index. If the mutex is not to be had, a later claim does it. */
static void retire_failed(struct table *table, const int64_t *slots, size_t count)
{
    if (!table_lock(table, PATIENCE_SHORT_NS)) {
        return;
    }
    for (size_t i = 0; i < count; i++) {
        if (slots[i] >= 0 && is_left_failed(table, (uint32_t)slots[i])) {
            slot_retire(table, (uint32_t)slots[i]);
        }
    }
    table_unlock(table);
}

ptrdiff_t table_fail(struct table *table, const int64_t *slots, size_t count, uint8_t reason)
{
    ptrdiff_t wrong = table_for_ours(table, slots, count, fail_action, reason);
    size_t failed = wrong < 0 ? count : (size_t)wrong;
    for (size_t from = 0; from < failed; from += GROUP) {
        retire_failed(table, slots + from, failed - from < GROUP ? failed - from : GROUP);
    }
    table_announce(table);
    return wrong;
}

/* ---- drop ---- */

/* READY and FILLING become ORPHAN; who holds it goes on. The word that is swapped is the one that the id was read with. */
static bool orphan_one(struct table *table, uint32_t at, struct id id)
{
    struct slot *slot = &table->slots[at];
    uint64_t word = load_word(slot);
    while ((state_of(word) == READY || state_of(word) == FILLING) && id_is(slot, id)) {
        if (swap_word(slot, &word, with_state(word, ORPHAN))) {
            return true;
        }
    }
    return false;
}

static size_t drop_one(struct table *table, struct id id, bool locked)
{
    struct place place = index_place(table, id);
    unsigned cursor = 0;
    size_t dropped = 0;
    for (uint32_t at = index_next(table, &place, &cursor); at != NIL; at = index_next(table, &place, &cursor)) {
        if (orphan_one(table, at, id)) {
            dropped = 1;
            if (locked) {
                slot_retire(table, at);
            }
        }
    }
    return dropped;
}

/* Without the mutex an entry that is being moved could be missed the first time, and is found the second. */
static size_t drop_without_mutex(struct table *table, struct id id)
{
    size_t dropped = drop_one(table, id, false);
    return dropped + drop_one(table, id, false) > 0;
}

size_t table_drop(struct table *table, const char *ids, size_t count)
{
    size_t dropped = 0;
    for (size_t from = 0; from < count; from += GROUP) {
        size_t end = count - from < GROUP ? count : from + GROUP;
        bool locked = table_lock(table, PATIENCE_SHORT_NS);
        for (size_t i = from; i < end; i++) {
            struct id id = load_id(ids + i * ID_BYTES);
            dropped += locked ? drop_one(table, id, true) : drop_without_mutex(table, id);
        }
        if (locked) {
            table_unlock(table);
        }
    }
    table_announce(table);
    return dropped;
}

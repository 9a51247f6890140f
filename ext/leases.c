/* What needs no mutex: lookups, leases, publishing, watching. */
#include "blocktable.h"

/* A word changes while one looks only when others are at the same slot at the same time; who loses as often takes it for a miss. */
enum { LEASE_TRIES = 64 };

/* ---- one slot ---- */

/* Nothing happened between two looks at a word but leases. */
static bool same_life(uint64_t before, uint64_t after)
{
    return ((before ^ after) & (STATE_MASK | GENERATION_MASK)) == 0;
}

/* READY with this id. The word is read around the id: an id that changed in between belongs to no word that is the same before and after. */
static bool is_ready(const struct slot *slot, struct id id)
{
    uint64_t before = load_word(slot);
    if (state_of(before) != READY || !id_is(slot, id)) {
        return false;
    }
    uint64_t after = __atomic_load_n(&slot->word, __ATOMIC_RELAXED);
    return same_life(before, after);
}

/* Set our bit while it is READY. */
static bool hold_slot(struct slot *slot, uint64_t bit)
{
    uint64_t word = load_word(slot);
    for (int i = 0; i < LEASE_TRIES && state_of(word) == READY; i++) {
        if ((word & bit) || swap_word(slot, &word, word | bit)) {
            return true;
        }
    }
    return false;
}

bool lease_one(struct table *table, uint32_t at, struct id id)
{
    struct slot *slot = &table->slots[at];
    if (!is_ready(slot, id) || !hold_slot(slot, bit_of(table->number))) {
        return false;
    }
    table->counts[at]++;
    table->leases++;
    /* Held, it keeps its id. It may have become another's since we looked. */
    if (!id_is(slot, id)) {
        release_one(table, at);
        return false;
    }
    uint8_t visits = load_byte(&slot->visits);
    if (visits < VISITS_MAX) {
        store_byte(&slot->visits, (uint8_t)(visits + 1));
    }
    return true;
}

void release_one(struct table *table, uint32_t at)
{
    table->leases--;
    if (--table->counts[at] == 0) {
        /* Release: what we read from the slot was read before anybody can fill it anew. */
        uint64_t word = __atomic_fetch_and(&table->slots[at].word, ~bit_of(table->number), __ATOMIC_RELEASE);
        table->left_orphans |= state_of(word) == ORPHAN;
    }
}

/* ---- lookups ---- */

/* For an id whose first candidate was not it: all of its candidates, told from others by `good`. */
static uint32_t look_on(const struct table *table, const struct place *place, struct id id)
{
    unsigned cursor = 0;
    for (uint32_t at = index_next(table, place, &cursor); at != NIL; at = index_next(table, place, &cursor)) {
        if (is_ready(&table->slots[at], id)) {
            return at;
        }
    }
    return NIL;
}

static bool probe_one(const struct table *table, const struct place *place, uint32_t candidate, struct id id)
{
    return candidate != NIL && (is_ready(&table->slots[candidate], id) || look_on(table, place, id) != NIL);
}

size_t table_probe(const struct table *table, const char *ids, size_t count, uint8_t *out)
{
    struct place places[GROUP];
    uint32_t candidates[GROUP];
    size_t found = 0;
    for (size_t from = 0; from < count; from += GROUP) {
        size_t size = count - from < GROUP ? count - from : GROUP;
        index_candidates(table, ids + from * ID_BYTES, size, places, candidates);
        for (size_t i = 0; i < size; i++) {
            out[from + i] = probe_one(table, &places[i], candidates[i], load_id(ids + (from + i) * ID_BYTES));
            found += out[from + i];
        }
    }
    return found;
}

size_t table_prefix(const struct table *table, const char *ids, size_t count)
{
    struct place places[GROUP];
    uint32_t candidates[GROUP];
    for (size_t from = 0; from < count; from += GROUP) {
        size_t size = count - from < GROUP ? count - from : GROUP;
        index_candidates(table, ids + from * ID_BYTES, size, places, candidates);
        for (size_t i = 0; i < size; i++) {
            if (!probe_one(table, &places[i], candidates[i], load_id(ids + (from + i) * ID_BYTES))) {
                return from + i;
            }
        }
    }
    return count;
}

/* ---- leases ---- */

static size_t lease_group(struct table *table, const char *ids, size_t size, int64_t *slots)
{
    struct place places[GROUP];
    uint32_t candidates[GROUP];
    size_t leased = 0;
    index_candidates(table, ids, size, places, candidates);
    pthread_mutex_lock(&table->lock);
    for (size_t i = 0; i < size; i++) {
        struct id id = load_id(ids + i * ID_BYTES);
        uint32_t at = table->number < 0 ? NIL : candidates[i];
        if (at != NIL && !lease_one(table, at, id)) {
            at = look_on(table, &places[i], id);
            at = at != NIL && lease_one(table, at, id) ? at : NIL;
        }
        slots[i] = at == NIL ? -1 : (int64_t)at;
        leased += at != NIL;
    }
    pthread_mutex_unlock(&table->lock);
    return leased;
}

/* In their order, for policies that want it. Lost ones do no harm. */
static void touch_group(struct table *table, const int64_t *slots, size_t size)
{
    if (!table_trylock(table)) {
        return;
    }
    for (size_t i = 0; i < size; i++) {
        if (slots[i] >= 0) {
            policy_touch(table, (uint32_t)slots[i]);
        }
    }
    table_unlock(table);
}

size_t table_lease(struct table *table, const char *ids, size_t count, int64_t *slots)
{
    size_t leased = 0;
    for (size_t from = 0; from < count; from += GROUP) {
        size_t size = count - from < GROUP ? count - from : GROUP;
        size_t hits = lease_group(table, ids + from * ID_BYTES, size, slots + from);
        if (hits && table->policy->by_touch) {
            touch_group(table, slots + from, size);
        }
        leased += hits;
    }
    count_up(&table->segment->counters.hits, leased);
    return leased;
}

/* ---- calls whose slots must be ours ---- */

bool is_ours(const struct table *table, int64_t at)
{
    return table->number >= 0 && at >= 0 && at < (int64_t)table->slot_count && table->counts[at];
}

/* Elements from .. to, or up to the first that is not ours. The private lock is held. */
static ptrdiff_t act_on_some(struct table *table, const int64_t *slots, size_t from, size_t to, slot_action action, unsigned how)
{
    for (size_t i = from; i < to; i++) {
        if (slots[i] == -1) {
            continue;
        }
        if (!is_ours(table, slots[i])) {
            return (ptrdiff_t)i;
        }
        action(table, (uint32_t)slots[i], how);
    }
    return -1;
}

ptrdiff_t table_for_ours(struct table *table, const int64_t *slots, size_t count, slot_action action, unsigned how)
{
    ptrdiff_t wrong = -1;
    bool left_orphans = false;
    for (size_t from = 0; from < count && wrong < 0; from += GROUP) {
        pthread_mutex_lock(&table->lock);
        wrong = act_on_some(table, slots, from, count - from < GROUP ? count : from + GROUP, action, how);
        left_orphans |= table->left_orphans;
        table->left_orphans = false;
        pthread_mutex_unlock(&table->lock);
    }
    if (left_orphans) {
        orphans_sweep(table);
    }
    return wrong;
}

static void release_action(struct table *table, uint32_t at, unsigned ignored)
{
    (void)ignored;
    release_one(table, at);
}

ptrdiff_t table_release(struct table *table, const int64_t *slots, size_t count)
{
    return table_for_ours(table, slots, count, release_action, 0);
}

enum { PUBLISH_DIRTY = 1, PUBLISH_KEEP = 2 };

static void publish_action(struct table *table, uint32_t at, unsigned how)
{
    struct slot *slot = &table->slots[at];
    uint64_t word = load_word(slot);
    if (state_of(word) == FILLING) {
        store_byte(&slot->debtor, how & PUBLISH_DIRTY ? (uint8_t)(table->number + 1) : 0);
        store_byte(&slot->dirty, how & PUBLISH_DIRTY);
        /* The one change that another process may make meanwhile is that it is dropped. */
        while (state_of(word) == FILLING && !swap_word(slot, &word, with_state(word, READY))) {
        }
    }
    if (!(how & PUBLISH_KEEP)) {
        release_one(table, at);
    }
}

ptrdiff_t table_publish(struct table *table, const int64_t *slots, size_t count, bool dirty, bool keep_lease)
{
    unsigned how = (dirty ? PUBLISH_DIRTY : 0) | (keep_lease ? PUBLISH_KEEP : 0);
    ptrdiff_t wrong = table_for_ours(table, slots, count, publish_action, how);
    table_announce(table);
    return wrong;
}

static void clean_action(struct table *table, uint32_t at, unsigned ignored)
{
    (void)ignored;
    store_byte(&table->slots[at].debtor, 0);
    store_byte(&table->slots[at].dirty, 0);
}

ptrdiff_t table_clean(struct table *table, const int64_t *slots, size_t count)
{
    ptrdiff_t wrong = table_for_ours(table, slots, count, clean_action, 0);
    table_announce(table);
    return wrong;
}

/* ---- watching ---- */

static uint8_t watch_one(const struct table *table, int64_t at, uint32_t generation)
{
    if (at < 0 || at >= (int64_t)table->slot_count) {
        return WATCH_GONE;
    }
    const struct slot *slot = &table->slots[at];
    uint64_t word = load_word(slot);
    if (generation_of(word) != generation) {
        return WATCH_GONE;
    }
    uint8_t seen = WATCH_GONE;
    switch (state_of(word)) {
    case FILLING:
        return holders_of(word) ? WATCH_FILLING : WATCH_GONE;
    case READY:
        seen = load_byte(&slot->dirty) ? WATCH_DIRTY : WATCH_READY;
        break;
    case FAILED:
        seen = (uint8_t)(WATCH_FAILED | (load_byte(&slot->reason) & REASON_MAX));
        break;
    default:
        break;
    }
    /* It must not be what somebody else's block is like who has the slot now. */
    return same_life(word, load_word(slot)) ? seen : WATCH_GONE;
}

void table_watch(const struct table *table, const int64_t *slots, const uint32_t *generations, size_t count, uint8_t *out)
{
    for (size_t i = 0; i < count; i++) {
        out[i] = watch_one(table, slots[i], generations[i]);
    }
}

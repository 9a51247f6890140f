/* Slots change their states; see slots.h. */
#include "slots.h"

enum { WORD_BITS = 64, LOOKS_MAX = 256 };

/* ---- layout ---- */

static uint64_t segment_words(uint64_t segment_slots)
{
    return (segment_slots + WORD_BITS - 1) / WORD_BITS;
}

static uint64_t segment_count(uint64_t count, uint64_t segment_slots)
{
    return (count + segment_slots - 1) / segment_slots;
}

static uint64_t bitmap_bytes(uint64_t count, uint64_t segment_slots)
{
    uint64_t words = segment_count(count, segment_slots) * segment_words(segment_slots);
    return (words + 7) / 8 * 8 * sizeof(uint64_t); /* whole cache lines */
}

/* Two entries of room for each slot: of two buckets, the emptier one is then hardly ever full. */
static uint64_t bucket_count(uint64_t count)
{
    uint64_t buckets = (2 * count + INDEX_WAYS - 1) / INDEX_WAYS;
    return buckets < INDEX_WAYS ? INDEX_WAYS : buckets;
}

size_t slots_bytes(uint64_t count, uint64_t segment_slots)
{
    return sizeof(struct slots_header) + bitmap_bytes(count, segment_slots) + bucket_count(count) * sizeof(struct index_bucket) +
           count * sizeof(struct file_slot) + segment_count(count, segment_slots);
}

static enum slots_attached check(const struct slots_header *header, uint32_t count, uint32_t segment_slots)
{
    if (header->magic != SLOTS_MAGIC) {
        return header->magic ? SLOTS_FOREIGN : SLOTS_NOT_READY;
    }
    if (header->version != SLOTS_VERSION) {
        return SLOTS_OTHER_VERSION;
    }
    if (!__atomic_load_n(&header->ready, __ATOMIC_ACQUIRE)) {
        return SLOTS_NOT_READY;
    }
    return header->slots == count && header->segment_slots == segment_slots ? SLOTS_ATTACHED : SLOTS_OTHER_COUNT;
}

enum slots_attached slots_attach(struct slots *table, void *memory, uint32_t count, uint32_t segment_slots, bool create)
{
    char *at = memory;
    *table = (struct slots){.count = count, .segment_slots = segment_slots, .bucket_count = bucket_count(count)};
    table->segment_words = segment_words(segment_slots);
    table->bitmap_words = segment_count(count, segment_slots) * table->segment_words;
    table->header = (struct slots_header *)(void *)at;
    at += sizeof(struct slots_header);
    table->bitmap = (uint64_t *)(void *)at;
    at += bitmap_bytes(count, segment_slots);
    table->index = (struct index_bucket *)(void *)at;
    at += table->bucket_count * sizeof(struct index_bucket);
    table->slots = (struct file_slot *)(void *)at;
    at += count * sizeof(struct file_slot);
    table->kinds = (uint8_t *)at;
    if (create) {
        memset(memory, 0, slots_bytes(count, segment_slots)); /* all ABSENT */
        table->header->magic = SLOTS_MAGIC;
        table->header->version = SLOTS_VERSION;
        table->header->slots = count;
        table->header->segment_slots = segment_slots;
        table->header->sequence = 1;
        table->header->counts[SLOT_ABSENT] = count;
        __atomic_store_n(&table->header->ready, 1, __ATOMIC_RELEASE);
    }
    return check(table->header, count, segment_slots);
}

/* ---- one slot ---- */

static unsigned kind_of(const struct slots *table, uint64_t segment)
{
    return __atomic_load_n(&table->kinds[segment], __ATOMIC_RELAXED) % SLOT_KINDS;
}

static void count_free(struct slots *table, uint32_t at, int64_t more)
{
    __atomic_fetch_add(&table->header->free[kind_of(table, at / table->segment_slots)], more, __ATOMIC_RELAXED);
}

/* Acquire and release: what was written to a slot before its word changed is there for who sees the new word. */
static bool swap_word(struct slots *table, uint32_t at, uint64_t seen, uint64_t wanted)
{
    if (!__atomic_compare_exchange_n(&table->slots[at].word, &seen, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE)) {
        return false;
    }
    __atomic_fetch_sub(&table->header->counts[slot_state(seen) % SLOT_STATES], 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&table->header->counts[slot_state(wanted)], 1, __ATOMIC_RELAXED);
    if (slot_state(seen) == SLOT_FREE || slot_state(wanted) == SLOT_FREE) {
        count_free(table, at, slot_state(wanted) == SLOT_FREE ? 1 : -1);
    }
    return true;
}

static bool is_ours(const struct slots *table, int64_t at)
{
    if (at < 0 || (uint64_t)at >= table->count || !table->number) {
        return false;
    }
    uint64_t word = load_slot_word(&table->slots[at]);
    return slot_state(word) == SLOT_TAKEN && slot_owner(word) == table->number;
}

/* Only we change a slot that we have taken, so this cannot fail. */
static void change_ours(struct slots *table, uint32_t at, enum slot_state state)
{
    uint64_t word = load_slot_word(&table->slots[at]);
    swap_word(table, at, word, slot_word(slot_version(word), 0, state));
}

/* ---- free slots ---- */

/* Where the bit of a slot is. */
static uint64_t word_of(const struct slots *table, uint32_t at)
{
    return at / table->segment_slots * table->segment_words + at % table->segment_slots / WORD_BITS;
}

static uint64_t bit_of(const struct slots *table, uint32_t at)
{
    return (uint64_t)1 << at % table->segment_slots % WORD_BITS;
}

static void offer(struct slots *table, uint32_t at)
{
    uint64_t word = word_of(table, at);
    __atomic_fetch_or(&table->bitmap[word], bit_of(table, at), __ATOMIC_RELEASE);
    uint64_t *hints = &table->header->hints[kind_of(table, at / table->segment_slots)];
    uint64_t hint = __atomic_load_n(hints, __ATOMIC_RELAXED);
    while (word < hint && !__atomic_compare_exchange_n(hints, &hint, word, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}

/* What was in a slot that we have taken is of no interest any more. */
static void forget_lost(struct slots *table, uint32_t at)
{
    __atomic_store_n(&table->slots[at].lost, 0, __ATOMIC_RELAXED);
}

/* The bit is taken back by who got the slot, and by nobody else: who only failed to get it may be late. */
static bool take_one(struct slots *table, uint32_t at)
{
    uint64_t word = load_slot_word(&table->slots[at]);
    if (slot_state(word) != SLOT_FREE || !swap_word(table, at, word, slot_word(slot_version(word), table->number, SLOT_TAKEN))) {
        return false;
    }
    forget_lost(table, at);
    __atomic_fetch_and(&table->bitmap[word_of(table, at)], ~bit_of(table, at), __ATOMIC_RELAXED);
    return true;
}

static size_t take_from(struct slots *table, uint64_t word, int64_t *slots, size_t count)
{
    size_t taken = 0;
    uint64_t bits = __atomic_load_n(&table->bitmap[word], __ATOMIC_ACQUIRE);
    uint64_t first = word / table->segment_words * table->segment_slots + word % table->segment_words * WORD_BITS;
    while (bits && taken < count) {
        uint64_t at = first + (uint64_t)__builtin_ctzll(bits);
        bits &= bits - 1;
        if (at < table->count && take_one(table, (uint32_t)at)) {
            slots[taken++] = (int64_t)at;
        }
    }
    return taken;
}

/* If none should be free we do not look everywhere: but somewhere, and somewhere else the next time, because counts of the dead may be wrong. */
size_t slots_take(struct slots *table, int64_t *slots, size_t count, unsigned kind)
{
    size_t taken = 0;
    bool likely = __atomic_load_n(&table->header->free[kind], __ATOMIC_RELAXED) > 0;
    uint64_t looks = likely ? table->bitmap_words : LOOKS_MAX;
    uint64_t hint = __atomic_load_n(&table->header->hints[kind], __ATOMIC_RELAXED) % table->bitmap_words;
    uint64_t word = hint;
    for (uint64_t steps = 0; table->number && steps < table->bitmap_words && looks && taken < count; steps++) {
        word = (hint + steps) % table->bitmap_words;
        if (kind_of(table, word / table->segment_words) == kind) {
            taken += take_from(table, word, slots + taken, count - taken);
            looks--;
        } else {
            steps += table->segment_words - 1 - word % table->segment_words; /* the next segment */
        }
    }
    __atomic_store_n(&table->header->hints[kind], word, __ATOMIC_RELAXED);
    return taken;
}

static ptrdiff_t check_ours(const struct slots *table, const int64_t *slots, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!is_ours(table, slots[i])) {
            return (ptrdiff_t)i;
        }
    }
    return -1;
}

ptrdiff_t slots_give(struct slots *table, const int64_t *slots, size_t count)
{
    ptrdiff_t wrong = check_ours(table, slots, count);
    for (size_t i = 0; wrong < 0 && i < count; i++) {
        if (is_ours(table, slots[i])) { /* not if it is named twice */
            change_ours(table, (uint32_t)slots[i], SLOT_FREE);
            offer(table, (uint32_t)slots[i]);
        }
    }
    return wrong;
}

ptrdiff_t slots_spoil(struct slots *table, const int64_t *slots, size_t count)
{
    ptrdiff_t wrong = check_ours(table, slots, count);
    for (size_t i = 0; wrong < 0 && i < count; i++) {
        if (is_ours(table, slots[i])) {
            change_ours(table, (uint32_t)slots[i], SLOT_BAD);
        }
    }
    return wrong;
}

/* ---- stored slots ---- */

/* Take a STORED slot; first its word, so that nobody finds it any more. */
static bool withdraw_one(struct slots *table, uint32_t at, uint64_t word)
{
    struct id id = slot_id(&table->slots[at]);
    if (slot_state(word) != SLOT_STORED || !swap_word(table, at, word, slot_word(slot_version(word) + 1, table->number, SLOT_TAKEN))) {
        return false;
    }
    slots_index_remove(slots_place(table, id), at);
    return true;
}

/* The entry comes before the word, so that no process can die and leave a STORED slot that nobody finds.
 *
 * If two processes store a block at once, each sees the other's, and the one in the higher slot withdraws. One that was stored before is
 * seen at the first look. In between, both may stay: a block more than is needed, which goes when it is cold.
 */
static enum published publish_one(struct slots *table, uint32_t at, struct id id, uint32_t stamp)
{
    struct place place = slots_place(table, id);
    struct file_slot *slot = &table->slots[at];
    uint64_t other;
    if (slots_find_one(table, place, id, at, &other) != SLOT_NOWHERE) {
        return PUBLISHED_ELSEWHERE;
    }
    __atomic_thread_fence(__ATOMIC_RELEASE); /* the id after TAKEN, for who reads the word again */
    __atomic_store_n(&slot->id.low, id.low, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->id.high, id.high, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->stamp, stamp, __ATOMIC_RELAXED);
    if (!slots_index_put(table, place, at)) {
        return PUBLISHED_NOT;
    }
    uint64_t word = slot_word(slot_version(load_slot_word(slot)), 0, SLOT_STORED);
    change_ours(table, at, SLOT_STORED);
    bool lost = slots_find_one(table, place, id, at, &other) < at;
    /* If the slot cannot be had back, somebody has withdrawn it already: as if it had been stored, and removed. */
    return lost && withdraw_one(table, at, word) ? PUBLISHED_ELSEWHERE : PUBLISHED;
}

ptrdiff_t slots_publish(struct slots *table, const int64_t *slots, const char *ids, size_t count, uint8_t *out, uint32_t stamp)
{
    ptrdiff_t wrong = check_ours(table, slots, count);
    for (size_t i = 0; wrong < 0 && i < count; i++) {
        out[i] = PUBLISHED_NOT;
        if (is_ours(table, slots[i])) {
            out[i] = (uint8_t)publish_one(table, (uint32_t)slots[i], load_id(ids + i * ID_BYTES), stamp);
        }
    }
    return wrong;
}

size_t slots_withdraw(struct slots *table, const int64_t *slots, const uint64_t *words, size_t count, uint8_t *out)
{
    size_t taken = 0;
    for (size_t i = 0; i < count; i++) {
        bool can = table->number && slots[i] >= 0 && (uint64_t)slots[i] < table->count;
        out[i] = can && withdraw_one(table, (uint32_t)slots[i], words[i]);
        taken += out[i];
    }
    return taken;
}

/* ---- ranges ---- */

void slots_add(struct slots *table, uint64_t first, uint64_t count, unsigned kind)
{
    for (uint64_t at = first; at < first + count && at < table->count; at += table->segment_slots - at % table->segment_slots) {
        __atomic_store_n(&table->kinds[at / table->segment_slots], (uint8_t)kind, __ATOMIC_RELAXED);
    }
    for (uint64_t at = first; at < first + count && at < table->count; at++) {
        uint64_t word = load_slot_word(&table->slots[at]);
        if (slot_state(word) == SLOT_ABSENT && swap_word(table, (uint32_t)at, word, slot_word(slot_version(word), 0, SLOT_FREE))) {
            offer(table, (uint32_t)at);
        }
    }
}

static bool seize_one(struct slots *table, uint32_t at)
{
    uint64_t word = load_slot_word(&table->slots[at]);
    switch (slot_state(word)) {
    case SLOT_FREE:
        return take_one(table, at);
    case SLOT_STORED:
        return withdraw_one(table, at, word);
    case SLOT_BAD:
        if (!swap_word(table, at, word, slot_word(slot_version(word), table->number, SLOT_TAKEN))) {
            return false;
        }
        forget_lost(table, at);
        return true;
    default:
        return is_ours(table, at);
    }
}

uint64_t slots_seize(struct slots *table, uint64_t first, uint64_t count)
{
    uint64_t left = 0;
    for (uint64_t at = first; at < first + count && at < table->count; at++) {
        left += !seize_one(table, (uint32_t)at);
    }
    return left;
}

void slots_clear(struct slots *table, uint64_t first, uint64_t count)
{
    for (uint64_t at = first; at < first + count && at < table->count; at++) {
        if (is_ours(table, (int64_t)at)) {
            change_ours(table, (uint32_t)at, SLOT_ABSENT);
        }
    }
}

static bool give_back(struct slots *table, uint32_t at, bool everybody, unsigned owner)
{
    uint64_t word = load_slot_word(&table->slots[at]);
    bool dead = slot_state(word) == SLOT_TAKEN && (everybody || slot_owner(word) == owner);
    return dead && swap_word(table, at, word, slot_word(slot_version(word), 0, SLOT_FREE));
}

/* Index and counts from the slots alone. A block that is in two slots stays in one of them. */
static void rebuild(struct slots *table)
{
    int64_t counts[SLOT_STATES] = {0};
    memset(table->header->free, 0, sizeof(table->header->free));
    memset(table->index, 0, table->bucket_count * sizeof(table->index[0]));
    for (uint32_t at = 0; at < table->count; at++) {
        struct file_slot *slot = &table->slots[at];
        struct place place = slots_place(table, slot_id(slot));
        uint64_t word = load_slot_word(slot), other;
        bool stored = slot_state(word) == SLOT_STORED;
        if (stored && (slots_find_one(table, place, slot_id(slot), at, &other) != SLOT_NOWHERE || !slots_index_put(table, place, at))) {
            word = slot_word(slot_version(word) + 1, 0, SLOT_FREE);
        } else if (slot_state(word) >= SLOT_STATES) {
            word = slot_word(0, 0, SLOT_FREE); /* damaged */
        }
        slot->word = word;
        counts[slot_state(word)]++;
        if (slot_state(word) == SLOT_FREE) {
            count_free(table, at, 1);
        }
    }
    memcpy(table->header->counts, counts, sizeof(counts));
}

uint64_t slots_repair(struct slots *table, bool everybody, unsigned owner)
{
    uint64_t given = 0;
    for (uint32_t at = 0; at < table->count; at++) {
        given += give_back(table, at, everybody, owner);
    }
    if (everybody) {
        rebuild(table);
    }
    for (uint32_t at = 0; at < table->count; at++) {
        if (slot_state(load_slot_word(&table->slots[at])) == SLOT_FREE) {
            offer(table, at); /* whoever died may not have come so far */
        }
    }
    return given;
}

void slots_distrust(struct slots *table, uint64_t first, uint64_t count)
{
    for (uint64_t at = first; at < first + count && at < table->count; at++) {
        uint64_t word = load_slot_word(&table->slots[at]);
        if (slot_state(word) == SLOT_TAKEN || slot_state(word) == SLOT_STORED) {
            __atomic_store_n(&table->slots[at].lost, lost_tag(word), __ATOMIC_RELEASE);
        }
    }
}

bool slots_is_distrusted(const struct slots *table, int64_t at)
{
    const struct file_slot *slot = &table->slots[at];
    return __atomic_load_n(&slot->lost, __ATOMIC_ACQUIRE) == lost_tag(load_slot_word(slot));
}

void slots_scan(const struct slots *table, uint64_t first, uint64_t count, uint8_t *states, char *ids, uint32_t *stamps)
{
    for (uint64_t i = 0; i < count; i++) {
        const struct file_slot *slot = &table->slots[first + i];
        struct id id;
        uint64_t word, again;
        do {
            word = load_slot_word(slot);
            id = slot_id(slot);
            __atomic_thread_fence(__ATOMIC_ACQUIRE);
            again = __atomic_load_n(&slot->word, __ATOMIC_RELAXED);
        } while (again != word);
        states[i] = (uint8_t)slot_state(word);
        memcpy(ids + i * ID_BYTES, &id, ID_BYTES);
        stamps[i] = __atomic_load_n(&slot->stamp, __ATOMIC_RELAXED);
    }
}

/* Who uses a table, and taking back what a process held.
 *
 * A process is in the words of slots by its number's bit alone, so what it held is taken back by clearing the bit everywhere: it does
 * no harm twice, and may be broken off anywhere. The number is free for another process only after that.
 */
#include "blocktable.h"

enum { SLOTS_AT_ONCE = 4096 }; /* looked at while the mutex is held: some ten microseconds */

static uint32_t state_at(const struct process *process)
{
    return __atomic_load_n(&process->state, __ATOMIC_ACQUIRE);
}

static void set_state(struct process *process, enum process_state state)
{
    __atomic_store_n(&process->state, state, __ATOMIC_RELEASE);
}

unsigned table_others(const struct table *table)
{
    unsigned others = 0;
    for (int number = 0; number < PROCESSES_MAX; number++) {
        others += number != table->number && state_at(&table->processes[number]) != PROCESS_FREE;
    }
    return others;
}

static int free_number(const struct table *table)
{
    for (int number = 0; number < PROCESSES_MAX; number++) {
        if (state_at(&table->processes[number]) == PROCESS_FREE) {
            return number;
        }
    }
    return -1;
}

int table_join(struct table *table, int32_t pid, uint64_t start_time)
{
    if (!table_lock(table, PATIENCE_LONG_NS)) {
        return -2;
    }
    int number = free_number(table);
    table->joined = (struct process){PROCESS_IN, pid, start_time};
    if (number >= 0) {
        struct process *process = &table->processes[number];
        __atomic_store_n(&process->pid, pid, __ATOMIC_RELAXED);
        __atomic_store_n(&process->start_time, start_time, __ATOMIC_RELAXED);
        set_state(process, PROCESS_IN); /* last: it is in only when it can be told whether it lives */
    }
    table_unlock(table);
    pthread_mutex_lock(&table->lock);
    table->number = number;
    pthread_mutex_unlock(&table->lock);
    return number;
}

/* ---- taking back ---- */

static bool owes(const struct slot *slot, uint64_t word, int number)
{
    return state_of(word) == READY && load_byte(&slot->dirty) && load_byte(&slot->debtor) == number + 1;
}

/* Nobody will store what it owes to the stage below, so such a block must not look as if it were stored: it goes. */
static bool reap_slot(struct table *table, uint32_t at, int number, uint32_t rest_s)
{
    struct slot *slot = &table->slots[at];
    uint64_t word = load_word(slot);
    uint64_t wanted;
    if (!(word & bit_of(number)) && !owes(slot, word, number)) {
        return false;
    }
    do {
        wanted = word & ~bit_of(number);
        wanted = owes(slot, word, number) ? with_state(wanted, ORPHAN) : wanted;
    } while (!swap_word(slot, &word, wanted));
    if (state_of(wanted) == ORPHAN || (state_of(wanted) == FILLING && !holders_of(wanted))) {
        slot->rests_until_s = rest_s ? clock_s() + rest_s : 0;
        slot_retire(table, at);
    }
    return true;
}

/* Is the entry still the one whose reaping we began? Another process may have finished it, and a third have its number. */
static bool is_being_reaped(const struct process *process, const struct process *begun)
{
    return begun->state == PROCESS_REAPED && process->state == PROCESS_REAPED && process->pid == begun->pid && process->start_time == begun->start_time;
}

/* With `expected` only if it is that process which has the number. */
static bool begin_reaping(struct table *table, struct process *process, const struct process *expected, struct process *begun,
                          uint64_t patience_ns)
{
    if (!table_lock(table, patience_ns)) {
        return false;
    }
    bool right = !expected || (process->pid == expected->pid && process->start_time == expected->start_time);
    if (process->state != PROCESS_FREE && right) {
        set_state(process, PROCESS_REAPED);
    }
    *begun = *process;
    begun->state = right ? begun->state : PROCESS_FREE;
    table_unlock(table);
    return true;
}

static uint64_t reap(struct table *table, int number, const struct process *expected, uint32_t rest_s, uint64_t patience_ns,
                     bool *finished)
{
    struct process *process = &table->processes[number];
    struct process begun;
    uint64_t changed = 0;
    bool going = begin_reaping(table, process, expected, &begun, patience_ns);
    *finished = going;
    for (uint64_t from = 0; going && from < table->slot_count; from += SLOTS_AT_ONCE) {
        if (!table_lock(table, patience_ns)) {
            *finished = false;
            break;
        }
        uint64_t end = table->slot_count - from < SLOTS_AT_ONCE ? table->slot_count : from + SLOTS_AT_ONCE;
        going = is_being_reaped(process, &begun);
        for (uint64_t at = from; going && at < end; at++) {
            changed += reap_slot(table, (uint32_t)at, number, rest_s);
        }
        if (going && end == table->slot_count) {
            __atomic_fetch_and(&table->segment->watchers, ~((uint64_t)1 << number), __ATOMIC_RELAXED);
            set_state(process, PROCESS_FREE);
        }
        table_unlock(table);
    }
    table_announce(table);
    return changed;
}

uint64_t table_reap(struct table *table, int number, const struct process *expected, uint32_t rest_s, uint64_t patience_ns,
                    bool *finished)
{
    return reap(table, number, expected, rest_s, patience_ns, finished);
}

/* If others took us for dead, our number may be somebody else's by now; then there is nothing left to give back. */
int table_leave(struct table *table)
{
    pthread_mutex_lock(&table->lock);
    int number = table->number;
    table->number = -1; /* no new leases */
    pthread_mutex_unlock(&table->lock);
    if (number < 0) {
        return (int)table_others(table);
    }
    bool finished;
    reap(table, number, &table->joined, 0, PATIENCE_LONG_NS, &finished);
    pthread_mutex_lock(&table->lock);
    if (finished) {
        memset(table->counts, 0, table->slot_count * sizeof(table->counts[0]));
        table->leases = 0;
    } else {
        table->number = number;
    }
    pthread_mutex_unlock(&table->lock);
    return finished ? (int)table_others(table) : -1;
}

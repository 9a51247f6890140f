/* BlockTable: counters and listings. */
#include "blockobject.h"

static uint64_t counter(const uint64_t *at)
{
    return __atomic_load_n(at, __ATOMIC_RELAXED);
}

static uint32_t length_of(const struct table *table, enum list_name list)
{
    return __atomic_load_n(&table->segment->lists[list].count, __ATOMIC_RELAXED);
}

/* {"name": number, ...}, or NULL with an exception. */
struct named {
    const char *name;
    uint64_t value;
};

static PyObject *to_dict(const struct named *numbers, size_t count)
{
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict && i < count; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(numbers[i].value);
        if (!value || PyDict_SetItemString(dict, numbers[i].name, value) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(value);
    }
    return dict;
}

PyObject *blocktable_statistics(PyObject *op, PyObject *Py_UNUSED(none))
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    struct table *table = &self->table;
    if (!blocktable_enter(self, false)) {
        return NULL;
    }
    const struct counters *counters = &table->segment->counters;
    uint64_t used = (uint64_t)length_of(table, LIST_MAIN) + length_of(table, LIST_SMALL) + length_of(table, LIST_ORPHANS);
    pthread_mutex_lock(&table->lock);
    uint64_t leases = table->leases;
    pthread_mutex_unlock(&table->lock);
    const struct named numbers[] = {
        {"slots", table->slot_count},
        {"free", length_of(table, LIST_FREE)},
        {"failed", length_of(table, LIST_FAILED)},
        {"used", used},
        {"leases", leases},
        {"processes", table_others(table) + (table->number >= 0)},
        {"hits", counter(&counters->hits)},
        {"misses", counter(&counters->misses)},
        {"evictions", counter(&counters->evictions)},
        {"takeovers", counter(&counters->takeovers)},
        {"repairs", counter(&counters->repairs)},
        {"busy", counter(&counters->busy)},
    };
    return to_dict(numbers, sizeof(numbers) / sizeof(numbers[0]));
}

/* ---- every slot ---- */

struct census {
    uint64_t states[SLOT_STATES], held, dirty;
};

static void take_census(const struct table *table, struct census *census)
{
    for (uint32_t at = 0; at < table->slot_count; at++) {
        const struct slot *slot = &table->slots[at];
        uint64_t word = load_word(slot);
        if (state_of(word) < SLOT_STATES) {
            census->states[state_of(word)]++;
        }
        census->held += holders_of(word) != 0;
        census->dirty += state_of(word) == READY && load_byte(&slot->dirty);
    }
}

PyObject *blocktable_count_states(PyObject *op, PyObject *Py_UNUSED(none))
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    struct census census = {.held = 0};
    if (!blocktable_enter(self, false)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    take_census(&self->table, &census);
    Py_END_ALLOW_THREADS
    const struct named numbers[] = {
        {"empty", census.states[EMPTY]},       {"filling", census.states[FILLING]}, {"ready", census.states[READY]},
        {"failed", census.states[FAILED]},     {"evicting", census.states[EVICTING]}, {"orphan", census.states[ORPHAN]},
        {"held", census.held},                 {"dirty", census.dirty},
    };
    return to_dict(numbers, sizeof(numbers) / sizeof(numbers[0]));
}

struct record {
    uint64_t holders;
    struct id id;
    uint32_t generation;
    uint8_t state, flags, visits, list;
};
_Static_assert(sizeof(struct record) == 32, "a record of entries() is 32 bytes");

enum { RECORD_DIRTY = 1 };

PyObject *blocktable_entries(PyObject *op, PyObject *Py_UNUSED(none))
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    const struct table *table = &self->table;
    if (!blocktable_enter(self, false)) {
        return NULL;
    }
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(table->slot_count * sizeof(struct record)));
    if (!bytes) {
        return NULL;
    }
    char *out = PyBytes_AS_STRING(bytes);
    Py_BEGIN_ALLOW_THREADS
    for (uint32_t at = 0; at < table->slot_count; at++) {
        const struct slot *slot = &table->slots[at];
        uint64_t word = load_word(slot);
        struct record record = {
            .holders = holders_of(word),
            .id = slot_id(slot),
            .generation = generation_of(word),
            .state = (uint8_t)state_of(word),
            .flags = load_byte(&slot->dirty) ? RECORD_DIRTY : 0,
            .visits = load_byte(&slot->visits),
            .list = load_byte(&slot->list),
        };
        memcpy(out + at * sizeof(record), &record, sizeof(record));
    }
    Py_END_ALLOW_THREADS
    return bytes;
}

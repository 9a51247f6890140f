/* SlotTable: the calls with ids or slots, a batch each. */
#include "slotobject.h"

#include <limits.h>

enum { ARRAYS_MAX = 4, GIL_KEPT = 2048 /* ids or slots, some tens of microseconds */ };

/* ---- arguments ---- */

struct array_kind {
    const char *name;
    const char *kind;
    size_t bytes;
    bool writable;
};

static const struct array_kind IDS = {"ids", "16-byte ids", ID_BYTES, false};
static const struct array_kind IDS_OUT = {"ids", "16-byte ids", ID_BYTES, true};
static const struct array_kind SLOTS = {"slots", "int64", sizeof(int64_t), false};
static const struct array_kind SLOTS_OUT = {"slots", "int64", sizeof(int64_t), true};
static const struct array_kind WORDS = {"words", "uint64", sizeof(uint64_t), false};
static const struct array_kind WORDS_OUT = {"words", "uint64", sizeof(uint64_t), true};
static const struct array_kind OUT = {"out", "uint8", 1, true};
static const struct array_kind STATES_OUT = {"states", "uint8", 1, true};
static const struct array_kind STAMPS_OUT = {"stamps", "uint32", sizeof(uint32_t), true};

#define KINDS(...) ((const struct array_kind *const[]){__VA_ARGS__, NULL})

struct arrays {
    Py_buffer views[ARRAYS_MAX];
    size_t taken;
    size_t count; /* elements of each */
};

static void drop_arrays(struct arrays *arrays)
{
    while (arrays->taken) {
        PyBuffer_Release(&arrays->views[--arrays->taken]);
    }
}

/* Elements of the first array, which all of them must have; -1 with an exception. */
static int count_elements(PyObject *array, const struct array_kind *kind, size_t *count)
{
    Py_buffer view;
    if (PyObject_GetBuffer(array, &view, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    Py_ssize_t length = view.len;
    PyBuffer_Release(&view);
    if ((size_t)length % kind->bytes) {
        PyErr_Format(PyExc_ValueError, "%s: %zd bytes, must be a multiple of %zu", kind->name, length, kind->bytes);
        return -1;
    }
    *count = (size_t)length / kind->bytes;
    return 0;
}

/* Export the arrays of a call, as many elements each; drop_arrays() gives them back. False with an exception. */
static bool take_arrays(struct arrays *arrays, PyObject *const *args, const struct array_kind *const *kinds)
{
    arrays->taken = 0;
    if (count_elements(args[0], kinds[0], &arrays->count) < 0) {
        return false;
    }
    for (; kinds[arrays->taken]; arrays->taken++) {
        const struct array_kind *kind = kinds[arrays->taken];
        if (array_view(args[arrays->taken], &arrays->views[arrays->taken], arrays->count, kind->bytes, kind->writable, kind->name,
                       kind->kind) < 0) {
            drop_arrays(arrays);
            return false;
        }
    }
    return true;
}

static bool right_count(const char *name, Py_ssize_t count, Py_ssize_t least, Py_ssize_t most)
{
    if (count >= least && count <= most) {
        return true;
    }
    PyErr_Format(PyExc_TypeError, "%s() takes %zd to %zd arguments (%zd given)", name, least, most, count);
    return false;
}

/* The number `args[at]`, 0 if it was not given; false with an exception. */
static bool take_stamp(PyObject *const *args, Py_ssize_t count, Py_ssize_t at, uint32_t *stamp)
{
    unsigned long value = at < count ? PyLong_AsUnsignedLong(args[at]) : 0;
    if (value == ULONG_MAX && PyErr_Occurred()) {
        return false;
    }
    if (value > UINT32_MAX) {
        PyErr_Format(PyExc_ValueError, "stamp: %lu, must be 0 ... 2**32 - 1", value);
        return false;
    }
    *stamp = (uint32_t)value;
    return true;
}

static PyThreadState *let_go(size_t count)
{
    return count > GIL_KEPT ? PyEval_SaveThread() : NULL;
}

static void take_back(PyThreadState *saved)
{
    if (saved) {
        PyEval_RestoreThread(saved);
    }
}

static PyObject *done_with(struct arrays *arrays, ptrdiff_t wrong)
{
    int64_t slot = wrong >= 0 ? ((const int64_t *)arrays->views[0].buf)[wrong] : 0;
    drop_arrays(arrays);
    if (wrong >= 0) {
        return PyErr_Format(PyExc_ValueError, "slots[%zd]: %lld was not taken by us", wrong, (long long)slot);
    }
    Py_RETURN_NONE;
}

/* ---- finding ---- */

PyObject *slottable_find(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct arrays arrays;
    uint32_t stamp;
    if (!right_count("find", count, 3, 4) || !take_stamp(args, count, 3, &stamp) ||
        !take_arrays(&arrays, args, KINDS(&IDS, &SLOTS_OUT, &WORDS_OUT))) {
        return NULL;
    }
    PyThreadState *saved = let_go(arrays.count);
    size_t found = slots_find(&as_table(op)->table, arrays.views[0].buf, arrays.count, arrays.views[1].buf, arrays.views[2].buf, stamp);
    take_back(saved);
    drop_arrays(&arrays);
    return PyLong_FromSize_t(found);
}

PyObject *slottable_prefix(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct arrays arrays;
    if (!right_count("prefix", count, 1, 1) || !take_arrays(&arrays, args, KINDS(&IDS))) {
        return NULL;
    }
    PyThreadState *saved = let_go(arrays.count);
    size_t length = slots_prefix(&as_table(op)->table, arrays.views[0].buf, arrays.count);
    take_back(saved);
    drop_arrays(&arrays);
    return PyLong_FromSize_t(length);
}

PyObject *slottable_words(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct arrays arrays;
    if (!right_count("words", count, 2, 2) || !take_arrays(&arrays, args, KINDS(&SLOTS, &WORDS_OUT))) {
        return NULL;
    }
    const struct slots *table = &as_table(op)->table;
    const int64_t *slots = arrays.views[0].buf;
    uint64_t *words = arrays.views[1].buf;
    for (size_t i = 0; i < arrays.count; i++) {
        bool there = slots[i] >= 0 && (uint64_t)slots[i] < table->count;
        words[i] = there ? load_slot_word(&table->slots[slots[i]]) : 0;
    }
    drop_arrays(&arrays);
    Py_RETURN_NONE;
}

PyObject *slottable_distrusted(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct arrays arrays;
    if (!right_count("distrusted", count, 2, 2) || !take_arrays(&arrays, args, KINDS(&SLOTS, &OUT))) {
        return NULL;
    }
    const struct slots *table = &as_table(op)->table;
    const int64_t *slots = arrays.views[0].buf;
    uint8_t *out = arrays.views[1].buf;
    for (size_t i = 0; i < arrays.count; i++) {
        out[i] = slots[i] >= 0 && (uint64_t)slots[i] < table->count && slots_is_distrusted(table, slots[i]);
    }
    drop_arrays(&arrays);
    Py_RETURN_NONE;
}

/* ---- changing ---- */

PyObject *slottable_take(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct arrays arrays;
    if (!slottable_joined(op) || !right_count("take", count, 1, 2)) {
        return NULL;
    }
    unsigned long kind = count > 1 ? PyLong_AsUnsignedLong(args[1]) : 0;
    if (!slottable_kind(kind) || !take_arrays(&arrays, args, KINDS(&SLOTS_OUT))) {
        return NULL;
    }
    size_t taken = slots_take(&as_table(op)->table, arrays.views[0].buf, arrays.count, (unsigned)kind);
    drop_arrays(&arrays);
    return PyLong_FromSize_t(taken);
}

PyObject *slottable_give(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct arrays arrays;
    if (!right_count("give", count, 1, 1) || !take_arrays(&arrays, args, KINDS(&SLOTS))) {
        return NULL;
    }
    return done_with(&arrays, slots_give(&as_table(op)->table, arrays.views[0].buf, arrays.count));
}

PyObject *slottable_spoil(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct arrays arrays;
    if (!right_count("spoil", count, 1, 1) || !take_arrays(&arrays, args, KINDS(&SLOTS))) {
        return NULL;
    }
    return done_with(&arrays, slots_spoil(&as_table(op)->table, arrays.views[0].buf, arrays.count));
}

PyObject *slottable_publish(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct arrays arrays;
    uint32_t stamp;
    if (!right_count("publish", count, 3, 4) || !take_stamp(args, count, 3, &stamp) ||
        !take_arrays(&arrays, args, KINDS(&SLOTS, &IDS, &OUT))) {
        return NULL;
    }
    PyThreadState *saved = let_go(arrays.count);
    ptrdiff_t wrong =
        slots_publish(&as_table(op)->table, arrays.views[0].buf, arrays.views[1].buf, arrays.count, arrays.views[2].buf, stamp);
    take_back(saved);
    return done_with(&arrays, wrong);
}

PyObject *slottable_withdraw(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct arrays arrays;
    if (!slottable_joined(op) || !right_count("withdraw", count, 3, 3) || !take_arrays(&arrays, args, KINDS(&SLOTS, &WORDS, &OUT))) {
        return NULL;
    }
    size_t taken = slots_withdraw(&as_table(op)->table, arrays.views[0].buf, arrays.views[1].buf, arrays.count, arrays.views[2].buf);
    drop_arrays(&arrays);
    return PyLong_FromSize_t(taken);
}

/* ---- looking at all ---- */

PyObject *slottable_scan(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct arrays arrays;
    if (!right_count("scan", count, 4, 4)) {
        return NULL;
    }
    unsigned long long first = PyLong_AsUnsignedLongLong(args[0]);
    if ((first == ULLONG_MAX && PyErr_Occurred()) || !take_arrays(&arrays, args + 1, KINDS(&STATES_OUT, &IDS_OUT, &STAMPS_OUT))) {
        return NULL;
    }
    if (!slottable_range(&as_table(op)->table, first, arrays.count)) {
        drop_arrays(&arrays);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    slots_scan(&as_table(op)->table, first, arrays.count, arrays.views[0].buf, arrays.views[1].buf, arrays.views[2].buf);
    Py_END_ALLOW_THREADS
    drop_arrays(&arrays);
    Py_RETURN_NONE;
}

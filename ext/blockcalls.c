/* BlockTable: the calls with ids or slots, a batch each. */
#include "blockobject.h"

#include "move.h"
#include "views.h"

/* ---- arguments ---- */

enum { ARRAYS_MAX = 4, GIL_KEPT = 64 /* ids that take no longer than giving up the GIL and getting it back may */ };

struct array_kind {
    const char *name;
    const char *kind;
    size_t bytes; /* an element */
    bool writable;
};

static const struct array_kind IDS = {"ids", "16-byte ids", ID_BYTES, false};
static const struct array_kind SLOTS_IN = {"slots", "int64", sizeof(int64_t), false};
static const struct array_kind SLOTS_OUT = {"slots", "int64", sizeof(int64_t), true};
static const struct array_kind BYTES_OUT = {"out", "uint8", 1, true};
static const struct array_kind STATES_OUT = {"states", "uint8", 1, true};
static const struct array_kind GENERATIONS_IN = {"generations", "uint32", sizeof(uint32_t), false};
static const struct array_kind GENERATIONS_OUT = {"generations", "uint32", sizeof(uint32_t), true};

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

/* The first array, which says how many elements there are. */
static int first_view(PyObject *array, Py_buffer *view, const struct array_kind *kind, size_t *count)
{
    if (kind == &IDS) {
        return ids_view(array, view, count);
    }
    if (PyObject_GetBuffer(array, view, kind->writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) {
        return -1;
    }
    *count = (size_t)view->len / kind->bytes;
    if ((size_t)view->len % kind->bytes == 0 && (uintptr_t)view->buf % kind->bytes == 0) {
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "%s: %zd bytes, must be aligned %s", kind->name, view->len, kind->kind);
    PyBuffer_Release(view);
    return -1;
}

/* Export the arrays of a call, as many elements each; drop_arrays() gives them back. False with an exception. */
static bool take_arrays(struct arrays *arrays, PyObject *const *args, const struct array_kind *const *kinds, size_t wanted)
{
    arrays->taken = 0;
    while (arrays->taken < wanted) {
        const struct array_kind *kind = kinds[arrays->taken];
        Py_buffer *view = &arrays->views[arrays->taken];
        PyObject *array = args[arrays->taken];
        int result = arrays->taken == 0
                         ? first_view(array, view, kind, &arrays->count)
                         : array_view(array, view, arrays->count, kind->bytes, kind->writable, kind->name, kind->kind);
        if (result < 0) {
            drop_arrays(arrays);
            return false;
        }
        arrays->taken++;
    }
    return true;
}

static bool wrong_count(const char *name, Py_ssize_t count, Py_ssize_t least, Py_ssize_t most)
{
    if (count >= least && count <= most) {
        return false;
    }
    if (least == most) {
        PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments (%zd given)", name, most, count);
    } else {
        PyErr_Format(PyExc_TypeError, "%s() takes %zd to %zd arguments (%zd given)", name, least, most, count);
    }
    return true;
}

/* Check the object and the number of arguments, and export the arrays. */
static bool begin(struct blocktable_object *self, bool joined, const char *name, Py_ssize_t count, PyObject *const *args,
                  const struct array_kind *const *kinds, size_t wanted, struct arrays *arrays)
{
    return blocktable_enter(self, joined) && !wrong_count(name, count, (Py_ssize_t)wanted, (Py_ssize_t)wanted) &&
           take_arrays(arrays, args, kinds, wanted);
}

static PyThreadState *let_go(bool really)
{
    return really ? PyEval_SaveThread() : NULL;
}

static void take_back(PyThreadState *saved)
{
    if (saved) {
        PyEval_RestoreThread(saved);
    }
}

#define KINDS(...) ((const struct array_kind *const[]){__VA_ARGS__})

/* ---- lookups ---- */

PyObject *blocktable_probe(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    struct arrays arrays;
    if (!begin(self, false, "probe", count, args, KINDS(&IDS, &BYTES_OUT), 2, &arrays)) {
        return NULL;
    }
    PyThreadState *saved = let_go(arrays.count > GIL_KEPT);
    size_t found = table_probe(&self->table, arrays.views[0].buf, arrays.count, arrays.views[1].buf);
    take_back(saved);
    drop_arrays(&arrays);
    return PyLong_FromSize_t(found);
}

PyObject *blocktable_prefix(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    struct arrays arrays;
    if (!begin(self, false, "prefix", count, args, KINDS(&IDS), 1, &arrays)) {
        return NULL;
    }
    PyThreadState *saved = let_go(arrays.count > GIL_KEPT);
    size_t length = table_prefix(&self->table, arrays.views[0].buf, arrays.count);
    take_back(saved);
    drop_arrays(&arrays);
    return PyLong_FromSize_t(length);
}

PyObject *blocktable_watch(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    struct arrays arrays;
    if (!begin(self, false, "watch", count, args, KINDS(&SLOTS_IN, &GENERATIONS_IN, &BYTES_OUT), 3, &arrays)) {
        return NULL;
    }
    PyThreadState *saved = let_go(arrays.count > GIL_KEPT);
    table_watch(&self->table, arrays.views[0].buf, arrays.views[1].buf, arrays.count, arrays.views[2].buf);
    take_back(saved);
    drop_arrays(&arrays);
    Py_RETURN_NONE;
}

/* ---- leases and claims ---- */

PyObject *blocktable_lease(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    struct arrays arrays;
    if (!begin(self, true, "lease", count, args, KINDS(&IDS, &SLOTS_OUT), 2, &arrays)) {
        return NULL;
    }
    PyThreadState *saved = let_go(arrays.count > GIL_KEPT);
    size_t leased = table_lease(&self->table, arrays.views[0].buf, arrays.count, arrays.views[1].buf);
    take_back(saved);
    drop_arrays(&arrays);
    return PyLong_FromSize_t(leased);
}

PyObject *blocktable_claim(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    struct arrays arrays;
    const struct array_kind *const *kinds = KINDS(&IDS, &SLOTS_OUT, &STATES_OUT, &GENERATIONS_OUT);
    if (!begin(self, true, "claim", count, args, kinds, 4, &arrays)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS /* it may wait for the mutex */
    table_claim(&self->table, arrays.views[0].buf, arrays.count, arrays.views[1].buf, arrays.views[2].buf, arrays.views[3].buf);
    Py_END_ALLOW_THREADS
    drop_arrays(&arrays);
    Py_RETURN_NONE;
}

PyObject *blocktable_drop(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    struct arrays arrays;
    size_t dropped;
    if (!begin(self, false, "drop", count, args, KINDS(&IDS), 1, &arrays)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    dropped = table_drop(&self->table, arrays.views[0].buf, arrays.count);
    Py_END_ALLOW_THREADS
    drop_arrays(&arrays);
    return PyLong_FromSize_t(dropped);
}

/* Give the arrays back and None; or the error that slots[wrong] is not ours. */
static PyObject *end_of_ours(struct arrays *arrays, ptrdiff_t wrong)
{
    const int64_t *slots = arrays->views[0].buf;
    if (wrong >= 0) {
        PyErr_Format(PyExc_ValueError, "slots[%zd]: %lld, must be a slot that this process holds", (Py_ssize_t)wrong,
                     (long long)slots[wrong]);
    }
    drop_arrays(arrays);
    if (wrong >= 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyObject *blocktable_rename(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    struct arrays arrays;
    ptrdiff_t wrong;
    if (!begin(self, true, "rename", count, args, KINDS(&SLOTS_IN, &IDS, &STATES_OUT), 3, &arrays)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    wrong = table_rename(&self->table, arrays.views[0].buf, arrays.views[1].buf, arrays.count, arrays.views[2].buf);
    Py_END_ALLOW_THREADS
    return end_of_ours(&arrays, wrong);
}

PyObject *blocktable_release(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    struct arrays arrays;
    if (!begin(self, true, "release", count, args, KINDS(&SLOTS_IN), 1, &arrays)) {
        return NULL;
    }
    PyThreadState *saved = let_go(arrays.count > GIL_KEPT);
    ptrdiff_t wrong = table_release(&self->table, arrays.views[0].buf, arrays.count);
    take_back(saved);
    return end_of_ours(&arrays, wrong);
}

PyObject *blocktable_clean(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    struct arrays arrays;
    if (!begin(self, true, "clean", count, args, KINDS(&SLOTS_IN), 1, &arrays)) {
        return NULL;
    }
    PyThreadState *saved = let_go(arrays.count > GIL_KEPT);
    ptrdiff_t wrong = table_clean(&self->table, arrays.views[0].buf, arrays.count);
    take_back(saved);
    return end_of_ours(&arrays, wrong);
}

PyObject *blocktable_publish(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    struct arrays arrays;
    if (wrong_count("publish", count, 1, 3)) {
        return NULL;
    }
    int dirty = count > 1 ? PyObject_IsTrue(args[1]) : 0;
    int keep_lease = count > 2 ? PyObject_IsTrue(args[2]) : 0;
    if (dirty < 0 || keep_lease < 0 || !begin(self, true, "publish", 1, args, KINDS(&SLOTS_IN), 1, &arrays)) {
        return NULL;
    }
    PyThreadState *saved = let_go(arrays.count > GIL_KEPT);
    ptrdiff_t wrong = table_publish(&self->table, arrays.views[0].buf, arrays.count, dirty, keep_lease);
    take_back(saved);
    return end_of_ours(&arrays, wrong);
}

PyObject *blocktable_fail(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    struct arrays arrays;
    if (wrong_count("fail", count, 2, 2)) {
        return NULL;
    }
    long reason = PyLong_AsLong(args[1]);
    if (reason == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (reason < 0 || reason > REASON_MAX) {
        return PyErr_Format(PyExc_ValueError, "reason: %ld, must be 0 ... %d", reason, REASON_MAX);
    }
    if (!begin(self, true, "fail", 1, args, KINDS(&SLOTS_IN), 1, &arrays)) {
        return NULL;
    }
    ptrdiff_t wrong;
    Py_BEGIN_ALLOW_THREADS
    wrong = table_fail(&self->table, arrays.views[0].buf, arrays.count, (uint8_t)reason);
    Py_END_ALLOW_THREADS
    return end_of_ours(&arrays, wrong);
}

/* ---- copies ---- */

/* From a slot to a caller's memory. */
struct extent {
    uint64_t row, offset, address, length;
};

static bool fits(const struct blocktable_object *self, uint64_t offset, uint64_t length)
{
    return offset <= self->slot_bytes && length <= self->slot_bytes - offset;
}

/* Lease all, copy, release. Whether all were READY and the gate stayed open. `slots` has room for `count`. */
static bool copy_extents(struct blocktable_object *self, const char *ids, size_t count, int64_t *slots,
                         const struct extent *extents, size_t extent_count, uint32_t *gate)
{
    const char *arena = self->arena.buf;
    bool good = table_lease(&self->table, ids, count, slots) == count;
    for (size_t i = 0; good && i < extent_count; i++) {
        const struct extent *extent = &extents[i];
        const char *source = arena + (uint64_t)slots[extent->row] * self->slot_bytes + extent->offset;
        good = move_gated(gate, pointer_to(extent->address), source, extent->length);
    }
    table_release(&self->table, slots, count);
    return good;
}

static bool has_arena(const struct blocktable_object *self)
{
    if (!self->arena.obj) {
        PyErr_SetString(PyExc_RuntimeError, "BlockTable: set_arena() first");
        return false;
    }
    return true;
}

static bool take_numbers(PyObject *const *args, Py_ssize_t count, uint64_t *numbers)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        numbers[i] = PyLong_AsUnsignedLongLong(args[i]);
        if (numbers[i] == UINT64_MAX && PyErr_Occurred()) {
            return false;
        }
    }
    return true;
}

PyObject *blocktable_copy_out(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    struct arrays arrays;
    uint64_t numbers[4] = {0}; /* offset, address, length, gate */
    int64_t slot;
    bool good;
    if (wrong_count("copy_out", count, 4, 5) || !has_arena(self) || !take_numbers(args + 1, count - 1, numbers)) {
        return NULL;
    }
    struct extent extent = {0, numbers[0], numbers[1], numbers[2]};
    if (!fits(self, extent.offset, extent.length)) {
        return PyErr_Format(PyExc_ValueError, "offset: %llu and length: %llu, must be within a slot of %llu bytes",
                            (unsigned long long)extent.offset, (unsigned long long)extent.length,
                            (unsigned long long)self->slot_bytes);
    }
    if (!begin(self, true, "copy_out", 1, args, KINDS(&IDS), 1, &arrays)) {
        return NULL;
    }
    if (arrays.count != 1) {
        PyErr_Format(PyExc_ValueError, "id: %zd bytes, must be %d", arrays.views[0].len, ID_BYTES);
        drop_arrays(&arrays);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    good = copy_extents(self, arrays.views[0].buf, 1, &slot, &extent, 1, pointer_to(numbers[3]));
    Py_END_ALLOW_THREADS
    drop_arrays(&arrays);
    return PyBool_FromLong(good);
}

/* Rows of (k, 4) uint64, all of them within their slots; -1 with an exception. */
static int extents_view(const struct blocktable_object *self, PyObject *table, size_t ids, Py_buffer *view)
{
    if (PyObject_GetBuffer(table, view, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    const struct extent *extents = view->buf;
    size_t count = (size_t)view->len / sizeof(extents[0]);
    if ((size_t)view->len % sizeof(extents[0]) || (uintptr_t)view->buf % _Alignof(struct extent)) {
        PyErr_Format(PyExc_ValueError, "extents: %zd bytes, must be aligned rows of 4 uint64", view->len);
        PyBuffer_Release(view);
        return -1;
    }
    for (size_t i = 0; i < count; i++) {
        if (extents[i].row >= ids || !fits(self, extents[i].offset, extents[i].length)) {
            PyErr_Format(PyExc_ValueError, "extents[%zu]: must name one of %zu ids and lie within a slot of %llu bytes", i, ids,
                         (unsigned long long)self->slot_bytes);
            PyBuffer_Release(view);
            return -1;
        }
    }
    return 0;
}

PyObject *blocktable_gather(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    struct arrays arrays;
    Py_buffer extents;
    uint64_t gate = 0;
    if (wrong_count("gather", count, 2, 3) || !has_arena(self) || !take_numbers(args + 2, count - 2, &gate) ||
        !begin(self, true, "gather", 1, args, KINDS(&IDS), 1, &arrays)) {
        return NULL;
    }
    int64_t *slots = PyMem_New(int64_t, arrays.count ? arrays.count : 1);
    PyObject *result = NULL;
    if (!slots) {
        PyErr_NoMemory();
    } else if (extents_view(self, args[1], arrays.count, &extents) == 0) {
        bool good;
        Py_BEGIN_ALLOW_THREADS
        good = copy_extents(self, arrays.views[0].buf, arrays.count, slots, extents.buf,
                            (size_t)extents.len / sizeof(struct extent), pointer_to(gate));
        Py_END_ALLOW_THREADS
        PyBuffer_Release(&extents);
        result = PyBool_FromLong(good);
    }
    PyMem_Free(slots);
    drop_arrays(&arrays);
    return result;
}

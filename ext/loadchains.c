/* LoadChains: the chains of a batch of loads, in one call, and whether all is well, in another. */
#include "ids.h"
#include "loadplan.h"
#include "native.h"

#include <string.h>

enum { ROWS_WITH_GIL = 512 /* some ten microseconds */ };

struct loadchains_object {
    PyObject_HEAD
    struct load_layout layout;
};

/* ---- arguments ---- */

enum { VIEWS_MAX = 9 };

struct views {
    Py_buffer taken[VIEWS_MAX];
    size_t count;
};

static void release(struct views *views)
{
    while (views->count) {
        PyBuffer_Release(&views->taken[--views->count]);
    }
}

/* The memory of an array of 8-byte numbers (or of records of them, or ids), or NULL with an exception. */
static void *take(struct views *views, PyObject *array, bool writable, const char *name, size_t unit, size_t *count)
{
    Py_buffer *view = &views->taken[views->count];
    if (PyObject_GetBuffer(array, view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    views->count++;
    bool aligned = unit == ID_BYTES || (uintptr_t)view->buf % sizeof(uint64_t) == 0; /* ids are bytes */
    if ((size_t)view->len % unit || !aligned) {
        PyErr_Format(PyExc_ValueError, "%s: %zd bytes, must be a multiple of %zu, aligned to 8", name, view->len, unit);
        return NULL;
    }
    *count = (size_t)view->len / unit;
    return view->buf;
}

/* As many elements as there must be. */
static void *take_exactly(struct views *views, PyObject *array, bool writable, const char *name, size_t unit, size_t count)
{
    size_t found;
    void *memory = take(views, array, writable, name, unit, &found);
    if (memory && found != count) {
        PyErr_Format(PyExc_ValueError, "%s: %zu elements, must be %zu", name, found, count);
        return NULL;
    }
    return memory;
}

/* The shards, the table and what both calls know of its columns. False with an exception. */
static bool take_table(const struct load_layout *layout, struct views *views, struct load_batch *batch, PyObject *table,
                       PyObject *wanted, PyObject *shards, PyObject *runs)
{
    size_t requests, reads;
    batch->shards = take(views, shards, false, "shards", sizeof(int64_t), &batch->n);
    batch->row = batch->shards ? take(views, runs, false, "runs", sizeof(struct run), &batch->runs) : NULL;
    batch->table = batch->row ? take(views, table, true, "table", sizeof(struct request), &requests) : NULL;
    batch->wanted = batch->table ? take(views, wanted, true, "wanted", sizeof(int64_t), &reads) : NULL;
    if (!batch->wanted) {
        return false;
    }
    for (size_t i = 0; i < batch->n; i++) {
        if (batch->shards[i] < -1 || batch->shards[i] >= (int64_t)layout->shards) {
            PyErr_Format(PyExc_ValueError, "shards: %lld, must be -1 ... %lld", (long long)batch->shards[i],
                         (long long)layout->shards - 1);
            return false;
        }
    }
    size_t n = batch->n ? batch->n : 1;
    batch->reads = reads / n;
    batch->steps = requests / n;
    if (batch->reads < 1 || batch->reads > READS_MAX || batch->reads * batch->n != reads ||
        batch->steps * batch->n != requests || batch->steps != STEPS_AROUND + batch->reads + batch->runs) {
        PyErr_Format(PyExc_ValueError, "table: %zu requests and %zu in wanted, must be for each of %zu rows 3 + %zu and its reads, 1 or 2",
                     requests, reads, batch->n, batch->runs);
        return false;
    }
    return true;
}

/* Do the runs lie in the row, in its pieces and in as many shards as it may have? */
static bool check_runs(const struct load_layout *layout, const struct load_batch *batch)
{
    uint64_t shards = 0, most = layout->shards;
    for (size_t i = 0; i < batch->n && most > 1; i++) {
        most = batch->shards[i] >= 0 ? 1 : most;
    }
    for (size_t m = 0; m < batch->runs; m++) {
        const struct run *run = &batch->row[m];
        bool inside = run->piece >= 0 && (uint64_t)run->piece < batch->pieces && run->offset >= 0 && run->length >= 0 &&
                      (uint64_t)run->offset <= layout->block_bytes && (uint64_t)run->length <= layout->block_bytes - (uint64_t)run->offset;
        shards += m == 0 || !run->continues;
        if (!inside || shards > most) {
            PyErr_Format(PyExc_ValueError, "runs: the one at %zu leaves the row or its pieces", m);
            return false;
        }
    }
    return true;
}

/* ---- the type ---- */

PyDoc_STRVAR(write_doc, "write($self, table, wanted, vectors, shards, bases, addresses, lengths, gates, runs, /)\n--\n\n"
                        "Write all but the first and the last step of a chain a row.");

static PyObject *loadchains_write(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    enum { TABLE, WANTED, VECTORS, SHARDS, BASES, ADDRESSES, LENGTHS, GATES, RUNS, ARGUMENTS };
    const struct load_layout *layout = &((struct loadchains_object *)op)->layout;
    if (count != ARGUMENTS) {
        return PyErr_Format(PyExc_TypeError, "write() takes %d arguments (%zd given)", ARGUMENTS, count);
    }
    struct views views = {.count = 0};
    struct load_batch batch = {0};
    bool good = take_table(layout, &views, &batch, args[TABLE], args[WANTED], args[SHARDS], args[RUNS]);
    size_t n = batch.n;
    batch.lengths = good ? take(&views, args[LENGTHS], false, "lengths", sizeof(uint64_t), &batch.pieces) : NULL;
    good = batch.lengths &&
           (batch.addresses = take_exactly(&views, args[ADDRESSES], false, "addresses", sizeof(uint64_t), n * batch.pieces)) &&
           (batch.bases = take_exactly(&views, args[BASES], false, "bases", sizeof(uint64_t), n)) &&
           (batch.gates = take_exactly(&views, args[GATES], false, "gates", sizeof(uint64_t), n)) &&
           (args[VECTORS] == Py_None || (batch.vectors = take_exactly(&views, args[VECTORS], true, "vectors", sizeof(struct iovec),
                                                                      n * (1 + batch.pieces)))) &&
           check_runs(layout, &batch);
    for (size_t i = 0; good && i < n; i++) {
        good = load_reads(layout, batch.shards[i], batch.vectors != NULL) <= batch.reads;
        if (!good) {
            PyErr_Format(PyExc_ValueError, "wanted: row %zu takes two reads", i);
        }
    }
    if (good && n <= ROWS_WITH_GIL) {
        load_write(layout, &batch);
    } else if (good) {
        Py_BEGIN_ALLOW_THREADS
        load_write(layout, &batch);
        Py_END_ALLOW_THREADS
    }
    release(&views);
    return good ? Py_NewRef(Py_None) : NULL;
}

PyDoc_STRVAR(all_good_doc, "all_good($self, table, wanted, ids, shards, bases, runs, /)\n--\n\n"
                           "Whether every chain has read what it should, the header says what it must, and the checksums agree.");

static PyObject *loadchains_all_good(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    enum { TABLE, WANTED, IDS, SHARDS, BASES, RUNS, ARGUMENTS };
    const struct load_layout *layout = &((struct loadchains_object *)op)->layout;
    if (count != ARGUMENTS) {
        return PyErr_Format(PyExc_TypeError, "all_good() takes %d arguments (%zd given)", ARGUMENTS, count);
    }
    struct views views = {.count = 0};
    struct load_batch batch = {.pieces = SIZE_MAX};
    bool taken = take_table(layout, &views, &batch, args[TABLE], args[WANTED], args[SHARDS], args[RUNS]) &&
                 (batch.ids = take_exactly(&views, args[IDS], false, "ids", ID_BYTES, batch.n)) &&
                 (batch.bases = take_exactly(&views, args[BASES], false, "bases", sizeof(uint64_t), batch.n)) &&
                 check_runs(layout, &batch);
    bool good = false;
    if (taken && batch.n <= ROWS_WITH_GIL) {
        good = load_all_good(layout, &batch);
    } else if (taken) {
        Py_BEGIN_ALLOW_THREADS
        good = load_all_good(layout, &batch);
        Py_END_ALLOW_THREADS
    }
    release(&views);
    return taken ? PyBool_FromLong(good) : NULL;
}

PyDoc_STRVAR(reads_doc, "reads($self, shards, direct, /)\n--\n\nHow many reads a chain needs for these rows, 1 or 2.");

static PyObject *loadchains_reads(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    const struct load_layout *layout = &((struct loadchains_object *)op)->layout;
    if (count != 2) {
        return PyErr_Format(PyExc_TypeError, "reads() takes 2 arguments (%zd given)", count);
    }
    int direct = PyObject_IsTrue(args[1]);
    struct views views = {.count = 0};
    size_t n = 0, most = 1;
    const int64_t *shards = direct < 0 ? NULL : take(&views, args[0], false, "shards", sizeof(int64_t), &n);
    for (size_t i = 0; shards && i < n && most == 1; i++) {
        most = load_reads(layout, shards[i], direct);
    }
    release(&views);
    return shards ? PyLong_FromSize_t(most) : NULL;
}

/* 0, or -1 with an exception. */
static int set_up(struct load_layout *layout, const Py_buffer *header, const Py_ssize_t *sizes)
{
    layout->shards = header->len >= ENTRIES_AT ? (uint64_t)(header->len - ENTRIES_AT) / ENTRY_BYTES : 0;
    if (layout->shards == 0 || (size_t)header->len != ENTRIES_AT + layout->shards * ENTRY_BYTES) {
        PyErr_Format(PyExc_ValueError, "header: %zd bytes, must be %d and %d for each shard", header->len, ENTRIES_AT, ENTRY_BYTES);
        return -1;
    }
    if (sizes[0] < header->len || sizes[0] % PAGE_BYTES || sizes[1] <= 0 || sizes[2] / (Py_ssize_t)layout->shards != sizes[1] ||
        sizes[2] % sizes[1] || sizes[3] < 0) {
        PyErr_Format(PyExc_ValueError, "header_bytes %zd, shard_bytes %zd, block_bytes %zd, gap %zd: no layout of %llu shards", sizes[0],
                     sizes[1], sizes[2], sizes[3], (unsigned long long)layout->shards);
        return -1;
    }
    layout->header = PyMem_Malloc((size_t)header->len);
    if (!layout->header) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(layout->header, header->buf, (size_t)header->len);
    layout->header_used = (uint64_t)header->len;
    layout->header_bytes = (uint64_t)sizes[0];
    layout->shard_bytes = (uint64_t)sizes[1];
    layout->block_bytes = (uint64_t)sizes[2];
    layout->gap = (uint64_t)sizes[3];
    return 0;
}

static PyObject *loadchains_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"header", "header_bytes", "shard_bytes", "block_bytes", "gap", NULL};
    Py_buffer header;
    Py_ssize_t sizes[4];
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "y*nnnn:LoadChains", names, &header, &sizes[0], &sizes[1], &sizes[2], &sizes[3])) {
        return NULL;
    }
    struct loadchains_object *self = (struct loadchains_object *)type->tp_alloc(type, 0);
    if (self && set_up(&self->layout, &header, sizes) < 0) {
        Py_CLEAR(self);
    }
    PyBuffer_Release(&header);
    return (PyObject *)self;
}

static void loadchains_dealloc(PyObject *op)
{
    PyMem_Free(((struct loadchains_object *)op)->layout.header);
    PyTypeObject *type = Py_TYPE(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyMethodDef loadchains_methods[] = {
    {"write", METHOD(loadchains_write), METH_FASTCALL, write_doc},
    {"all_good", METHOD(loadchains_all_good), METH_FASTCALL, all_good_doc},
    {"reads", METHOD(loadchains_reads), METH_FASTCALL, reads_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot loadchains_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("LoadChains(header, header_bytes, shard_bytes, block_bytes, gap)\n--\n\n"
                                  "Writes the chains that load blocks of one layout, one row of each, and looks at what became of them.")},
    {Py_tp_new, loadchains_new},
    {Py_tp_dealloc, loadchains_dealloc},
    {Py_tp_methods, loadchains_methods},
    {0, NULL},
};

PyType_Spec loadchains_spec = {
    .name = "ucm_async._native.LoadChains",
    .basicsize = sizeof(struct loadchains_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = loadchains_slots,
};

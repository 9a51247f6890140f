/* IdTable: a set-associative map from 16-byte ids to numbers, without a Python object an entry.
 *
 * Ten entries share a bucket of four cache lines; a byte of each one's hash in the first line tells which to compare. A full
 * bucket forgets an entry that was not looked up since the hand last passed (CLOCK). The GIL is the lock: a call holds it for
 * at most IDS_AT_ONCE ids (tens of microseconds) at a time, and other threads get in between.
 */
#include "ids.h"
#include "views.h"

enum { WAYS = 10, GROUP = 16, IDS_AT_ONCE = 2048, LINE_BYTES = 64 };

struct entry {
    struct id id;
    uint64_t value;
};

struct bucket {
    uint8_t tags[WAYS]; /* 0 = free */
    uint16_t referenced; /* a bit an entry: looked up since the hand passed */
    uint8_t hand;
    uint8_t unused[3];
    struct entry entries[WAYS];
};
_Static_assert(sizeof(struct bucket) == 4 * LINE_BYTES, "a bucket is four cache lines");

#define CAPACITY_MAX ((Py_ssize_t)1 << 40)

/* Where an id belongs. */
struct place {
    struct bucket *bucket;
    uint8_t tag;
};

struct idtable_object {
    PyObject_HEAD
    struct bucket *buckets;
    uint64_t bucket_count;
    size_t length;
};

/* ---- one entry ---- */

static inline struct place place_of(const struct idtable_object *self, struct id id)
{
    uint64_t hash = hash_id(id);
    uint8_t tag = (uint8_t)hash;
    return (struct place){
        .bucket = &self->buckets[spread(hash, self->bucket_count)],
        .tag = tag ? tag : 1,
    };
}

static inline int find(struct place place, struct id id)
{
    for (int way = 0; way < WAYS; way++) {
        const struct entry *entry = &place.bucket->entries[way];
        if (place.bucket->tags[way] == place.tag && entry->id.low == id.low && entry->id.high == id.high) {
            return way;
        }
    }
    return -1;
}

static inline uint16_t bit(int way)
{
    return (uint16_t)(1u << way);
}

static uint64_t get_one(struct place place, struct id id)
{
    int way = find(place, id);
    if (way < 0) {
        return 0;
    }
    place.bucket->referenced |= bit(way);
    return place.bucket->entries[way].value;
}

static int free_way(const struct bucket *bucket)
{
    for (int way = 0; way < WAYS; way++) {
        if (!bucket->tags[way]) {
            return way;
        }
    }
    return -1;
}

/* Choose the entry to forget, and move the hand past it. */
static int victim(struct bucket *bucket)
{
    int way = bucket->hand;
    while (bucket->referenced & bit(way)) {
        bucket->referenced &= (uint16_t)~bit(way);
        way = (way + 1) % WAYS;
    }
    bucket->hand = (uint8_t)((way + 1) % WAYS);
    return way;
}

static void put_one(struct idtable_object *self, struct place place, struct id id, uint64_t value)
{
    struct bucket *bucket = place.bucket;
    int way = find(place, id);
    if (way < 0) {
        way = free_way(bucket);
        if (way >= 0) {
            self->length++;
        } else {
            way = victim(bucket);
        }
        bucket->tags[way] = place.tag;
        bucket->referenced &= (uint16_t)~bit(way);
    }
    bucket->entries[way] = (struct entry){id, value};
}

static bool discard_one(struct idtable_object *self, struct place place, struct id id)
{
    int way = find(place, id);
    if (way < 0) {
        return false;
    }
    place.bucket->tags[way] = 0;
    self->length--;
    return true;
}

/* ---- batches ---- */

enum verb { GET, PUT, DISCARD, PREFIX };

struct work {
    enum verb verb;
    const char *ids;
    uint64_t *words; /* values in or out; NULL for DISCARD and PREFIX */
    size_t count;
    size_t hits;
};

static void fetch(const struct bucket *bucket)
{
    for (int line = 0; line < 4; line++) {
        __builtin_prefetch((const char *)bucket + line * LINE_BYTES, 1);
    }
}

/* Returns false if there is no need to go on. */
static bool work_one(struct idtable_object *self, struct work *work, size_t i, struct place place)
{
    struct id id = load_id(work->ids + i * ID_BYTES);
    switch (work->verb) {
    case PUT:
        put_one(self, place, id, work->words[i]);
        return true;
    case DISCARD:
        work->hits += discard_one(self, place, id);
        return true;
    case GET:
        work->words[i] = get_one(place, id);
        work->hits += work->words[i] != 0;
        return true;
    default:
        if (!get_one(place, id)) {
            return false;
        }
        work->hits++;
        return true;
    }
}

/* ids[from .. to), in groups whose buckets are fetched together. */
static bool work_range(struct idtable_object *self, struct work *work, size_t from, size_t to)
{
    for (size_t start = from; start < to; start += GROUP) {
        size_t size = to - start < GROUP ? to - start : GROUP;
        struct place places[GROUP];
        for (size_t i = 0; i < size; i++) {
            places[i] = place_of(self, load_id(work->ids + (start + i) * ID_BYTES));
            fetch(places[i].bucket);
        }
        for (size_t i = 0; i < size; i++) {
            if (!work_one(self, work, start + i, places[i])) {
                return false;
            }
        }
    }
    return true;
}

static void work_all(struct idtable_object *self, struct work *work)
{
    for (size_t from = 0; from < work->count; from += IDS_AT_ONCE) {
        size_t left = work->count - from;
        if (!work_range(self, work, from, from + (left < IDS_AT_ONCE ? left : IDS_AT_ONCE))) {
            return;
        }
        if (left > IDS_AT_ONCE) {
            Py_BEGIN_ALLOW_THREADS /* let others in; the table is whole between two ids */
            Py_END_ALLOW_THREADS
        }
    }
}

/* ---- arguments ---- */

/* The verbs with one argument. The number of hits, or -1. */
static Py_ssize_t run_ids(PyObject *op, PyObject *ids, enum verb verb)
{
    Py_buffer view;
    struct work work = {.verb = verb};
    if (ids_view(ids, &view, &work.count) < 0) {
        return -1;
    }
    work.ids = view.buf;
    work_all((struct idtable_object *)op, &work);
    PyBuffer_Release(&view);
    return (Py_ssize_t)work.hits;
}

static bool all_set(const uint64_t *values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!values[i]) {
            PyErr_Format(PyExc_ValueError, "values[%zu]: 0, must not be zero", i);
            return false;
        }
    }
    return true;
}

/* The verbs with ids and numbers. The number of hits, or -1. */
static Py_ssize_t run_words(PyObject *op, PyObject *const *args, Py_ssize_t count, enum verb verb)
{
    const char *name = verb == GET ? "get" : "put";
    Py_buffer ids, words;
    struct work work = {.verb = verb};
    if (count != 2) {
        PyErr_Format(PyExc_TypeError, "%s() takes 2 arguments (%zd given)", name, count);
        return -1;
    }
    if (ids_view(args[0], &ids, &work.count) < 0) {
        return -1;
    }
    if (array_view(args[1], &words, work.count, sizeof(uint64_t), verb == GET, verb == GET ? "out" : "values", "uint64") < 0) {
        PyBuffer_Release(&ids);
        return -1;
    }
    work.ids = ids.buf;
    work.words = words.buf;
    bool good = verb == GET || all_set(work.words, work.count);
    if (good) {
        work_all((struct idtable_object *)op, &work);
    }
    PyBuffer_Release(&words);
    PyBuffer_Release(&ids);
    return good ? (Py_ssize_t)work.hits : -1;
}

static PyObject *number(Py_ssize_t value)
{
    return value < 0 ? NULL : PyLong_FromSsize_t(value);
}

static PyObject *idtable_get(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    return number(run_words(op, args, count, GET));
}

static PyObject *idtable_put(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    if (run_words(op, args, count, PUT) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *idtable_discard(PyObject *op, PyObject *ids)
{
    return number(run_ids(op, ids, DISCARD));
}

static PyObject *idtable_prefix(PyObject *op, PyObject *ids)
{
    return number(run_ids(op, ids, PREFIX));
}

/* ---- the object ---- */

static size_t table_bytes(const struct idtable_object *self)
{
    return self->bucket_count * sizeof(struct bucket);
}

static PyObject *idtable_clear(PyObject *op, PyObject *Py_UNUSED(none))
{
    struct idtable_object *self = (struct idtable_object *)op;
    /* The pages read as zeros afterwards, and their memory is free at once. */
    if (madvise(self->buckets, table_bytes(self), MADV_DONTNEED) < 0) {
        memset(self->buckets, 0, table_bytes(self));
    }
    self->length = 0;
    Py_RETURN_NONE;
}

static PyObject *idtable_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"capacity", NULL};
    Py_ssize_t capacity;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "n:IdTable", names, &capacity)) {
        return NULL;
    }
    if (capacity < 1 || capacity > CAPACITY_MAX) {
        PyErr_Format(PyExc_ValueError, "capacity: %zd, must be 1 ... %lld", capacity, (long long)CAPACITY_MAX);
        return NULL;
    }
    struct idtable_object *self = (struct idtable_object *)type->tp_alloc(type, 0);
    if (!self) {
        return NULL;
    }
    /* Ids do not fall evenly: with a quarter more room, a table of `capacity` ids has forgotten one in twenty, not one in eight. */
    uint64_t room = (uint64_t)capacity + (uint64_t)capacity / 4;
    self->bucket_count = (room + WAYS - 1) / WAYS;
    void *mapped = mmap(NULL, table_bytes(self), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->buckets = mapped;
    /* Ids fall anywhere: without this, each of the first ones would pay for a page of its own. */
    size_t bytes = table_bytes(self);
    Py_BEGIN_ALLOW_THREADS
    (void)madvise(mapped, bytes, MADV_HUGEPAGE);
    (void)madvise(mapped, bytes, MADV_POPULATE_WRITE);
    Py_END_ALLOW_THREADS
    return (PyObject *)self;
}

static void idtable_dealloc(PyObject *op)
{
    struct idtable_object *self = (struct idtable_object *)op;
    if (self->buckets) {
        munmap(self->buckets, table_bytes(self));
    }
    PyTypeObject *type = Py_TYPE(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static Py_ssize_t idtable_length(PyObject *op)
{
    return (Py_ssize_t)((struct idtable_object *)op)->length;
}

static PyObject *idtable_capacity(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(((struct idtable_object *)op)->bucket_count * WAYS);
}

static PyMethodDef idtable_methods[] = {
    {"get", METHOD(idtable_get), METH_FASTCALL,
     PyDoc_STR("get($self, ids, out, /)\n--\n\nout[i] = value of ids[i], 0 if absent; returns how many were found.")},
    {"put", METHOD(idtable_put), METH_FASTCALL,
     PyDoc_STR("put($self, ids, values, /)\n--\n\nRemember values (not zero) for ids; the last of equal ids counts.")},
    {"discard", idtable_discard, METH_O, PyDoc_STR("discard($self, ids, /)\n--\n\nForget ids; returns how many were there.")},
    {"prefix", idtable_prefix, METH_O,
     PyDoc_STR("prefix($self, ids, /)\n--\n\nLength of the longest run ids[0..k) that is present.")},
    {"clear", idtable_clear, METH_NOARGS, PyDoc_STR("clear($self)\n--\n\nForget everything.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef idtable_attributes[] = {
    {"capacity", idtable_capacity, NULL, PyDoc_STR("Entries that there is room for, at least what was asked for."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot idtable_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("IdTable(capacity)\n--\n\nA bounded set-associative map from 16-byte ids to non-zero uint64.")},
    {Py_tp_new, idtable_new},
    {Py_tp_dealloc, idtable_dealloc},
    {Py_tp_methods, idtable_methods},
    {Py_tp_getset, idtable_attributes},
    {Py_mp_length, idtable_length},
    {0, NULL},
};

PyType_Spec idtable_spec = {
    .name = "ucm_async._native.IdTable",
    .basicsize = sizeof(struct idtable_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = idtable_slots,
};

/* SlotTable: the Python face of a table of slots. */
#include "slotobject.h"

bool slottable_joined(PyObject *op)
{
    if (as_table(op)->table.number) {
        return true;
    }
    PyErr_SetString(PyExc_RuntimeError, "SlotTable: not joined");
    return false;
}

bool slottable_range(const struct slots *table, unsigned long long first, unsigned long long count)
{
    if (first <= table->count && count <= table->count - first) {
        return true;
    }
    PyErr_Format(PyExc_ValueError, "first, count: %llu and %llu, there are %u slots", first, count, table->count);
    return false;
}

static PyObject *slottable_join(PyObject *op, PyObject *argument)
{
    long number = PyLong_AsLong(argument);
    if (number == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (number < 1 || number > SLOT_OWNERS_MAX) {
        return PyErr_Format(PyExc_ValueError, "number: %ld, must be 1 ... %d", number, SLOT_OWNERS_MAX);
    }
    as_table(op)->table.number = (unsigned)number;
    Py_RETURN_NONE;
}

/* ---- ranges ---- */

static bool take_range(PyObject *op, PyObject *args, unsigned long long *first, unsigned long long *count)
{
    return PyArg_ParseTuple(args, "KK", first, count) && slottable_range(&as_table(op)->table, *first, *count);
}

bool slottable_kind(unsigned long kind)
{
    if (kind < SLOT_KINDS) {
        return true;
    }
    if (!PyErr_Occurred()) {
        PyErr_Format(PyExc_ValueError, "kind: %lu, must be 0 ... %d", kind, SLOT_KINDS - 1);
    }
    return false;
}

static PyObject *slottable_add(PyObject *op, PyObject *args)
{
    unsigned long long first, count;
    unsigned long kind = 0;
    if (!PyArg_ParseTuple(args, "KK|k", &first, &count, &kind) || !slottable_range(&as_table(op)->table, first, count) ||
        !slottable_kind(kind)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    slots_add(&as_table(op)->table, first, count, (unsigned)kind);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *slottable_seize(PyObject *op, PyObject *args)
{
    unsigned long long first, count;
    uint64_t left;
    if (!slottable_joined(op) || !take_range(op, args, &first, &count)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    left = slots_seize(&as_table(op)->table, first, count);
    Py_END_ALLOW_THREADS
    return PyLong_FromUnsignedLongLong(left);
}

static PyObject *slottable_clear(PyObject *op, PyObject *args)
{
    unsigned long long first, count;
    if (!take_range(op, args, &first, &count)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    slots_clear(&as_table(op)->table, first, count);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *slottable_distrust(PyObject *op, PyObject *args)
{
    unsigned long long first, count;
    if (!take_range(op, args, &first, &count)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    slots_distrust(&as_table(op)->table, first, count);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *slottable_repair(PyObject *op, PyObject *owner)
{
    long number = owner == Py_None ? 0 : PyLong_AsLong(owner);
    if (number == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (number < 0 || number > SLOT_OWNERS_MAX || (number == 0 && owner != Py_None)) {
        return PyErr_Format(PyExc_ValueError, "owner: %ld, must be 1 ... %d, or None", number, SLOT_OWNERS_MAX);
    }
    uint64_t given;
    Py_BEGIN_ALLOW_THREADS
    given = slots_repair(&as_table(op)->table, number == 0, (unsigned)number);
    Py_END_ALLOW_THREADS
    return PyLong_FromUnsignedLongLong(given);
}

/* ---- numbers ---- */

static PyObject *slottable_next_sequence(PyObject *op, PyObject *argument)
{
    unsigned long long count = PyLong_AsUnsignedLongLong(argument);
    if (count == ULLONG_MAX && PyErr_Occurred()) {
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(__atomic_fetch_add(&as_table(op)->table.header->sequence, count, __ATOMIC_RELAXED));
}

static PyObject *slottable_counts(PyObject *op, PyObject *Py_UNUSED(none))
{
    long long counts[SLOT_STATES];
    for (unsigned state = 0; state < SLOT_STATES; state++) {
        counts[state] = __atomic_load_n(&as_table(op)->table.header->counts[state], __ATOMIC_RELAXED);
    }
    return Py_BuildValue("{sLsLsLsLsL}", "absent", counts[SLOT_ABSENT], "free", counts[SLOT_FREE], "taken", counts[SLOT_TAKEN], "stored",
                         counts[SLOT_STORED], "bad", counts[SLOT_BAD]);
}

static PyObject *slottable_slots(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(as_table(op)->table.count);
}

static PyObject *slottable_number(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(as_table(op)->table.number);
}

/* ---- the object ---- */

/* Whether a table can have so many slots, in segments of so many, which is filled in if it is 0: one segment. False with an exception. */
static bool check_slots(Py_ssize_t slots, Py_ssize_t *segment_slots)
{
    if (slots < 1 || (uint64_t)slots > SLOTS_MAX) {
        PyErr_Format(PyExc_ValueError, "slots: %zd, must be 1 ... %llu", slots, (unsigned long long)SLOTS_MAX);
        return false;
    }
    *segment_slots = *segment_slots ? *segment_slots : slots;
    if (*segment_slots < 0 || *segment_slots > slots) {
        PyErr_Format(PyExc_ValueError, "segment_slots: %zd, must be 1 ... %zd, the slots", *segment_slots, slots);
        return false;
    }
    return true;
}

static PyObject *slottable_bytes_needed(PyObject *Py_UNUSED(none), PyObject *args)
{
    Py_ssize_t slots, segment_slots = 0;
    if (!PyArg_ParseTuple(args, "n|n", &slots, &segment_slots) || !check_slots(slots, &segment_slots)) {
        return NULL;
    }
    return PyLong_FromSize_t(slots_bytes((uint64_t)slots, (uint64_t)segment_slots));
}

static int attach(struct slottable_object *self, Py_ssize_t slots, Py_ssize_t segment_slots, int create)
{
    size_t needed = slots_bytes((uint64_t)slots, (uint64_t)segment_slots);
    if ((size_t)self->memory.len < needed || (uintptr_t)self->memory.buf % sizeof(uint64_t)) {
        PyErr_Format(PyExc_ValueError, "memory: %zd bytes, must be %zu aligned to 8", self->memory.len, needed);
        return -1;
    }
    enum slots_attached result;
    Py_BEGIN_ALLOW_THREADS
    result = slots_attach(&self->table, self->memory.buf, (uint32_t)slots, (uint32_t)segment_slots, create);
    Py_END_ALLOW_THREADS
    const struct slots_header *header = self->table.header;
    switch (result) {
    case SLOTS_ATTACHED:
        return 0;
    case SLOTS_NOT_READY:
        PyErr_SetString(PyExc_BlockingIOError, "memory: no table was made in it, or not to the end");
        return -1;
    case SLOTS_OTHER_VERSION:
        PyErr_Format(PyExc_ValueError, "memory: a table of version %u, must be %u", header->version, SLOTS_VERSION);
        return -1;
    case SLOTS_OTHER_COUNT:
        PyErr_Format(PyExc_ValueError, "memory: a table of %llu slots in segments of %llu, must be %zd and %zd",
                     (unsigned long long)header->slots, (unsigned long long)header->segment_slots, slots, segment_slots);
        return -1;
    default:
        PyErr_SetString(PyExc_ValueError, "memory: no table of slots");
        return -1;
    }
}

static PyObject *slottable_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"memory", "slots", "create", "segment_slots", NULL};
    PyObject *memory;
    Py_ssize_t slots, segment_slots = 0;
    int create = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "On|pn:SlotTable", names, &memory, &slots, &create, &segment_slots) ||
        !check_slots(slots, &segment_slots)) {
        return NULL;
    }
    struct slottable_object *self = (struct slottable_object *)type->tp_alloc(type, 0);
    if (!self) {
        return NULL;
    }
    if (PyObject_GetBuffer(memory, &self->memory, PyBUF_WRITABLE) < 0 || attach(self, slots, segment_slots, create) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void slottable_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyBuffer_Release(&as_table(op)->memory);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyMethodDef slottable_methods[] = {
    {"bytes_needed", slottable_bytes_needed, METH_VARARGS | METH_STATIC,
     PyDoc_STR("bytes_needed(slots, segment_slots=0, /)\n--\n\nBytes of memory for a table of `slots` slots.")},
    {"join", slottable_join, METH_O, PyDoc_STR("join($self, number, /)\n--\n\nTake slots under this number from now on.")},
    {"find", METHOD(slottable_find), METH_FASTCALL,
     PyDoc_STR("find($self, ids, slots, words, stamp=0, /)\n--\n\nSlot and word of each id, -1 and 0 where it is not stored; returns how many are.")},
    {"prefix", METHOD(slottable_prefix), METH_FASTCALL,
     PyDoc_STR("prefix($self, ids, /)\n--\n\nLength of the longest run ids[0..k) that is stored.")},
    {"words", METHOD(slottable_words), METH_FASTCALL,
     PyDoc_STR("words($self, slots, words, /)\n--\n\nThe words of slots as they are now; 0 for -1.")},
    {"take", METHOD(slottable_take), METH_FASTCALL,
     PyDoc_STR("take($self, slots, kind=0, /)\n--\n\nTake free slots of a kind; returns how many, at most as many as `slots` has room for.")},
    {"give", METHOD(slottable_give), METH_FASTCALL, PyDoc_STR("give($self, slots, /)\n--\n\nSlots that we took are free again.")},
    {"spoil", METHOD(slottable_spoil), METH_FASTCALL,
     PyDoc_STR("spoil($self, slots, /)\n--\n\nSlots that we took are bad: nobody gets them any more.")},
    {"publish", METHOD(slottable_publish), METH_FASTCALL,
     PyDoc_STR("publish($self, slots, ids, out, stamp=0, /)\n--\n\nSlots that we took hold blocks: 0, or 1 if another slot has the block, 2 for no room.")},
    {"withdraw", METHOD(slottable_withdraw), METH_FASTCALL,
     PyDoc_STR("withdraw($self, slots, words, out, /)\n--\n\nTake stored slots whose words are these still; returns how many.")},
    {"add", slottable_add, METH_VARARGS,
     PyDoc_STR("add($self, first, count, kind=0, /)\n--\n\nAbsent segments are there now, of this kind, and their slots free.")},
    {"distrust", slottable_distrust, METH_VARARGS,
     PyDoc_STR("distrust($self, first, count, /)\n--\n\nWhat is in the slots of a range now, or on its way there, may never reach the medium.")},
    {"distrusted", METHOD(slottable_distrusted), METH_FASTCALL,
     PyDoc_STR("distrusted($self, slots, out, /)\n--\n\nWhether that was said of what is in slots now.")},
    {"seize", slottable_seize, METH_VARARGS,
     PyDoc_STR("seize($self, first, count, /)\n--\n\nTake every slot of a range; returns how many others have.")},
    {"clear", slottable_clear, METH_VARARGS, PyDoc_STR("clear($self, first, count, /)\n--\n\nOf a range, the slots that we took are absent now.")},
    {"repair", slottable_repair, METH_O,
     PyDoc_STR("repair($self, owner, /)\n--\n\nFree what `owner` had taken, None: what anybody had; returns how many slots.")},
    {"scan", METHOD(slottable_scan), METH_FASTCALL,
     PyDoc_STR("scan($self, first, states, ids, stamps, /)\n--\n\nWhat the slots from `first` on hold.")},
    {"next_sequence", slottable_next_sequence, METH_O,
     PyDoc_STR("next_sequence($self, count, /)\n--\n\nThe first of `count` numbers that nobody else gets.")},
    {"counts", slottable_counts, METH_NOARGS, PyDoc_STR("counts($self)\n--\n\nSlots by state.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef slottable_attributes[] = {
    {"slots", slottable_slots, NULL, PyDoc_STR("How many there can be."), NULL},
    {"number", slottable_number, NULL, PyDoc_STR("Under which slots are taken, 0 before join()."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slottable_type_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("SlotTable(memory, slots, create=False, segment_slots=0)\n--\n\nWhich block is in which slot of a file, for all processes that map the memory.")},
    {Py_tp_new, slottable_new},
    {Py_tp_dealloc, slottable_dealloc},
    {Py_tp_methods, slottable_methods},
    {Py_tp_getset, slottable_attributes},
    {0, NULL},
};

PyType_Spec slottable_spec = {
    .name = "ucm_async._native.SlotTable",
    .basicsize = sizeof(struct slottable_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slottable_type_slots,
};

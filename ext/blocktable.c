/* BlockTable: the object, and what it tells of a table. */
#include "blockobject.h"

#include <errno.h>
#include <unistd.h>

bool blocktable_enter(struct blocktable_object *self, bool joined)
{
    if (getpid() != self->owner) {
        PyErr_Format(PyExc_RuntimeError, "BlockTable: made in process %ld, cannot be used after fork", (long)self->owner);
        return false;
    }
    if (joined && self->table.number < 0) {
        PyErr_SetString(PyExc_RuntimeError, "BlockTable: join() first");
        return false;
    }
    return true;
}

struct blocktable_object *blocktable_to_watch(PyObject *op, PyTypeObject *type)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    if (!PyObject_TypeCheck(op, type)) {
        PyErr_Format(PyExc_TypeError, "table: %s, must be a BlockTable", Py_TYPE(op)->tp_name);
        return NULL;
    }
    if (!blocktable_enter(self, true)) {
        return NULL;
    }
    if (self->watched) {
        PyErr_SetString(PyExc_RuntimeError, "table: it has a Watcher already");
        return NULL;
    }
    return self;
}

/* An OSError, or what Python has for that number. */
static PyObject *os_error(int number, const char *why)
{
    PyObject *args = Py_BuildValue("(is)", number, why);
    if (args) {
        PyErr_SetObject(PyExc_OSError, args);
        Py_DECREF(args);
    }
    return NULL;
}

static PyObject *timed_out(void)
{
    return os_error(ETIMEDOUT, "BlockTable: another process kept the table locked");
}

/* ---- construction ---- */

static bool check_slots(Py_ssize_t slots)
{
    if (slots >= 1 && slots <= (Py_ssize_t)TABLE_SLOTS_MAX) {
        return true;
    }
    PyErr_Format(PyExc_ValueError, "slots: %zd, must be 1 ... %llu", slots, (unsigned long long)TABLE_SLOTS_MAX);
    return false;
}

static const char *policy_of(const struct segment *segment)
{
    return segment->policy < POLICIES ? policies[segment->policy].name : "";
}

static void explain(const struct table *table, enum attach_result result)
{
    const struct segment *segment = table->segment;
    switch (result) {
    case ATTACH_NOT_READY:
        os_error(EAGAIN, "memory: no table was made there, or its making is not finished");
        return;
    case ATTACH_FOREIGN:
        PyErr_SetString(PyExc_ValueError, "memory: what is there is no table of blocks");
        return;
    case ATTACH_VERSION:
        PyErr_Format(PyExc_ValueError, "memory: the table is of version %u (mutex of %u bytes), must be %u (%zu)", segment->version,
                     segment->mutex_bytes, TABLE_VERSION, sizeof(pthread_mutex_t));
        return;
    case ATTACH_SLOTS:
        PyErr_Format(PyExc_ValueError, "slots: %u, the table in memory has %u", table->slot_count, segment->slots);
        return;
    case ATTACH_POLICY:
        PyErr_Format(PyExc_ValueError, "policy: '%s', the table in memory has '%s'", table->policy->name, policy_of(segment));
        return;
    default:
        PyErr_NoMemory();
    }
}

static int attach(struct blocktable_object *self, Py_ssize_t slots, const struct policy *policy, bool create)
{
    Py_ssize_t needed = (Py_ssize_t)table_bytes((uint64_t)slots);
    if (self->memory.len < needed || (uintptr_t)self->memory.buf % sizeof(struct slot)) {
        PyErr_Format(PyExc_ValueError, "memory: %zd bytes, must be at least %zd for %zd slots, aligned to %zu", self->memory.len, needed,
                     slots, sizeof(struct slot));
        return -1;
    }
    enum attach_result result;
    Py_BEGIN_ALLOW_THREADS
    result = table_attach(&self->table, self->memory.buf, (uint32_t)slots, policy, create);
    Py_END_ALLOW_THREADS
    if (result != ATTACHED) {
        explain(&self->table, result);
        return -1;
    }
    self->attached = true;
    return 0;
}

static PyObject *blocktable_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"memory", "slots", "policy", "create", NULL};
    PyObject *memory;
    Py_ssize_t slots;
    const char *name = "s3fifo";
    int create = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "On|sp:BlockTable", names, &memory, &slots, &name, &create) ||
        !check_slots(slots)) {
        return NULL;
    }
    const struct policy *policy = policy_named(name);
    if (!policy) {
        return PyErr_Format(PyExc_ValueError, "policy: '%s', must be 's3fifo', 'sieve', 'lru' or 'fifo'", name);
    }
    struct blocktable_object *self = (struct blocktable_object *)type->tp_alloc(type, 0);
    if (!self) {
        return NULL;
    }
    self->owner = getpid();
    if (PyObject_GetBuffer(memory, &self->memory, PyBUF_WRITABLE) < 0 || attach(self, slots, policy, create) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void blocktable_dealloc(PyObject *op)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    if (self->attached) {
        if (getpid() == self->owner) {
            Py_BEGIN_ALLOW_THREADS
            table_leave(&self->table);
            Py_END_ALLOW_THREADS
        }
        table_detach(&self->table);
    }
    if (self->memory.obj) {
        PyBuffer_Release(&self->memory);
    }
    if (self->arena.obj) {
        PyBuffer_Release(&self->arena);
    }
    PyTypeObject *type = Py_TYPE(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *blocktable_bytes_needed(PyObject *Py_UNUSED(none), PyObject *number)
{
    Py_ssize_t slots = PyLong_AsSsize_t(number);
    if ((slots == -1 && PyErr_Occurred()) || !check_slots(slots)) {
        return NULL;
    }
    return PyLong_FromSize_t(table_bytes((uint64_t)slots));
}

static PyObject *blocktable_describe(PyObject *Py_UNUSED(none), PyObject *memory)
{
    Py_buffer view;
    struct segment segment;
    if (PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    bool enough = view.len >= TABLE_USER_OFFSET + TABLE_USER_BYTES;
    if (enough) {
        memcpy(&segment, view.buf, sizeof(segment));
    } else {
        PyErr_Format(PyExc_ValueError, "memory: %zd bytes, must be at least %d", view.len, TABLE_USER_OFFSET + TABLE_USER_BYTES);
    }
    PyBuffer_Release(&view);
    if (!enough) {
        return NULL;
    }
    return Py_BuildValue("{sNsNsIsIss}", "magic", PyBool_FromLong(segment.magic == TABLE_MAGIC), "ready", PyBool_FromLong(segment.ready == 1),
                         "version", segment.version, "slots", segment.slots, "policy", policy_of(&segment));
}

static PyObject *blocktable_set_arena(PyObject *op, PyObject *args)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    PyObject *memory;
    Py_ssize_t slot_bytes;
    if (!blocktable_enter(self, false) || !PyArg_ParseTuple(args, "On:set_arena", &memory, &slot_bytes)) {
        return NULL;
    }
    if (self->arena.obj) {
        PyErr_SetString(PyExc_RuntimeError, "BlockTable: it has its arena already");
        return NULL;
    }
    if (PyObject_GetBuffer(memory, &self->arena, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    if (slot_bytes < 1 || self->arena.len / slot_bytes < (Py_ssize_t)self->table.slot_count) {
        PyErr_Format(PyExc_ValueError, "memory: %zd bytes, must be at least %u slots of slot_bytes: %zd", self->arena.len,
                     self->table.slot_count, slot_bytes);
        PyBuffer_Release(&self->arena);
        return NULL;
    }
    self->slot_bytes = (uint64_t)slot_bytes;
    Py_RETURN_NONE;
}

/* ---- processes ---- */

static PyObject *blocktable_join(PyObject *op, PyObject *args)
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    int pid;
    unsigned long long start_time;
    if (!blocktable_enter(self, false) || !PyArg_ParseTuple(args, "iK:join", &pid, &start_time)) {
        return NULL;
    }
    if (self->table.number >= 0) {
        PyErr_SetString(PyExc_RuntimeError, "BlockTable: joined already");
        return NULL;
    }
    int number;
    Py_BEGIN_ALLOW_THREADS
    number = table_join(&self->table, pid, start_time);
    Py_END_ALLOW_THREADS
    if (number == -2) {
        return timed_out();
    }
    if (number < 0) {
        return os_error(EUSERS, "BlockTable: the process table is full");
    }
    return PyLong_FromLong(number);
}

static PyObject *blocktable_leave(PyObject *op, PyObject *Py_UNUSED(none))
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    int others;
    if (!blocktable_enter(self, false)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    others = table_leave(&self->table);
    Py_END_ALLOW_THREADS
    return others < 0 ? timed_out() : PyLong_FromLong(others);
}

static PyObject *blocktable_processes(PyObject *op, PyObject *Py_UNUSED(none))
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    PyObject *list = blocktable_enter(self, false) ? PyList_New(0) : NULL;
    for (int number = 0; list && number < PROCESSES_MAX; number++) {
        const struct process *process = &self->table.processes[number];
        if (__atomic_load_n(&process->state, __ATOMIC_ACQUIRE) == PROCESS_FREE) {
            continue;
        }
        PyObject *entry = Py_BuildValue("(iiK)", number, __atomic_load_n(&process->pid, __ATOMIC_RELAXED),
                                        (unsigned long long)__atomic_load_n(&process->start_time, __ATOMIC_RELAXED));
        if (!entry || PyList_Append(list, entry) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(entry);
    }
    return list;
}

static PyObject *blocktable_reap(PyObject *op, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"", "pid", "start_time", "rest_s", NULL};
    struct blocktable_object *self = (struct blocktable_object *)op;
    int number, pid = 0;
    unsigned long long start_time = 0;
    long rest_s = 0;
    if (!blocktable_enter(self, false) ||
        !PyArg_ParseTupleAndKeywords(args, keywords, "i|iKl:reap", names, &number, &pid, &start_time, &rest_s)) {
        return NULL;
    }
    if (rest_s < 0 || rest_s > REST_S_MAX) {
        return PyErr_Format(PyExc_ValueError, "rest_s: %ld, must be 0 ... %d", rest_s, REST_S_MAX);
    }
    if (number < 0 || number >= PROCESSES_MAX || number == self->table.number) {
        return PyErr_Format(PyExc_ValueError, "number: %d, must be that of another process, 0 ... %d", number, PROCESSES_MAX - 1);
    }
    const struct process expected = {.pid = pid, .start_time = start_time};
    uint64_t changed;
    bool finished;
    Py_BEGIN_ALLOW_THREADS
    changed = table_reap(&self->table, number, pid ? &expected : NULL, (uint32_t)rest_s, PATIENCE_SHORT_NS, &finished);
    Py_END_ALLOW_THREADS
    return finished ? PyLong_FromUnsignedLongLong(changed) : PyLong_FromLong(-1);
}

static PyObject *blocktable_repair(PyObject *op, PyObject *Py_UNUSED(none))
{
    struct blocktable_object *self = (struct blocktable_object *)op;
    bool locked;
    if (!blocktable_enter(self, false)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    locked = table_lock(&self->table, PATIENCE_LONG_NS);
    if (locked) {
        table_rebuild(&self->table);
        table_unlock(&self->table);
    }
    Py_END_ALLOW_THREADS
    if (!locked) {
        return timed_out();
    }
    Py_RETURN_NONE;
}

/* ---- the type ---- */

static PyObject *blocktable_slot_count(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(((struct blocktable_object *)op)->table.slot_count);
}

static PyObject *blocktable_policy(PyObject *op, void *Py_UNUSED(closure))
{
    return PyUnicode_FromString(((struct blocktable_object *)op)->table.policy->name);
}

static PyObject *blocktable_number(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(((struct blocktable_object *)op)->table.number);
}

static PyObject *blocktable_published(PyObject *op, void *Py_UNUSED(closure))
{
    const struct segment *segment = ((struct blocktable_object *)op)->table.segment;
    return PyLong_FromUnsignedLong(__atomic_load_n(&segment->published, __ATOMIC_SEQ_CST));
}

static PyMethodDef blocktable_methods[] = {
    {"bytes_needed", blocktable_bytes_needed, METH_O | METH_STATIC,
     PyDoc_STR("bytes_needed(slots, /)\n--\n\nBytes of memory for a table of `slots` slots.")},
    {"describe", blocktable_describe, METH_O | METH_STATIC,
     PyDoc_STR("describe(memory, /)\n--\n\nWhat the header in `memory` says, nothing of it checked.")},
    {"set_arena", blocktable_set_arena, METH_VARARGS,
     PyDoc_STR("set_arena($self, memory, slot_bytes, /)\n--\n\nWhere the bytes of the slots are, for copy_out() and gather().")},
    {"join", blocktable_join, METH_VARARGS,
     PyDoc_STR("join($self, pid, start_time, /)\n--\n\nEnter the process table; returns the number there.")},
    {"leave", blocktable_leave, METH_NOARGS,
     PyDoc_STR("leave($self)\n--\n\nGive back everything that this process holds; returns how many others are in.")},
    {"processes", blocktable_processes, METH_NOARGS,
     PyDoc_STR("processes($self)\n--\n\n(number, pid, start_time) of each process.")},
    {"reap", METHOD(blocktable_reap), METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("reap($self, number, /, pid=0, start_time=0, rest_s=0)\n--\n\n"
               "Take back what a dead process holds; returns how many slots changed, -1: call again.")},
    {"repair", blocktable_repair, METH_NOARGS, PyDoc_STR("repair($self)\n--\n\nRebuild index and lists from the slots.")},
    {"probe", METHOD(blocktable_probe), METH_FASTCALL,
     PyDoc_STR("probe($self, ids, out, /)\n--\n\nout[i] = 1 where ids[i] is READY; returns how many are.")},
    {"prefix", METHOD(blocktable_prefix), METH_FASTCALL,
     PyDoc_STR("prefix($self, ids, /)\n--\n\nLength of the longest run ids[0..k) that is READY.")},
    {"lease", METHOD(blocktable_lease), METH_FASTCALL,
     PyDoc_STR("lease($self, ids, slots, /)\n--\n\nLease what is READY: slots[i], or -1; returns how many.")},
    {"claim", METHOD(blocktable_claim), METH_FASTCALL,
     PyDoc_STR("claim($self, ids, slots, states, generations, /)\n--\n\nLease each id, or get a slot to fill, or whom to watch.")},
    {"publish", METHOD(blocktable_publish), METH_FASTCALL,
     PyDoc_STR("publish($self, slots, dirty=False, keep_lease=False, /)\n--\n\nWhat this process filled is READY.")},
    {"fail", METHOD(blocktable_fail), METH_FASTCALL,
     PyDoc_STR("fail($self, slots, reason, /)\n--\n\nWhat this process was to fill is FAILED.")},
    {"release", METHOD(blocktable_release), METH_FASTCALL, PyDoc_STR("release($self, slots, /)\n--\n\nGive leases back.")},
    {"watch", METHOD(blocktable_watch), METH_FASTCALL,
     PyDoc_STR("watch($self, slots, generations, out, /)\n--\n\nout[i] = how slots[i] is now, if it has generations[i] still.")},
    {"clean", METHOD(blocktable_clean), METH_FASTCALL,
     PyDoc_STR("clean($self, slots, /)\n--\n\nLeased slots are stored below now.")},
    {"rename", METHOD(blocktable_rename), METH_FASTCALL,
     PyDoc_STR("rename($self, slots, ids, states, /)\n--\n\nGive slots that this process fills other ids, where nobody has them.")},
    {"drop", METHOD(blocktable_drop), METH_FASTCALL,
     PyDoc_STR("drop($self, ids, /)\n--\n\nNo lookup finds them any more; returns how many there were.")},
    {"copy_out", METHOD(blocktable_copy_out), METH_FASTCALL,
     PyDoc_STR("copy_out($self, id, offset, address, length, gate=0, /)\n--\n\nLease, copy, release; False where it is not READY.")},
    {"gather", METHOD(blocktable_gather), METH_FASTCALL,
     PyDoc_STR("gather($self, ids, extents, gate=0, /)\n--\n\ncopy_out() for several, if all are READY.")},
    {"statistics", blocktable_statistics, METH_NOARGS, PyDoc_STR("statistics($self)\n--\n\nCounters.")},
    {"count_states", blocktable_count_states, METH_NOARGS,
     PyDoc_STR("count_states($self)\n--\n\nSlots by state; looks at every slot.")},
    {"entries", blocktable_entries, METH_NOARGS, PyDoc_STR("entries($self)\n--\n\nA record of 32 bytes a slot.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef blocktable_attributes[] = {
    {"slots", blocktable_slot_count, NULL, PyDoc_STR("How many there are."), NULL},
    {"policy", blocktable_policy, NULL, PyDoc_STR("Name of the eviction policy."), NULL},
    {"number", blocktable_number, NULL, PyDoc_STR("Of this process in the process table, -1 outside."), NULL},
    {"published", blocktable_published, NULL, PyDoc_STR("Counts what watchers wait for."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot blocktable_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("BlockTable(memory, slots, policy='s3fifo', create=False)\n--\n\n"
                                  "Which block is in which slot of a cache, for all processes that map the same memory.")},
    {Py_tp_new, blocktable_new},
    {Py_tp_dealloc, blocktable_dealloc},
    {Py_tp_methods, blocktable_methods},
    {Py_tp_getset, blocktable_attributes},
    {0, NULL},
};

PyType_Spec blocktable_spec = {
    .name = "ucm_async._native.BlockTable",
    .basicsize = sizeof(struct blocktable_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = blocktable_slots,
};

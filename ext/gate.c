/* Gate: lets copies touch a caller's memory while it is open. */
#include "native.h"

#include "gate.h"

#include <sched.h>
#include <unistd.h>

enum { SPINS = 256, YIELDS = 64, NAP_US = 20 };

/* Whoever is inside leaves after one piece of a copy, so this is microseconds, unless its thread lost the processor. */
void gate_close(uint32_t *state)
{
    uint32_t seen = __atomic_or_fetch(state, GATE_CLOSED, __ATOMIC_ACQ_REL);
    for (unsigned round = 0; seen != GATE_CLOSED; round++) {
        if (round < SPINS) {
            cpu_relax();
        } else if (round < SPINS + YIELDS) {
            sched_yield();
        } else {
            usleep(NAP_US);
        }
        seen = __atomic_load_n(state, __ATOMIC_ACQUIRE);
    }
}

struct gate_object {
    PyObject_HEAD
    uint32_t state;
    pid_t owner;
};

static PyObject *gate_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, keywords, ":Gate", names)) {
        return NULL;
    }
    struct gate_object *self = (struct gate_object *)type->tp_alloc(type, 0);
    if (self) {
        self->owner = getpid();
    }
    return (PyObject *)self;
}

static void gate_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *gate_close_method(PyObject *op, PyObject *Py_UNUSED(none))
{
    struct gate_object *self = (struct gate_object *)op;
    if (getpid() != self->owner) {
        /* After a fork: the threads that were inside do not exist here, nobody would ever leave. */
        __atomic_store_n(&self->state, GATE_CLOSED, __ATOMIC_RELEASE);
        Py_RETURN_NONE;
    }
    Py_BEGIN_ALLOW_THREADS
    gate_close(&self->state);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *gate_address(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromVoidPtr(&((struct gate_object *)op)->state);
}

static PyObject *gate_closed(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(gate_is_closed(&((struct gate_object *)op)->state));
}

static PyMethodDef gate_methods[] = {
    {"close", gate_close_method, METH_NOARGS,
     PyDoc_STR("close($self)\n--\n\nRefuse further entries and return when nobody is inside. Idempotent, thread-safe.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef gate_attributes[] = {
    {"address", gate_address, NULL, PyDoc_STR("For REQUEST.gate. The gate must outlive the requests."), NULL},
    {"closed", gate_closed, NULL, PyDoc_STR("True once close() was called."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot gate_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("Gate()\n--\n\nLets copies touch a caller's memory while it is open.")},
    {Py_tp_new, gate_new},
    {Py_tp_dealloc, gate_dealloc},
    {Py_tp_methods, gate_methods},
    {Py_tp_getset, gate_attributes},
    {0, NULL},
};

PyType_Spec gate_spec = {
    .name = "ucm_async._native.Gate",
    .basicsize = sizeof(struct gate_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = gate_slots,
};

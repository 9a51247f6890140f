/* SlotTable: what its two files share. */
#ifndef UCM_SLOTOBJECT_H
#define UCM_SLOTOBJECT_H

#include "slots.h"
#include "views.h"

struct slottable_object {
    PyObject_HEAD
    Py_buffer memory;
    struct slots table;
};

static inline struct slottable_object *as_table(PyObject *op)
{
    return (struct slottable_object *)op;
}

/* False with an exception if it may not take slots, or if there are no such slots, or no such kind of them. */
bool slottable_joined(PyObject *op);
bool slottable_range(const struct slots *table, unsigned long long first, unsigned long long count);
bool slottable_kind(unsigned long kind);

/* The calls with arrays, slotcalls.c. */
PyObject *slottable_find(PyObject *op, PyObject *const *args, Py_ssize_t count);
PyObject *slottable_prefix(PyObject *op, PyObject *const *args, Py_ssize_t count);
PyObject *slottable_words(PyObject *op, PyObject *const *args, Py_ssize_t count);
PyObject *slottable_distrusted(PyObject *op, PyObject *const *args, Py_ssize_t count);
PyObject *slottable_take(PyObject *op, PyObject *const *args, Py_ssize_t count);
PyObject *slottable_give(PyObject *op, PyObject *const *args, Py_ssize_t count);
PyObject *slottable_spoil(PyObject *op, PyObject *const *args, Py_ssize_t count);
PyObject *slottable_publish(PyObject *op, PyObject *const *args, Py_ssize_t count);
PyObject *slottable_withdraw(PyObject *op, PyObject *const *args, Py_ssize_t count);
PyObject *slottable_scan(PyObject *op, PyObject *const *args, Py_ssize_t count);

#endif

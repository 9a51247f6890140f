/* The Python face of a table, which two files make up: blocktable.c and blockcalls.c. */
#ifndef UCM_BLOCKOBJECT_H
#define UCM_BLOCKOBJECT_H

#include "native.h"

#include "blocktable.h"

struct blocktable_object {
    PyObject_HEAD
    struct table table;
    bool attached;
    bool watched; /* it has a Watcher, whose bit in the segment stands for one thread only */
    pid_t owner;
    Py_buffer memory; /* exported while the object lives */
    Py_buffer arena;  /* the same; .obj NULL: none yet */
    uint64_t slot_bytes;
};

/* False with an exception: after a fork, or (with `joined`) outside the process table. */
bool blocktable_enter(struct blocktable_object *self, bool joined);

/* Methods with ids or slots, in blockcalls.c. */
PyObject *blocktable_probe(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *blocktable_prefix(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *blocktable_lease(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *blocktable_claim(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *blocktable_publish(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *blocktable_fail(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *blocktable_release(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *blocktable_watch(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *blocktable_clean(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *blocktable_rename(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *blocktable_drop(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *blocktable_copy_out(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *blocktable_gather(PyObject *self, PyObject *const *args, Py_ssize_t count);

/* In blockreport.c. */
PyObject *blocktable_statistics(PyObject *self, PyObject *none);
PyObject *blocktable_count_states(PyObject *self, PyObject *none);
PyObject *blocktable_entries(PyObject *self, PyObject *none);

/* For Watcher: `op` as a BlockTable that is joined and has none yet; NULL with an exception. */
struct blocktable_object *blocktable_to_watch(PyObject *op, PyTypeObject *type);

#endif

/* Exports: the buffers of a caller's rows, taken in one call and held together. */
#include "native.h"

#include <stdbool.h>

struct exports_object {
    PyObject_HEAD
    Py_buffer *views; /* NULL once released */
    Py_ssize_t count;
};

/* Release every view. What a release runs may come back here: it finds nothing left. */
static void release_all(struct exports_object *self)
{
    Py_buffer *views = self->views;
    Py_ssize_t count = self->count;
    self->views = NULL;
    self->count = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyBuffer_Release(&views[i]);
    }
    PyMem_Free(views);
}

static int exports_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct exports_object *self = (struct exports_object *)op;
    Py_VISIT(Py_TYPE(op));
    for (Py_ssize_t i = 0; i < self->count; i++) {
        Py_VISIT(self->views[i].obj);
    }
    return 0;
}

static int exports_clear(PyObject *op)
{
    release_all((struct exports_object *)op);
    return 0;
}

static void exports_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    release_all((struct exports_object *)op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *exports_release(PyObject *op, PyObject *Py_UNUSED(none))
{
    release_all((struct exports_object *)op);
    Py_RETURN_NONE;
}

static PyObject *exports_released(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((struct exports_object *)op)->views == NULL);
}

static PyMethodDef exports_methods[] = {
    {"release", exports_release, METH_NOARGS, PyDoc_STR("release($self)\n--\n\nGive the buffers back. Idempotent.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef exports_attributes[] = {
    {"released", exports_released, NULL, PyDoc_STR("True once release() was called."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot exports_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("Buffer exports of a caller's memory, held until release() or deallocation.")},
    {Py_tp_traverse, exports_traverse},
    {Py_tp_clear, exports_clear},
    {Py_tp_dealloc, exports_dealloc},
    {Py_tp_methods, exports_methods},
    {Py_tp_getset, exports_attributes},
    {0, NULL},
};

PyType_Spec exports_spec = {
    .name = "ucm_async._native.Exports",
    .basicsize = sizeof(struct exports_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = exports_slots,
};

/* Replace the current exception by one of `type` with args (index, why). */
static void blame(PyObject *type, Py_ssize_t index, PyObject *why)
{
    PyObject *args = why ? Py_BuildValue("(nO)", index, why) : NULL;
    if (args) {
        PyErr_SetObject(type, args);
        Py_DECREF(args);
    }
}

/* GetBuffer of row `index` failed: say so in the terms of the contract. Other exceptions (MemoryError ...) stay as they are. */
static void explain(PyObject *row, Py_ssize_t index)
{
    bool supported = PyObject_CheckBuffer(row);
    if (supported && !PyErr_ExceptionMatches(PyExc_BufferError) && !PyErr_ExceptionMatches(PyExc_ValueError)) {
        return;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    PyObject *why = supported ? PyObject_Str(value)
                              : PyUnicode_FromFormat("%s does not support the buffer protocol", Py_TYPE(row)->tp_name);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    blame(supported ? PyExc_BufferError : PyExc_TypeError, index, why);
    Py_XDECREF(why);
}

/* Take the views of rows[0 .. n) and note where they are. On failure none stays. */
static int take_views(struct exports_object *self, PyObject *rows, bool writable, uint64_t *addresses, uint64_t *sizes)
{
    /* Without PyBUF_STRIDES an exporter must refuse what is not C-contiguous. */
    int flags = writable ? PyBUF_WRITABLE : PyBUF_SIMPLE;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(rows);
    for (Py_ssize_t i = 0; i < count; i++) {
        /* Exporters run code of their own, which might change a list under us. */
        if (i >= PySequence_Fast_GET_SIZE(rows)) {
            PyErr_SetString(PyExc_RuntimeError, "rows changed while they were exported");
            return -1;
        }
        PyObject *row = Py_NewRef(PySequence_Fast_GET_ITEM(rows, i));
        Py_buffer *view = &self->views[i];
        if (PyObject_GetBuffer(row, view, flags) < 0) {
            explain(row, i);
            Py_DECREF(row);
            return -1;
        }
        self->count = i + 1;
        addresses[i] = (uint64_t)(uintptr_t)view->buf;
        sizes[i] = (uint64_t)view->len;
        Py_DECREF(row);
    }
    return 0;
}

/* A writable view of `count` uint64. */
static int words_view(PyObject *array, Py_buffer *view, Py_ssize_t count, const char *name)
{
    if (PyObject_GetBuffer(array, view, PyBUF_WRITABLE) < 0) {
        return -1;
    }
    if (view->len == count * (Py_ssize_t)sizeof(uint64_t) && (uintptr_t)view->buf % _Alignof(uint64_t) == 0) {
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "%s: %zd bytes, must be %zd aligned uint64", name, view->len, count);
    PyBuffer_Release(view);
    return -1;
}

static int fill(struct exports_object *self, PyObject *rows, bool writable, PyObject *addresses, PyObject *sizes)
{
    Py_buffer where, much;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(rows);
    if (words_view(addresses, &where, count, "addresses") < 0) {
        return -1;
    }
    if (words_view(sizes, &much, count, "sizes") < 0) {
        PyBuffer_Release(&where);
        return -1;
    }
    int result = take_views(self, rows, writable, where.buf, much.buf);
    PyBuffer_Release(&where);
    PyBuffer_Release(&much);
    return result;
}

PyObject *export_buffers(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 4) {
        PyErr_Format(PyExc_TypeError, "export_buffers() takes 4 arguments (%zd given)", count);
        return NULL;
    }
    int writable = PyObject_IsTrue(args[1]);
    if (writable < 0) {
        return NULL;
    }
    PyObject *rows = PySequence_Fast(args[0], "rows: must be a sequence");
    if (!rows) {
        return NULL;
    }
    const struct native_state *state = PyModule_GetState(module);
    struct exports_object *self = (struct exports_object *)state->exports_type->tp_alloc(state->exports_type, 0);
    size_t rows_count = (size_t)PySequence_Fast_GET_SIZE(rows);
    if (self) {
        self->views = PyMem_Calloc(rows_count ? rows_count : 1, sizeof(Py_buffer));
        if (!self->views) {
            PyErr_NoMemory();
            Py_CLEAR(self);
        } else if (fill(self, rows, writable, args[2], args[3]) < 0) {
            Py_CLEAR(self);
        }
    }
    Py_DECREF(rows);
    return (PyObject *)self;
}

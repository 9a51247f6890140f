#include "views.h"

#include "ids.h"

int ids_view(PyObject *ids, Py_buffer *view, size_t *count)
{
    if (PyObject_GetBuffer(ids, view, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    if (view->len % ID_BYTES == 0) {
        *count = (size_t)view->len / ID_BYTES;
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "ids: %zd bytes, must be a multiple of %d", view->len, ID_BYTES);
    PyBuffer_Release(view);
    return -1;
}

int array_view(PyObject *array, Py_buffer *view, size_t count, size_t bytes, bool writable, const char *name, const char *kind)
{
    if (PyObject_GetBuffer(array, view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) {
        return -1;
    }
    size_t align = bytes > sizeof(uint64_t) ? 1 : bytes; /* ids are bytes */
    if ((size_t)view->len == count * bytes && (uintptr_t)view->buf % align == 0) {
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "%s: %zd bytes, must be %zu aligned %s", name, view->len, count, kind);
    PyBuffer_Release(view);
    return -1;
}

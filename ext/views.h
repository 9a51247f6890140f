/* Arguments that are arrays. Whoever takes a view releases it. */
#ifndef UCM_VIEWS_H
#define UCM_VIEWS_H

#include "native.h"

#include <stdbool.h>

/* Ids one after another; -1 with an exception. */
int ids_view(PyObject *ids, Py_buffer *view, size_t *count);

/* `count` aligned numbers of `bytes` bytes each (or ids, of 16); `kind` is their type's name, for the error. -1 with an exception. */
int array_view(PyObject *array, Py_buffer *view, size_t count, size_t bytes, bool writable, const char *name, const char *kind);

#endif

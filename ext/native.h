/* What the files that speak Python share. */
#ifndef UCM_NATIVE_H
#define UCM_NATIVE_H

/* Python.h decides what the system headers declare, so it comes first. Its own inline functions do not pass -Wconversion. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#pragma GCC diagnostic pop

#include "platform.h"

struct native_state {
    PyTypeObject *exports_type, *blocktable_type;
};

/* Cast for method tables: METH_FASTCALL and METH_KEYWORDS functions have other signatures than PyCFunction. */
#define METHOD(function) ((PyCFunction)(void (*)(void))(function))

/* Make a type from its spec and add it to the module under its last name; the new reference, or NULL. */
PyTypeObject *native_add_type(PyObject *module, PyType_Spec *spec);

extern PyType_Spec gate_spec, exports_spec, mapping_spec, idtable_spec, slottable_spec, codec_context_spec;
extern PyType_Spec threadpool_spec, aio_context_spec, uring_context_spec, driver_spec;
extern PyType_Spec blocktable_spec, watcher_spec, loadchains_spec;

PyObject *export_buffers(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *mix_ids(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *block_paths(PyObject *module, PyObject *const *args, Py_ssize_t count);

#endif

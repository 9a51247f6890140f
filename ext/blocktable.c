/* BlockTable: the Python face of a table of slots. */
#include "native.h"

#include "blocktable.h"

#include <errno.h>

static PyObject *not_yet(PyTypeObject *Py_UNUSED(type), PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(keywords))
{
    errno = ENOSYS;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyType_Slot blocktable_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("BlockTable(memory, slots, policy='s3fifo', create=False)\n--\n\nNot there yet.")},
    {Py_tp_new, not_yet},
    {0, NULL},
};

PyType_Spec blocktable_spec = {
    .name = "ucm_async._native.BlockTable",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = blocktable_slots,
};

static PyType_Slot watcher_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("Watcher(table)\n--\n\nNot there yet.")},
    {Py_tp_new, not_yet},
    {0, NULL},
};

PyType_Spec watcher_spec = {
    .name = "ucm_async._native.Watcher",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = watcher_slots,
};

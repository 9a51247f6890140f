/* The module: types, and the functions that have no object. */
#include "batch.h"
#include "blocktable.h"
#include "coding.h"
#include "crc32c.h"
#include "perform.h"

#include <stdio.h>
#include <string.h>

PyTypeObject *native_add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (!type) {
        return NULL;
    }
    if (PyModule_AddObjectRef(module, strrchr(spec->name, '.') + 1, type) < 0) {
        Py_DECREF(type);
        return NULL;
    }
    return (PyTypeObject *)type;
}

static PyObject *crc32c_function(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 1 && count != 2) {
        return PyErr_Format(PyExc_TypeError, "crc32c() takes 1 or 2 arguments (%zd given)", count);
    }
    unsigned long start = count == 2 ? PyLong_AsUnsignedLong(args[1]) : 0;
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (start > UINT32_MAX) {
        return PyErr_Format(PyExc_OverflowError, "value: %lu, must fit in 32 bits", start);
    }
    Py_buffer view;
    if (PyObject_GetBuffer(args[0], &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    uint32_t value;
    Py_BEGIN_ALLOW_THREADS
    value = crc32c_update((uint32_t)start, view.buf, (size_t)view.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLong(value);
}

static PyObject *execute(PyObject *Py_UNUSED(module), PyObject *requests)
{
    Py_buffer view;
    size_t count;
    if (requests_view(requests, &view, &count) < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    perform(view.buf, count);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static PyObject *fence(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}

static long read_number(const char *path)
{
    long number = -1;
    FILE *file = fopen(path, "re");
    if (file) {
        if (fscanf(file, "%ld", &number) != 1) {
            number = -1;
        }
        fclose(file);
    }
    return number;
}

static PyObject *io_setup_limit(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    long used = read_number("/proc/sys/fs/aio-nr");
    long most = read_number("/proc/sys/fs/aio-max-nr");
    if (used < 0 || most < 0) {
        used = most = -1;
    }
    return Py_BuildValue("(ll)", used, most);
}

static PyMethodDef module_methods[] = {
    {"block_paths", METHOD(block_paths), METH_FASTCALL,
     PyDoc_STR("block_paths(ids, out, /)\n--\n\nWrite the path of each block, 36 bytes with its NUL.")},
    {"crc32c", METHOD(crc32c_function), METH_FASTCALL,
     PyDoc_STR("crc32c(data, value=0, /)\n--\n\nCRC-32C of `data`, going on from `value`.")},
    {"execute", execute, METH_O,
     PyDoc_STR("execute(requests, /)\n--\n\nRun a batch in the calling thread, in order, without the GIL.")},
    {"export_buffers", METHOD(export_buffers), METH_FASTCALL,
     PyDoc_STR("export_buffers(rows, writable, addresses, sizes, /)\n--\n\n"
               "Take a C-contiguous buffer export of every object of `rows`; fill in where and how long each is.")},
    {"fence", fence, METH_NOARGS,
     PyDoc_STR("fence()\n--\n\nOrder what was stored before for all processors, before what is read after.")},
    {"io_setup_limit", io_setup_limit, METH_NOARGS,
     PyDoc_STR("io_setup_limit()\n--\n\n(aio-nr, aio-max-nr) of the system; (-1, -1) where unknown.")},
    {"mix_ids", METHOD(mix_ids), METH_FASTCALL,
     PyDoc_STR("mix_ids(ids, out, /)\n--\n\nWrite 64 well-mixed bits of each id.")},
    {NULL, NULL, 0, NULL},
};

static int add_numbers(PyObject *module)
{
    static const struct {
        const char *name;
        long value;
    } numbers[] = {
        {"REQUEST_BYTES", sizeof(struct request)},
        {"CLAIM_NONE", CLAIM_NONE},
        {"CLAIM_HIT", CLAIM_HIT},
        {"CLAIM_MINE", CLAIM_MINE},
        {"CLAIM_THEIRS", CLAIM_THEIRS},
        {"CLAIM_BUSY", CLAIM_BUSY},
        {"WATCH_GONE", WATCH_GONE},
        {"WATCH_FILLING", WATCH_FILLING},
        {"WATCH_READY", WATCH_READY},
        {"WATCH_DIRTY", WATCH_DIRTY},
        {"WATCH_FAILED", WATCH_FAILED},
        {"REASON_MAX", REASON_MAX},
        {"PROCESSES_MAX", PROCESSES_MAX},
        {"TABLE_VERSION", TABLE_VERSION},
        {"TABLE_USER_OFFSET", TABLE_USER_OFFSET},
        {"TABLE_USER_BYTES", TABLE_USER_BYTES},
    };
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        if (PyModule_AddIntConstant(module, numbers[i].name, numbers[i].value) < 0) {
            return -1;
        }
    }
    return 0;
}

static int module_exec(PyObject *module)
{
    crc32c_setup();
    static PyType_Spec *const specs[] = {
        &gate_spec, &mapping_spec, &idtable_spec, &slottable_spec, &threadpool_spec, &aio_context_spec, &uring_context_spec, &driver_spec,
        &watcher_spec, &codec_context_spec, &loadchains_spec,
    };
    for (size_t i = 0; i < sizeof(specs) / sizeof(specs[0]); i++) {
        PyTypeObject *type = native_add_type(module, specs[i]);
        if (!type) {
            return -1;
        }
        Py_DECREF(type);
    }
    struct native_state *state = PyModule_GetState(module);
    state->exports_type = native_add_type(module, &exports_spec);
    state->blocktable_type = native_add_type(module, &blocktable_spec);
    if (!state->exports_type || !state->blocktable_type || PyModule_AddObjectRef(module, "HAVE_CRC32C", crc32c_in_hardware() ? Py_True : Py_False) < 0) {
        return -1;
    }
    if (PyModule_AddIntConstant(module, "CODING_BYTES", sizeof(struct coding)) < 0) {
        return -1;
    }
    return add_numbers(module);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    const struct native_state *state = PyModule_GetState(module);
    Py_VISIT(state->exports_type);
    Py_VISIT(state->blocktable_type);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct native_state *state = PyModule_GetState(module);
    Py_CLEAR(state->exports_type);
    Py_CLEAR(state->blocktable_type);
    return 0;
}

static void module_free(void *module)
{
    module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "ucm_async._native",
    .m_doc = PyDoc_STR("Raw system calls, copies and checksums. See _native.pyi."),
    .m_size = sizeof(struct native_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&module_definition);
}

/* CodecContext: the memory that encoding and decoding need, and the two calls. */
#include "native.h"

#include "coding.h"
#include "wide.h"

#include <stdbool.h>
#include <string.h>

struct codec_context_object {
    PyObject_HEAD
    struct codec_context *context;
    bool busy;
};

typedef void (*codings_function)(struct codec_context *context, struct coding *codings, size_t count);

static int codings_view(PyObject *codings, Py_buffer *view, size_t *count)
{
    if (PyObject_GetBuffer(codings, view, PyBUF_WRITABLE) < 0) {
        return -1;
    }
    if (view->len % (Py_ssize_t)sizeof(struct coding) == 0 && (uintptr_t)view->buf % _Alignof(struct coding) == 0) {
        *count = (size_t)view->len / sizeof(struct coding);
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "codings: %zd bytes, must be an aligned array of %zu bytes each", view->len, sizeof(struct coding));
    PyBuffer_Release(view);
    return -1;
}

static PyObject *run(PyObject *op, PyObject *codings, codings_function function)
{
    struct codec_context_object *self = (struct codec_context_object *)op;
    Py_buffer view;
    size_t count;
    if (codings_view(codings, &view, &count) < 0) {
        return NULL;
    }
    if (self->busy) {
        PyBuffer_Release(&view);
        return PyErr_Format(PyExc_RuntimeError, "the context is in use by another thread");
    }
    self->busy = true;
    Py_BEGIN_ALLOW_THREADS
    function(self->context, view.buf, count);
    Py_END_ALLOW_THREADS
    self->busy = false;
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static PyObject *encode(PyObject *op, PyObject *codings)
{
    return run(op, codings, codings_encode);
}

static PyObject *decode(PyObject *op, PyObject *codings)
{
    return run(op, codings, codings_decode);
}

/* Touched here, so that no job has to wait for its pages. */
static void *touched(size_t bytes)
{
    void *memory = PyMem_RawMalloc(bytes);
    if (memory) {
        memset(memory, 0, bytes);
    }
    return memory;
}

static int take_memory(struct codec_context_object *self, size_t lossy_bytes)
{
    uint8_t *quantized = NULL;
    Py_BEGIN_ALLOW_THREADS
    self->context = touched(sizeof(struct codec_context));
    quantized = touched(lossy_bytes);
    Py_END_ALLOW_THREADS
    if (!self->context || !quantized) {
        PyMem_RawFree(quantized);
        PyErr_NoMemory();
        return -1;
    }
    self->context->quantized = quantized;
    self->context->quantized_size = lossy_bytes;
    return 0;
}

static PyObject *context_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"lossy_bytes", "wide", NULL};
    Py_ssize_t lossy_bytes = 0;
    int wide = 1;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|np:CodecContext", names, &lossy_bytes, &wide)) {
        return NULL;
    }
    if (lossy_bytes < 0 || (uint64_t)lossy_bytes > SHARD_BYTES_MAX) {
        return PyErr_Format(PyExc_ValueError, "lossy_bytes: %zd, must be 0 ... %llu", lossy_bytes, (unsigned long long)SHARD_BYTES_MAX);
    }
    struct codec_context_object *self = (struct codec_context_object *)type->tp_alloc(type, 0);
    if (self && take_memory(self, (size_t)lossy_bytes) < 0) {
        Py_CLEAR(self);
    }
    if (self) {
        self->context->wide = wide && have_wide();
    }
    return (PyObject *)self;
}

static void context_dealloc(PyObject *op)
{
    struct codec_context_object *self = (struct codec_context_object *)op;
    if (self->context) {
        PyMem_RawFree(self->context->quantized);
        PyMem_RawFree(self->context);
    }
    PyTypeObject *type = Py_TYPE(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *context_nbytes(PyObject *op, void *Py_UNUSED(closure))
{
    const struct codec_context *context = ((struct codec_context_object *)op)->context;
    return PyLong_FromSize_t(sizeof(*context) + context->quantized_size);
}

static PyObject *context_wide(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((struct codec_context_object *)op)->context->wide);
}

static PyMethodDef context_methods[] = {
    {"encode", encode, METH_O, PyDoc_STR("encode($self, codings, /)\n--\n\nEncode an array of CODING, without the GIL.")},
    {"decode", decode, METH_O, PyDoc_STR("decode($self, codings, /)\n--\n\nDecode an array of CODING, without the GIL.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef context_attributes[] = {
    {"nbytes", context_nbytes, NULL, PyDoc_STR("Bytes of memory."), NULL},
    {"wide", context_wide, NULL, PyDoc_STR("Whether it uses AVX2."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot context_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("CodecContext(lossy_bytes=0, wide=True)\n--\n\nMemory for encoding and decoding in one thread at a time.")},
    {Py_tp_new, context_new},
    {Py_tp_dealloc, context_dealloc},
    {Py_tp_methods, context_methods},
    {Py_tp_getset, context_attributes},
    {0, NULL},
};

PyType_Spec codec_context_spec = {
    .name = "ucm_async._native.CodecContext",
    .basicsize = sizeof(struct codec_context_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = context_slots,
};

/* The types ThreadPool, AioContext and UringContext: arguments and attributes. What they do is in context.c. */
#include "aio.h"
#include "pool.h"
#include "uring.h"

enum { THREADS_MAX = 1024, DEPTH_MAX = 32768 /* io_uring's own bound */ };

/* An int in [1, most], or -1 with ValueError. */
static int check_range(const char *name, Py_ssize_t value, Py_ssize_t most)
{
    if (value < 1 || value > most) {
        PyErr_Format(PyExc_ValueError, "%s: %zd, must be 1 ... %zd", name, value, most);
        return -1;
    }
    return 0;
}

/* Finish a constructor: take the engine, or turn errno into an OSError. */
static PyObject *adopt(struct context *self, const struct engine_ops *ops, void *engine, int error)
{
    if (!engine) {
        Py_DECREF(self);
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    self->ops = ops;
    self->engine = engine;
    return (PyObject *)self;
}

/* ---- ThreadPool ---- */

struct threadpool_object {
    struct context base;
    unsigned threads;
};

static PyObject *threadpool_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"threads", "name", NULL};
    Py_ssize_t threads;
    const char *name = "ucm";
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "n|s:ThreadPool", names, &threads, &name) ||
        check_range("threads", threads, THREADS_MAX) < 0) {
        return NULL;
    }
    struct threadpool_object *self = (struct threadpool_object *)context_new(type);
    if (!self) {
        return NULL;
    }
    self->threads = (unsigned)threads;
    struct pool *pool;
    int error;
    Py_BEGIN_ALLOW_THREADS
    pool = pool_new((unsigned)threads, name, self->base.event_fd);
    error = errno;
    Py_END_ALLOW_THREADS
    return adopt(&self->base, &pool_ops, pool, error);
}

static PyObject *threadpool_submit(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 && count != 3) {
        PyErr_Format(PyExc_TypeError, "submit() takes 2 or 3 arguments (%zd given)", count);
        return NULL;
    }
    Py_ssize_t chunk = 1;
    if (count == 3) {
        chunk = PyNumber_AsSsize_t(args[2], PyExc_OverflowError);
        if ((chunk == -1 && PyErr_Occurred()) || check_range("chunk", chunk, PY_SSIZE_T_MAX) < 0) {
            return NULL;
        }
    }
    return context_submit((struct context *)op, args[0], args[1], (size_t)chunk);
}

static PyObject *threadpool_threads(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(((struct threadpool_object *)op)->threads);
}

static PyObject *threadpool_pending(PyObject *op, void *Py_UNUSED(closure))
{
    const struct context *self = (struct context *)op;
    return PyLong_FromSize_t(self->engine ? pool_pending(self->engine) : 0);
}

#define SUBMIT_DOC(arguments)                                                                                          \
    PyDoc_STR("submit($self, " arguments ", /)\n--\n\n"                                                                \
              "Start a batch: an array of requests, held with `token` until the batch is done. Never waits for it.")

#define SHARED_METHODS                                                                                                 \
    {"reap", context_reap, METH_NOARGS,                                                                                \
     PyDoc_STR("reap($self)\n--\n\nReturn the tokens of batches that are done, each once, in order of completion.")},  \
    {"fileno", context_fileno, METH_NOARGS,                                                                            \
     PyDoc_STR("fileno($self)\n--\n\nThe eventfd that is readable when a batch may be done.")},                        \
    {"close", context_close, METH_NOARGS,                                                                              \
     PyDoc_STR("close($self)\n--\n\nWait for everything submitted, free, and return the tokens not yet reaped.")},     \
    {NULL, NULL, 0, NULL}

#define SHARED_SLOTS                                                                                                   \
    {Py_tp_traverse, context_traverse},                                                                                \
    {Py_tp_clear, context_clear},                                                                                      \
    {Py_tp_finalize, context_finalize},                                                                                \
    {Py_tp_dealloc, context_dealloc},                                                                                  \
    {0, NULL}

#define CONTEXT_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE)

static PyMethodDef threadpool_methods[] = {
    {"submit", METHOD(threadpool_submit), METH_FASTCALL, SUBMIT_DOC("requests, token, chunk=1")},
    SHARED_METHODS,
};

static PyGetSetDef threadpool_attributes[] = {
    {"threads", threadpool_threads, NULL, PyDoc_STR("How many threads the pool has."), NULL},
    {"pending", threadpool_pending, NULL, PyDoc_STR("Requests submitted and not finished."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot threadpool_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("ThreadPool(threads, name='ucm')\n--\n\n"
                                  "Threads that run requests of every opcode without ever needing the GIL.")},
    {Py_tp_new, threadpool_new},
    {Py_tp_methods, threadpool_methods},
    {Py_tp_getset, threadpool_attributes},
    SHARED_SLOTS,
};

PyType_Spec threadpool_spec = {
    .name = "ucm_async._native.ThreadPool",
    .basicsize = sizeof(struct threadpool_object),
    .flags = CONTEXT_FLAGS,
    .slots = threadpool_slots,
};

/* ---- AioContext, UringContext ---- */

struct ring_object {
    struct context base;
    const struct ring *(*ring_of)(const void *engine);
    unsigned depth;
    bool submitted, registered;
};

static PyObject *ring_depth(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(((struct ring_object *)op)->depth);
}

static PyObject *ring_in_flight_attribute(PyObject *op, void *Py_UNUSED(closure))
{
    const struct ring_object *self = (struct ring_object *)op;
    return PyLong_FromUnsignedLong(self->base.engine ? ring_in_flight(self->ring_of(self->base.engine)) : 0);
}

static PyObject *ring_waiting_attribute(PyObject *op, void *Py_UNUSED(closure))
{
    const struct ring_object *self = (struct ring_object *)op;
    return PyLong_FromSize_t(self->base.engine ? ring_waiting(self->ring_of(self->base.engine)) : 0);
}

static PyGetSetDef ring_attributes[] = {
    {"depth", ring_depth, NULL, PyDoc_STR("The most requests that are with the kernel."), NULL},
    {"in_flight", ring_in_flight_attribute, NULL, PyDoc_STR("Requests that are with the kernel."), NULL},
    {"waiting", ring_waiting_attribute, NULL, PyDoc_STR("Requests that wait for room."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* Allocate, with checked arguments in *depth and *max_bytes. */
static struct ring_object *ring_object_new(PyTypeObject *type, Py_ssize_t depth, Py_ssize_t max_bytes)
{
    if (check_range("depth", depth, DEPTH_MAX) < 0) {
        return NULL;
    }
    if (max_bytes < 0) {
        PyErr_Format(PyExc_ValueError, "max_bytes: %zd, must not be negative", max_bytes);
        return NULL;
    }
    struct ring_object *self = (struct ring_object *)context_new(type);
    if (self) {
        self->depth = (unsigned)depth;
    }
    return self;
}

static PyObject *aio_context_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"depth", "max_bytes", NULL};
    Py_ssize_t depth, max_bytes = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "n|n:AioContext", names, &depth, &max_bytes)) {
        return NULL;
    }
    struct ring_object *self = ring_object_new(type, depth, max_bytes);
    if (!self) {
        return NULL;
    }
    self->ring_of = aio_ring_of;
    void *engine;
    int error;
    Py_BEGIN_ALLOW_THREADS
    engine = aio_new(self->depth, (uint64_t)max_bytes, self->base.event_fd);
    error = errno;
    Py_END_ALLOW_THREADS
    return adopt(&self->base, &aio_ops, engine, error);
}

static PyMethodDef aio_methods[] = {
    {"submit", METHOD(context_submit_method), METH_FASTCALL, SUBMIT_DOC("requests, token")},
    SHARED_METHODS,
};

static PyType_Slot aio_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("AioContext(depth, max_bytes=0)\n--\n\n"
                                  "Linux native AIO. OP_READ, OP_WRITE, OP_READV, OP_WRITEV; others end with -EINVAL.")},
    {Py_tp_new, aio_context_new},
    {Py_tp_methods, aio_methods},
    {Py_tp_getset, ring_attributes},
    SHARED_SLOTS,
};

PyType_Spec aio_context_spec = {
    .name = "ucm_async._native.AioContext",
    .basicsize = sizeof(struct ring_object),
    .flags = CONTEXT_FLAGS,
    .slots = aio_slots,
};

static PyObject *uring_context_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"depth", "max_bytes", "force_async", NULL};
    Py_ssize_t depth, max_bytes = 0;
    int force_async = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "n|np:UringContext", names, &depth, &max_bytes, &force_async)) {
        return NULL;
    }
    struct ring_object *self = ring_object_new(type, depth, max_bytes);
    if (!self) {
        return NULL;
    }
    self->ring_of = uring_ring_of;
    void *engine;
    int error;
    Py_BEGIN_ALLOW_THREADS
    engine = uring_new(self->depth, (uint64_t)max_bytes, force_async != 0, self->base.event_fd);
    error = errno;
    Py_END_ALLOW_THREADS
    return adopt(&self->base, &uring_ops, engine, error);
}

static PyObject *uring_submit_method(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    PyObject *result = context_submit_method(op, args, count);
    if (result) {
        ((struct ring_object *)op)->submitted = true;
    }
    return result;
}

/* Why a range may not be registered now; NULL if it may. */
static const char *register_refusal(const struct ring_object *self)
{
    if (!self->base.engine) {
        return "register_memory after close";
    }
    if (self->submitted || self->registered) {
        return "register_memory must be called once, before the first submit";
    }
    return NULL;
}

static PyObject *uring_register_memory(PyObject *op, PyObject *args)
{
    struct ring_object *self = (struct ring_object *)op;
    unsigned long long address, length;
    if (!PyArg_ParseTuple(args, "KK:register_memory", &address, &length) || !context_enter(&self->base)) {
        return NULL;
    }
    const char *refusal = register_refusal(self);
    if (refusal) {
        context_leave(&self->base);
        PyErr_SetString(PyExc_ValueError, refusal);
        return NULL;
    }
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = uring_register(self->base.engine, address, length);
    Py_END_ALLOW_THREADS
    self->registered = !error;
    context_leave(&self->base);
    return PyBool_FromLong(!error);
}

static PyMethodDef uring_methods[] = {
    {"submit", METHOD(uring_submit_method), METH_FASTCALL, SUBMIT_DOC("requests, token")},
    {"register_memory", uring_register_memory, METH_VARARGS,
     PyDoc_STR("register_memory($self, address, length, /)\n--\n\n"
               "Make one range a registered buffer; False if the kernel refuses. Once, before the first submit.")},
    SHARED_METHODS,
};

static PyType_Slot uring_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("UringContext(depth, max_bytes=0, force_async=False)\n--\n\n"
                                  "io_uring over raw system calls. Opcodes as AioContext.")},
    {Py_tp_new, uring_context_new},
    {Py_tp_methods, uring_methods},
    {Py_tp_getset, ring_attributes},
    SHARED_SLOTS,
};

PyType_Spec uring_context_spec = {
    .name = "ucm_async._native.UringContext",
    .basicsize = sizeof(struct ring_object),
    .flags = CONTEXT_FLAGS,
    .slots = uring_slots,
};

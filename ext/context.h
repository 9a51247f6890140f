/* The Python face that ThreadPool, AioContext, UringContext and Driver share. */
#ifndef UCM_CONTEXT_H
#define UCM_CONTEXT_H

#include "batch.h"

/* What an engine must do. All of it runs without the GIL, and by one thread at a time. */
struct engine_ops {
    void (*submit)(void *engine, struct batch *batch);
    /* Append the finished batches, oldest first. Never waits. */
    void (*reap)(void *engine, struct batch_queue *finished);
    /* Wait until everything submitted is done; then as reap. Nothing is submitted afterwards. */
    void (*drain)(void *engine, struct batch_queue *finished);
    /* Free it; it is drained. */
    void (*destroy)(void *engine);
    /* Forget it in a child process: free what is the child's, leave the parent's kernel objects alone. */
    void (*abandon)(void *engine);
    /* For attributes; with the GIL, perhaps while another thread is inside. */
    size_t (*running)(const void *engine); /* requests that threads or the kernel have, or will take without our help */
    size_t (*waiting)(const void *engine); /* requests that wait for room */
};

struct context {
    PyObject_HEAD
    const struct engine_ops *ops;
    void *engine;   /* NULL once it is closed */
    unsigned size;  /* threads, or depth */
    int event_fd;
    pid_t owner; /* neither threads nor rings exist in a forked child */
    bool busy;   /* a method is running, perhaps without the GIL */
    struct batch *live;            /* all batches whose token was not returned; touched with the GIL only */
    struct batch_queue finished;   /* those of them that wait to be returned */
    uint64_t bytes, errors;        /* of finished batches: transferred and copied, and failed requests */
};

/* Allocate the object and its eventfd. NULL with an exception; ValueError unless 1 <= size <= most. */
struct context *context_new(PyTypeObject *type, const char *size_name, Py_ssize_t size, Py_ssize_t most);
/* Finish the constructor: take the engine; without one, OSError from `error`, NULL, and self is gone. */
PyObject *context_adopt(struct context *self, const struct engine_ops *ops, void *engine, int error);

/* Mark the context as in use by this thread. False with an exception: forked, or another thread is inside. */
bool context_enter(struct context *self);
static inline void context_leave(struct context *self)
{
    self->busy = false;
}

/* Methods, attributes and slots of the types. */
PyObject *context_submit_method(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *context_reap(PyObject *self, PyObject *none);
PyObject *context_fileno(PyObject *self, PyObject *none);
PyObject *context_close(PyObject *self, PyObject *none);
PyObject *context_size(PyObject *self, void *closure);
PyObject *context_running(PyObject *self, void *closure);
PyObject *context_waiting(PyObject *self, void *closure);
PyObject *context_bytes(PyObject *self, void *closure);
PyObject *context_errors(PyObject *self, void *closure);
int context_traverse(PyObject *self, visitproc visit, void *arg);
int context_clear(PyObject *self);
void context_finalize(PyObject *self);
void context_dealloc(PyObject *self);

#define SUBMIT_DOC(arguments)                                                                                          \
    PyDoc_STR("submit($self, " arguments ", /)\n--\n\n"                                                                \
              "Start a batch: an array of requests, held with `token` until the batch is done. Never waits for it.")

#define CONTEXT_METHODS                                                                                                 \
    {"reap", context_reap, METH_NOARGS,                                                                                \
     PyDoc_STR("reap($self)\n--\n\nReturn the tokens of batches that are done, each once, in order of completion.")},  \
    {"fileno", context_fileno, METH_NOARGS,                                                                            \
     PyDoc_STR("fileno($self)\n--\n\nThe eventfd that is readable when a batch may be done.")},                        \
    {"close", context_close, METH_NOARGS,                                                                              \
     PyDoc_STR("close($self)\n--\n\nWait for everything submitted, free, and return the tokens not yet reaped.")},     \
    {NULL, NULL, 0, NULL}

#define CONTEXT_COUNTERS                                                                                               \
    {"bytes", context_bytes, NULL, PyDoc_STR("Bytes that reaped batches transferred and copied."), NULL},              \
    {"errors", context_errors, NULL, PyDoc_STR("Failed requests of reaped batches."), NULL}

#define CONTEXT_SLOTS                                                                                                   \
    {Py_tp_traverse, context_traverse},                                                                                \
    {Py_tp_clear, context_clear},                                                                                      \
    {Py_tp_finalize, context_finalize},                                                                                \
    {Py_tp_dealloc, context_dealloc},                                                                                  \
    {0, NULL}

#define CONTEXT_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE)

/* The eventfd that tells the loop. */
void event_signal(int event_fd);
void event_clear(int event_fd);

#endif

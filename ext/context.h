/* The Python face that ThreadPool, AioContext and UringContext share. */
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
};

struct context {
    PyObject_HEAD
    const struct engine_ops *ops;
    void *engine; /* NULL once it is closed */
    int event_fd;
    pid_t owner; /* neither threads nor rings exist in a forked child */
    bool busy;   /* a method is running, perhaps without the GIL */
    struct batch *live;            /* all batches whose token was not returned; touched with the GIL only */
    struct batch_queue finished;   /* those of them that wait to be returned */
};

/* Allocate the object and its eventfd. The caller sets ops and engine. NULL with an exception. */
struct context *context_new(PyTypeObject *type);

PyObject *context_submit(struct context *self, PyObject *requests, PyObject *token, size_t chunk);

/* Mark the context as in use by this thread. False with an exception: forked, or another thread is inside. */
bool context_enter(struct context *self);
static inline void context_leave(struct context *self)
{
    self->busy = false;
}

PyObject *context_submit_method(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *context_reap(PyObject *self, PyObject *none);
PyObject *context_fileno(PyObject *self, PyObject *none);
PyObject *context_close(PyObject *self, PyObject *none);

int context_traverse(PyObject *self, visitproc visit, void *arg);
int context_clear(PyObject *self);
void context_finalize(PyObject *self);
void context_dealloc(PyObject *self);

/* The eventfd that tells the loop. */
void event_signal(int event_fd);
void event_clear(int event_fd);

#endif

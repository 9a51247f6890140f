/* Batches, the queues they stand in, and the Python face of whatever runs them: submit, reap, close, fork, collector. */
#include "batch.h"

#include "context.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

void batch_push(struct batch_queue *queue, struct batch *batch)
{
    batch->next = NULL;
    if (queue->head) {
        queue->tail->next = batch;
    } else {
        queue->head = batch;
    }
    queue->tail = batch;
}

struct batch *batch_pop(struct batch_queue *queue)
{
    struct batch *batch = queue->head;
    if (batch) {
        queue->head = batch->next;
        batch->next = NULL;
    }
    return batch;
}

void batch_remove(struct batch_queue *queue, struct batch *batch)
{
    struct batch *before = NULL;
    for (struct batch *one = queue->head; one != batch; one = one->next) {
        before = one;
    }
    if (before) {
        before->next = batch->next;
    } else {
        queue->head = batch->next;
    }
    if (queue->tail == batch) {
        queue->tail = before;
    }
    batch->next = NULL;
}

void batch_append(struct batch_queue *to, struct batch_queue *from)
{
    if (!from->head) {
        return;
    }
    if (to->head) {
        to->tail->next = from->head;
    } else {
        to->head = from->head;
    }
    to->tail = from->tail;
    from->head = NULL;
}

void batch_reset(struct batch *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        request_publish(&batch->requests[i], PENDING_RESULT);
    }
}

void batch_count(const struct batch *batch, uint64_t *bytes, uint64_t *errors)
{
    for (const struct request *request = batch->requests; request < batch->requests + batch->count; request++) {
        uint32_t opcode = request->opcode & OP_MASK;
        if (request->result < 0) {
            ++*errors;
        } else if (opcode >= OP_READ && opcode <= OP_WRITEV) {
            *bytes += (uint64_t)request->result;
        } else if (opcode == OP_COPY || opcode == OP_MOVE) {
            *bytes += request->length;
        }
    }
}

int requests_view(PyObject *requests, Py_buffer *view, size_t *count)
{
    if (PyObject_GetBuffer(requests, view, PyBUF_WRITABLE) < 0) {
        return -1;
    }
    size_t length = (size_t)view->len;
    if (length % sizeof(struct request)) {
        PyErr_Format(PyExc_ValueError, "requests: %zd bytes, must be a multiple of %zu", view->len, sizeof(struct request));
    } else if (length && (uintptr_t)view->buf % _Alignof(struct request)) {
        PyErr_SetString(PyExc_ValueError, "requests: the array is not aligned to 8 bytes");
    } else {
        *count = length / sizeof(struct request);
        return 0;
    }
    PyBuffer_Release(view);
    return -1;
}

struct batch *batch_new(PyObject *requests, PyObject *token, size_t chunk)
{
    struct batch *batch = calloc(1, sizeof(*batch));
    if (!batch) {
        PyErr_NoMemory();
        return NULL;
    }
    if (requests_view(requests, &batch->view, &batch->count) < 0) {
        free(batch);
        return NULL;
    }
    batch->requests = batch->view.buf;
    batch->remaining = batch->count;
    batch->chunk = chunk;
    batch->token = Py_NewRef(token);
    return batch;
}

PyObject *batch_free(struct batch *batch)
{
    PyObject *token = batch->token;
    PyBuffer_Release(&batch->view);
    free(batch);
    return token;
}

/* ---- the context ---- */

void event_signal(int event_fd)
{
    uint64_t one = 1;
    ssize_t written = write(event_fd, &one, sizeof(one));
    (void)written; /* EAGAIN: it is readable already */
}

void event_clear(int event_fd)
{
    uint64_t seen;
    ssize_t got = read(event_fd, &seen, sizeof(seen));
    (void)got; /* EAGAIN: look for completions all the same */
}

struct context *context_new(PyTypeObject *type, const char *size_name, Py_ssize_t size, Py_ssize_t most)
{
    if (size < 1 || size > most) {
        PyErr_Format(PyExc_ValueError, "%s: %zd, must be 1 ... %zd", size_name, size, most);
        return NULL;
    }
    struct context *self = (struct context *)type->tp_alloc(type, 0);
    if (!self) {
        return NULL;
    }
    self->size = (unsigned)size;
    self->owner = getpid();
    self->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (self->event_fd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(self);
        return NULL;
    }
    return self;
}

PyObject *context_adopt(struct context *self, const struct engine_ops *ops, void *engine, int error)
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

static bool in_owner(const struct context *self)
{
    return getpid() == self->owner;
}

bool context_enter(struct context *self)
{
    if (!in_owner(self)) {
        PyErr_Format(PyExc_RuntimeError, "%s: made in process %ld, cannot be used after fork", Py_TYPE(self)->tp_name,
                     (long)self->owner);
        return false;
    }
    if (self->busy) {
        PyErr_Format(PyExc_RuntimeError, "%s: another thread is using it", Py_TYPE(self)->tp_name);
        return false;
    }
    self->busy = true;
    return true;
}

/* ---- batches that are alive; with the GIL ---- */

static void link_live(struct context *self, struct batch *batch)
{
    batch->live_next = self->live;
    batch->live_link = &self->live;
    if (self->live) {
        self->live->live_link = &batch->live_next;
    }
    self->live = batch;
}

static void unlink_live(struct batch *batch)
{
    *batch->live_link = batch->live_next;
    if (batch->live_next) {
        batch->live_next->live_link = batch->live_link;
    }
}

/* The tokens of self->finished as a list; NULL with an exception, and they stay for the next call. */
static PyObject *take_tokens(struct context *self)
{
    Py_ssize_t count = 0;
    for (struct batch *batch = self->finished.head; batch; batch = batch->next) {
        count++;
    }
    PyObject *tokens = PyList_New(count);
    if (!tokens) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        struct batch *batch = batch_pop(&self->finished);
        unlink_live(batch);
        PyList_SET_ITEM(tokens, i, batch_free(batch));
    }
    return tokens;
}

/* What the engine has finished joins what waits to be returned. Needs no GIL: one thread is inside a context. */
static void take_in(struct context *self, struct batch_queue *finished)
{
    for (struct batch *batch = finished->head; batch; batch = batch->next) {
        batch_count(batch, &self->bytes, &self->errors);
    }
    batch_append(&self->finished, finished);
}

/* ---- methods ---- */

static PyObject *submit(struct context *self, PyObject *requests, PyObject *token, size_t chunk)
{
    if (!context_enter(self)) {
        return NULL;
    }
    if (!self->engine) {
        context_leave(self);
        PyErr_Format(PyExc_ValueError, "%s: submit after close", Py_TYPE(self)->tp_name);
        return NULL;
    }
    struct batch *batch = batch_new(requests, token, chunk);
    if (!batch) {
        context_leave(self);
        return NULL;
    }
    link_live(self, batch);
    Py_BEGIN_ALLOW_THREADS
    self->ops->submit(self->engine, batch);
    Py_END_ALLOW_THREADS
    context_leave(self);
    Py_RETURN_NONE;
}

PyObject *context_submit_method(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 && count != 3) {
        return PyErr_Format(PyExc_TypeError, "submit() takes 2 or 3 arguments (%zd given)", count);
    }
    Py_ssize_t chunk = 1;
    if (count == 3) {
        chunk = PyNumber_AsSsize_t(args[2], PyExc_OverflowError);
        if (chunk == -1 && PyErr_Occurred()) {
            return NULL;
        }
        if (chunk < 1) {
            return PyErr_Format(PyExc_ValueError, "chunk: %zd, must be at least 1", chunk);
        }
    }
    return submit((struct context *)op, args[0], args[1], (size_t)chunk);
}

PyObject *context_reap(PyObject *op, PyObject *Py_UNUSED(none))
{
    struct context *self = (struct context *)op;
    if (!context_enter(self)) {
        return NULL;
    }
    if (self->engine) {
        struct batch_queue finished = {NULL, NULL};
        Py_BEGIN_ALLOW_THREADS
        self->ops->reap(self->engine, &finished);
        take_in(self, &finished);
        Py_END_ALLOW_THREADS
    }
    PyObject *tokens = take_tokens(self);
    context_leave(self);
    return tokens;
}

PyObject *context_fileno(PyObject *op, PyObject *Py_UNUSED(none))
{
    struct context *self = (struct context *)op;
    if (!in_owner(self)) {
        PyErr_Format(PyExc_RuntimeError, "%s: cannot be used after fork", Py_TYPE(self)->tp_name);
        return NULL;
    }
    if (self->event_fd < 0) {
        PyErr_Format(PyExc_ValueError, "%s: fileno after close", Py_TYPE(self)->tp_name);
        return NULL;
    }
    return PyLong_FromLong(self->event_fd);
}

/* Drain the engine and free it. Its batches are in self->finished then. */
static void shut(struct context *self)
{
    void *engine = self->engine;
    if (engine) {
        struct batch_queue finished = {NULL, NULL};
        Py_BEGIN_ALLOW_THREADS
        self->ops->drain(engine, &finished);
        take_in(self, &finished);
        Py_END_ALLOW_THREADS
        self->engine = NULL; /* from here on nobody looks into it */
        self->ops->destroy(engine);
    }
    if (self->event_fd >= 0) {
        close(self->event_fd);
        self->event_fd = -1;
    }
}

PyObject *context_close(PyObject *op, PyObject *Py_UNUSED(none))
{
    struct context *self = (struct context *)op;
    if (!context_enter(self)) {
        return NULL;
    }
    shut(self);
    PyObject *tokens = take_tokens(self);
    context_leave(self);
    return tokens;
}

PyObject *context_size(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(((struct context *)op)->size);
}

PyObject *context_running(PyObject *op, void *Py_UNUSED(closure))
{
    const struct context *self = (struct context *)op;
    return PyLong_FromSize_t(self->engine ? self->ops->running(self->engine) : 0);
}

PyObject *context_waiting(PyObject *op, void *Py_UNUSED(closure))
{
    const struct context *self = (struct context *)op;
    return PyLong_FromSize_t(self->engine ? self->ops->waiting(self->engine) : 0);
}

PyObject *context_bytes(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(((struct context *)op)->bytes);
}

PyObject *context_errors(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(((struct context *)op)->errors);
}

/* ---- the collector ---- */

int context_traverse(PyObject *op, visitproc visit, void *arg)
{
    struct context *self = (struct context *)op;
    Py_VISIT(Py_TYPE(op));
    for (struct batch *batch = self->live; batch; batch = batch->live_next) {
        Py_VISIT(batch->token);
        Py_VISIT(batch->view.obj);
    }
    return 0;
}

/* In a forked child: the batches will never finish, but their memory here is the child's own. */
static void abandon(struct context *self)
{
    if (self->engine) {
        self->ops->abandon(self->engine);
        self->engine = NULL;
    }
    if (self->event_fd >= 0) {
        close(self->event_fd);
        self->event_fd = -1;
    }
}

static void free_batches(struct context *self)
{
    self->finished.head = NULL;
    while (self->live) {
        struct batch *batch = self->live;
        unlink_live(batch);
        Py_DECREF(batch_free(batch));
    }
}

int context_clear(PyObject *op)
{
    struct context *self = (struct context *)op;
    self->busy = true; /* what runs when the tokens go must not come back in here */
    if (in_owner(self)) {
        shut(self);
    } else {
        abandon(self);
    }
    free_batches(self);
    self->busy = false;
    return 0;
}

void context_finalize(PyObject *op)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    context_clear(op);
    PyErr_Restore(type, value, traceback);
}

void context_dealloc(PyObject *op)
{
    if (PyObject_CallFinalizerFromDealloc(op) < 0) {
        return;
    }
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    type->tp_free(op);
    Py_DECREF(type);
}

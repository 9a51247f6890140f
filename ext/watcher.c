/* Watcher: waits for what other processes publish, and tells the loop.
 *
 * One thread sleeps in the kernel on the number that every change in the table increments, and only while somebody wants it to: it is told
 * so by arm(), tells once, and rests. The shared bit of its process says that there is anybody to wake at all.
 */
#include "blockobject.h"
#include "context.h"
#include "threads.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct watcher_object {
    PyObject_HEAD
    struct blocktable_object *table; /* must not go before the thread */
    struct segment *segment;
    uint64_t bit;
    pid_t owner;
    int event_fd; /* -1: none; the thread has it as long as it lives */
    bool closed;
    struct threads threads;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* Under the lock. */
    bool armed, stopping;
    uint32_t seen; /* the number when it was armed */
};

/* ---- the thread ---- */

static uint32_t load_number(const struct watcher_object *self)
{
    return __atomic_load_n(&self->segment->published, __ATOMIC_SEQ_CST);
}

/* The lock is held. */
static void rest(struct watcher_object *self)
{
    self->armed = false;
    __atomic_fetch_and(&self->segment->watchers, ~self->bit, __ATOMIC_SEQ_CST);
}

static void *watch(void *argument)
{
    struct watcher_object *self = argument;
    pthread_mutex_lock(&self->lock);
    while (!self->stopping) {
        if (!self->armed) {
            pthread_cond_wait(&self->changed, &self->lock);
            continue;
        }
        uint32_t seen = self->seen;
        pthread_mutex_unlock(&self->lock);
        /* Returns at once if the number is another already. */
        syscall(SYS_futex, &self->segment->published, FUTEX_WAIT, seen, NULL, NULL, 0);
        pthread_mutex_lock(&self->lock);
        if (self->armed && load_number(self) != self->seen) {
            rest(self);
            event_signal(self->event_fd);
        }
    }
    pthread_mutex_unlock(&self->lock);
    return NULL;
}

static void stop(struct watcher_object *self)
{
    pthread_mutex_lock(&self->lock);
    self->stopping = true;
    rest(self);
    pthread_cond_signal(&self->changed);
    pthread_mutex_unlock(&self->lock);
    /* A thread that is about to sleep finds another number, one that sleeps is woken. Other processes look once in vain. */
    __atomic_fetch_add(&self->segment->published, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &self->segment->published, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    threads_join(&self->threads);
}

/* ---- the object ---- */

static bool enter(const struct watcher_object *self)
{
    if (getpid() != self->owner) {
        PyErr_Format(PyExc_RuntimeError, "Watcher: made in process %ld, cannot be used after fork", (long)self->owner);
        return false;
    }
    return true;
}

static bool enter_open(const struct watcher_object *self)
{
    if (!enter(self)) {
        return false;
    }
    if (self->closed) {
        PyErr_SetString(PyExc_ValueError, "Watcher: closed");
        return false;
    }
    return true;
}

/* What can fail; 0 or an errno. */
static int start(struct watcher_object *self)
{
    self->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (self->event_fd < 0) {
        return errno;
    }
    int error = threads_start(&self->threads, 1, "ucm-watch", watch, self);
    if (error) {
        close(self->event_fd);
        self->event_fd = -1;
    }
    return error;
}

static PyObject *watcher_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"table", NULL};
    PyObject *holder;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O:Watcher", names, &holder)) {
        return NULL;
    }
    const struct native_state *state = PyType_GetModuleState(type);
    struct blocktable_object *table = blocktable_to_watch(holder, state->blocktable_type);
    struct watcher_object *self = table ? (struct watcher_object *)type->tp_alloc(type, 0) : NULL;
    if (!self) {
        return NULL;
    }
    self->table = (struct blocktable_object *)Py_NewRef(holder);
    self->segment = table->table.segment;
    self->bit = (uint64_t)1 << table->table.number;
    self->owner = getpid();
    self->event_fd = -1;
    pthread_mutex_init(&self->lock, NULL);
    pthread_cond_init(&self->changed, NULL);
    int error = start(self);
    if (error) {
        free(self->threads.ids);
        self->threads.ids = NULL;
        Py_DECREF(self);
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    table->watched = true;
    return (PyObject *)self;
}

static void shut(struct watcher_object *self)
{
    if (self->closed || self->event_fd < 0) {
        return;
    }
    self->closed = true;
    Py_BEGIN_ALLOW_THREADS
    stop(self);
    Py_END_ALLOW_THREADS
    close(self->event_fd);
    self->event_fd = -1;
    self->table->watched = false;
    Py_CLEAR(self->table); /* and its memory, which must not wait until the thread that ran this forgets the watcher */
}

static void watcher_dealloc(PyObject *op)
{
    struct watcher_object *self = (struct watcher_object *)op;
    if (getpid() == self->owner) {
        shut(self);
        pthread_mutex_destroy(&self->lock);
        pthread_cond_destroy(&self->changed);
    } else {
        /* The thread is not here, and may have held the lock. */
        free(self->threads.ids);
        if (self->event_fd >= 0) {
            close(self->event_fd);
        }
    }
    Py_XDECREF(self->table);
    PyTypeObject *type = Py_TYPE(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *watcher_arm(PyObject *op, PyObject *Py_UNUSED(none))
{
    struct watcher_object *self = (struct watcher_object *)op;
    if (!enter_open(self)) {
        return NULL;
    }
    pthread_mutex_lock(&self->lock);
    if (!self->armed) {
        /* The bit first: who publishes after we have read the number sees it. */
        __atomic_fetch_or(&self->segment->watchers, self->bit, __ATOMIC_SEQ_CST);
        self->seen = load_number(self);
        self->armed = true;
        pthread_cond_signal(&self->changed);
    }
    pthread_mutex_unlock(&self->lock);
    Py_RETURN_NONE;
}

static PyObject *watcher_disarm(PyObject *op, PyObject *Py_UNUSED(none))
{
    struct watcher_object *self = (struct watcher_object *)op;
    if (!enter_open(self)) {
        return NULL;
    }
    pthread_mutex_lock(&self->lock);
    rest(self);
    pthread_mutex_unlock(&self->lock);
    Py_RETURN_NONE;
}

static PyObject *watcher_clear(PyObject *op, PyObject *Py_UNUSED(none))
{
    struct watcher_object *self = (struct watcher_object *)op;
    if (!enter_open(self)) {
        return NULL;
    }
    event_clear(self->event_fd);
    Py_RETURN_NONE;
}

static PyObject *watcher_fileno(PyObject *op, PyObject *Py_UNUSED(none))
{
    const struct watcher_object *self = (const struct watcher_object *)op;
    return enter_open(self) ? PyLong_FromLong(self->event_fd) : NULL;
}

static PyObject *watcher_close(PyObject *op, PyObject *Py_UNUSED(none))
{
    struct watcher_object *self = (struct watcher_object *)op;
    if (!enter(self)) {
        return NULL;
    }
    shut(self);
    Py_RETURN_NONE;
}

static PyMethodDef watcher_methods[] = {
    {"arm", watcher_arm, METH_NOARGS,
     PyDoc_STR("arm($self)\n--\n\nMake fileno() readable at the first change after now; once.")},
    {"disarm", watcher_disarm, METH_NOARGS, PyDoc_STR("disarm($self)\n--\n\nDo not, after all.")},
    {"clear", watcher_clear, METH_NOARGS, PyDoc_STR("clear($self)\n--\n\nMake fileno() unreadable again.")},
    {"fileno", watcher_fileno, METH_NOARGS, PyDoc_STR("fileno($self)\n--\n\nThe eventfd that is readable after a change.")},
    {"close", watcher_close, METH_NOARGS, PyDoc_STR("close($self)\n--\n\nEnd the thread, close the descriptor. Idempotent.")},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot watcher_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("Watcher(table)\n--\n\nTells the loop what any process changes in the table.")},
    {Py_tp_new, watcher_new},
    {Py_tp_dealloc, watcher_dealloc},
    {Py_tp_methods, watcher_methods},
    {0, NULL},
};

PyType_Spec watcher_spec = {
    .name = "ucm_async._native.Watcher",
    .basicsize = sizeof(struct watcher_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = watcher_slots,
};

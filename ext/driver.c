/* Chains of requests over a ring, without the submitting thread in between.
 *
 * One thread drives the ring: it alone begins chains, gives transfers to the kernel and takes completions. It sleeps on an eventfd
 * that the kernel and the other threads signal. Helpers run what is no transfer: a chain goes to them and comes back with everything it
 * remembers. All of them meet under one lock, which nobody holds while working; who is awake is not signalled.
 *
 * What needs no disk (a file that the kernel can open from memory, copies, checksums) the driving thread does itself as long as it
 * keeps up, a little at a time: the kernel must not wait for its next transfers meanwhile. One thread checks some 25 GB/s of what a disk
 * brings, and waking others for each block costs more than it saves; beside a second hardware thread of one core, twice as much.
 */
#include "ring.h"
#include "threads.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    LIGHT_BYTES_MAX = 128 << 20,    /* wait for the driving thread, some milliseconds; what is more goes to the helpers */
    LIGHT_PER_TURN = 16,            /* chains, between two looks at the kernel */
    LIGHT_BYTES_PER_TURN = 1 << 20, /* the last one may exceed it */
};

struct driver {
    struct ring_helper helper; /* first */
    struct ring *ring;
    int event_fd; /* tells the loop */
    int wake_fd;  /* wakes the driving thread */
    struct chain_queue outbox; /* the driving thread's own: will be posted to the helpers */
    struct chain_queue light;  /* the driving thread's own: will be run by itself */
    uint64_t light_bytes;      /* that these touch */
    struct threads driving, helpers;

    pthread_mutex_t lock;
    pthread_cond_t work; /* there is something for the helpers, or they may go */
    /* Under the lock. */
    struct batch_queue submitted; /* for the driving thread */
    struct chain_queue returned;  /* for the driving thread */
    struct chain_queue todo;      /* for the helpers */
    struct batch_queue done;      /* for the loop */
    unsigned idle;                /* helpers that wait */
    bool asleep;                  /* the driving thread waits and was not signalled */
    bool stopping;                /* the driving thread may go when everything is done */
    bool over;                    /* the helpers may go */
};

/* The lock is held, and given up. */
static void unlock_and_wake(struct driver *driver)
{
    bool wake = driver->asleep;
    driver->asleep = false;
    pthread_mutex_unlock(&driver->lock);
    if (wake) {
        event_signal(driver->wake_fd);
    }
}

/* ---- helpers ---- */

/* Run the next chain up to a transfer or its end. The lock is held; so it is on return, but not in between. */
static void help_once(struct driver *driver)
{
    struct chain *chain = chain_pop(&driver->todo);
    bool more = driver->todo.head && driver->idle;
    pthread_mutex_unlock(&driver->lock);
    if (more) {
        pthread_cond_signal(&driver->work);
    }
    chain_run(chain);
    pthread_mutex_lock(&driver->lock);
    chain_push(&driver->returned, chain);
    if (driver->asleep) {
        unlock_and_wake(driver);
        pthread_mutex_lock(&driver->lock);
    }
}

static void *help(void *argument)
{
    struct driver *driver = argument;
    pthread_mutex_lock(&driver->lock);
    for (;;) {
        while (!driver->todo.head && !driver->over) {
            driver->idle++;
            pthread_cond_wait(&driver->work, &driver->lock);
            driver->idle--;
        }
        if (!driver->todo.head) {
            break;
        }
        help_once(driver);
    }
    pthread_mutex_unlock(&driver->lock);
    return NULL;
}

/* ---- the driving thread ---- */

/* Whether the driving thread can run a chain up to a transfer or its end; how many bytes of memory it touches. */
static bool is_light(const struct chain *chain, uint64_t *bytes)
{
    *bytes = 0;
    for (const struct request *request = chain->at; request != chain->end && !request_is_data(request); request++) {
        switch (request->opcode & OP_MASK) {
        case OP_COPY:
        case OP_MOVE:
            *bytes += 2 * request->length; /* read and written */
            break;
        case OP_CHECKSUM:
            *bytes += request->length;
            break;
        case OP_OPEN:
            /* With O_DIRECT it is a file on a disk, not a pipe whose opening waits for somebody. */
            if ((request->offset & (O_CREAT | O_DIRECT)) != O_DIRECT) {
                return false;
            }
            break;
        case OP_NOP:
        case OP_CLOSE:
            break;
        default:
            return false;
        }
    }
    return true;
}

static void take(struct ring_helper *helper, struct chain *chain)
{
    struct driver *driver = (struct driver *)helper;
    uint64_t bytes;
    if (is_light(chain, &bytes) && bytes <= LIGHT_BYTES_MAX - driver->light_bytes) {
        driver->light_bytes += bytes;
        chain_push(&driver->light, chain);
    } else {
        chain_push(&driver->outbox, chain);
    }
}

/* Open what can be opened without a disk. False if it takes one, or another process; nothing has happened then. */
static bool open_at_once(struct chain *chain)
{
    struct request trial = *chain->at;
    struct job job = chain->job;
    trial.opcode |= FLAG_CACHED;
    trial.offset |= O_NONBLOCK; /* for FIFOs and devices: their opening waits for somebody else */
    job_perform(&job, &trial);
    bool waits = trial.result == -ENXIO || (trial.result == -EAGAIN && !(chain->at->opcode & FLAG_CACHED));
    if (waits) {
        return false;
    }
    if (trial.result >= 0 && !(chain->at->offset & O_NONBLOCK)) {
        fcntl((int)trial.result, F_SETFL, (int)chain->at->offset); /* io_uring does not wait for such files */
    }
    chain->job = job;
    request_publish(chain->at++, trial.result);
    return true;
}

/* Run a chain up to a transfer or its end. False if it must go to a helper after all. */
static bool run_here(struct chain *chain)
{
    while (!chain_is_over(chain) && !request_is_data(chain->at)) {
        if ((chain->at->opcode & OP_MASK) != OP_OPEN) {
            job_perform(&chain->job, chain->at++);
        } else if (!open_at_once(chain)) {
            return false;
        }
    }
    return true;
}

/* Run a few of the light chains. */
static void run_light(struct driver *driver)
{
    uint64_t bytes, left = LIGHT_BYTES_PER_TURN;
    for (unsigned i = 0; i < LIGHT_PER_TURN && left && driver->light.head; i++) {
        struct chain *chain = chain_pop(&driver->light);
        is_light(chain, &bytes);
        driver->light_bytes -= bytes;
        left -= bytes < left ? bytes : left;
        if (run_here(chain)) {
            ring_advance(driver->ring, chain);
        } else {
            chain_push(&driver->outbox, chain);
        }
    }
}

/* Pass on what came up for the helpers and for the loop. */
static void post(struct driver *driver)
{
    struct batch_queue *finished = &driver->ring->done;
    if (!driver->outbox.head && !finished->head) {
        return;
    }
    pthread_mutex_lock(&driver->lock);
    bool tell = finished->head && !driver->done.head; /* one signal covers all until the next reap */
    bool wake = driver->outbox.head && driver->idle;
    batch_append(&driver->done, finished);
    chain_append(&driver->todo, &driver->outbox);
    pthread_mutex_unlock(&driver->lock);
    if (wake) {
        pthread_cond_signal(&driver->work); /* helpers wake each other as long as there is work */
    }
    if (tell) {
        event_signal(driver->event_fd);
    }
}

struct mail {
    struct batch_queue batches;
    struct chain_queue chains;
};

/* Take what there is. If there is nothing, sleep until there is, or until the kernel says that it has something. False: go. */
static bool collect(struct driver *driver, struct mail *mail)
{
    for (bool slept = false;; slept = true) {
        *mail = (struct mail){{NULL, NULL}, {NULL, NULL}};
        pthread_mutex_lock(&driver->lock);
        batch_append(&mail->batches, &driver->submitted);
        chain_append(&mail->chains, &driver->returned);
        bool nothing = !mail->batches.head && !mail->chains.head && !driver->light.head;
        bool go = nothing && driver->stopping && ring_is_idle(driver->ring);
        driver->asleep = nothing && !slept && !go;
        bool sleep = driver->asleep;
        pthread_mutex_unlock(&driver->lock);
        if (!sleep) {
            return !go;
        }
        uint64_t seen;
        ssize_t got = read(driver->wake_fd, &seen, sizeof(seen));
        (void)got; /* whatever it was: look */
    }
}

static void *drive(void *argument)
{
    struct driver *driver = argument;
    struct ring *ring = driver->ring;
    struct mail mail;
    while (collect(driver, &mail)) {
        for (struct batch *batch; (batch = batch_pop(&mail.batches));) {
            ring_queue(ring, batch);
        }
        for (struct chain *chain; (chain = chain_pop(&mail.chains));) {
            ring_advance(ring, chain);
        }
        ring->ops->pull(ring);
        run_light(driver);
        ring_fill(ring);
        post(driver); /* before the kernel is called, which may take its time */
        ring->ops->push(ring);
        post(driver);
    }
    return NULL;
}

/* ---- the engine ---- */

static void driver_submit(void *engine, struct batch *batch)
{
    struct driver *driver = engine;
    ring_expect(driver->ring, batch);
    pthread_mutex_lock(&driver->lock);
    batch_push(&driver->submitted, batch);
    unlock_and_wake(driver);
}

static void driver_reap(void *engine, struct batch_queue *finished)
{
    struct driver *driver = engine;
    event_clear(driver->event_fd);
    pthread_mutex_lock(&driver->lock);
    batch_append(finished, &driver->done);
    pthread_mutex_unlock(&driver->lock);
}

static void stop(struct driver *driver)
{
    pthread_mutex_lock(&driver->lock);
    driver->stopping = true;
    unlock_and_wake(driver);
    threads_join(&driver->driving);
    pthread_mutex_lock(&driver->lock);
    driver->over = true;
    pthread_mutex_unlock(&driver->lock);
    pthread_cond_broadcast(&driver->work);
    threads_join(&driver->helpers);
}

static void driver_drain(void *engine, struct batch_queue *finished)
{
    struct driver *driver = engine;
    stop(driver);
    batch_append(finished, &driver->done);
}

static void driver_destroy(void *engine)
{
    struct driver *driver = engine;
    if (driver->ring) {
        driver->ring->ops->destroy(driver->ring);
    }
    if (driver->wake_fd >= 0) {
        close(driver->wake_fd);
    }
    pthread_cond_destroy(&driver->work);
    pthread_mutex_destroy(&driver->lock);
    free(driver);
}

/* In a child the threads are gone and the lock may be held for ever. What is left is a few hundred bytes. */
static void driver_abandon(void *engine)
{
    struct driver *driver = engine;
    driver->ring->ops->abandon(driver->ring);
    close(driver->wake_fd);
}

static size_t driver_running(const void *engine)
{
    return ring_in_flight(((const struct driver *)engine)->ring);
}

static size_t driver_waiting(const void *engine)
{
    return ring_waiting(((const struct driver *)engine)->ring);
}

static const struct engine_ops driver_ops = {
    .submit = driver_submit,
    .reap = driver_reap,
    .drain = driver_drain,
    .destroy = driver_destroy,
    .abandon = driver_abandon,
    .running = driver_running,
    .waiting = driver_waiting,
};

struct driver_options {
    bool uring, force_async;
    unsigned depth, threads;
    uint64_t max_bytes;
    const char *name;
};

/* 0, or an errno; what was made is in *driver. */
static int set_up(struct driver *driver, const struct driver_options *options)
{
    driver->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (driver->wake_fd < 0) {
        return errno;
    }
    /* Enough to open the next files while others are read, or checked. It also bounds the open files. */
    unsigned chains = 2 * options->depth + 2 * options->threads;
    struct ring_bounds bounds = {options->depth, chains, options->max_bytes};
    driver->ring = options->uring ? uring_new(bounds, options->force_async, driver->wake_fd)
                                  : aio_new(bounds, driver->wake_fd);
    if (!driver->ring) {
        return errno;
    }
    driver->ring->helper = &driver->helper;
    int error = threads_start(&driver->helpers, options->threads, options->name, help, driver);
    if (!error) {
        char name[16];
        snprintf(name, sizeof(name), "%.7s-io", options->name);
        error = threads_start(&driver->driving, 1, name, drive, driver);
    }
    return error;
}

/* NULL with errno. */
static struct driver *driver_make(const struct driver_options *options, int event_fd)
{
    struct driver *driver = calloc(1, sizeof(*driver));
    if (!driver) {
        return NULL;
    }
    driver->helper.take = take;
    driver->event_fd = event_fd;
    pthread_mutex_init(&driver->lock, NULL);
    pthread_cond_init(&driver->work, NULL);
    int error = set_up(driver, options);
    if (error) {
        stop(driver);
        driver_destroy(driver);
        errno = error;
        return NULL;
    }
    return driver;
}

/* ---- the type ---- */

struct driver_object {
    struct context base;
    unsigned threads;
};

/* 0, or -1 with an exception. */
static int check_options(const char *ring, Py_ssize_t threads)
{
    if (strcmp(ring, "aio") != 0 && strcmp(ring, "uring") != 0) {
        PyErr_Format(PyExc_ValueError, "ring: '%s', must be 'aio' or 'uring'", ring);
        return -1;
    }
    if (threads < 1 || threads > THREADS_MAX) {
        PyErr_Format(PyExc_ValueError, "threads: %zd, must be 1 ... %d", threads, THREADS_MAX);
        return -1;
    }
    return 0;
}

static PyObject *driver_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"ring", "depth", "max_bytes", "threads", "force_async", "name", NULL};
    const char *ring, *name = "ucm";
    Py_ssize_t depth, max_bytes = 0, threads = 2;
    int force_async = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "sn|nnps:Driver", names, &ring, &depth, &max_bytes, &threads,
                                     &force_async, &name) ||
        check_options(ring, threads) < 0) {
        return NULL;
    }
    struct context *self = ring_context_new(type, depth, max_bytes);
    if (!self) {
        return NULL;
    }
    ((struct driver_object *)self)->threads = (unsigned)threads;
    struct driver_options options = {
        .uring = ring[0] == 'u',
        .force_async = force_async != 0,
        .depth = self->size,
        .threads = (unsigned)threads,
        .max_bytes = (uint64_t)max_bytes,
        .name = name,
    };
    struct driver *driver;
    int error;
    Py_BEGIN_ALLOW_THREADS
    driver = driver_make(&options, self->event_fd);
    error = errno;
    Py_END_ALLOW_THREADS
    return context_adopt(self, &driver_ops, driver, error);
}

static PyObject *driver_register_memory(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct context *self = (struct context *)op;
    struct driver *driver = self->engine;
    return ring_register_memory(self, driver ? driver->ring : NULL, args, count);
}

static PyObject *driver_threads(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(((struct driver_object *)op)->threads);
}

static PyMethodDef driver_methods[] = {
    {"submit", METHOD(context_submit_method), METH_FASTCALL, SUBMIT_DOC("requests, token, chunk=1")},
    {"register_memory", METHOD(driver_register_memory), METH_FASTCALL, REGISTER_DOC},
    CONTEXT_METHODS,
};

static PyGetSetDef driver_attributes[] = {
    RING_ATTRIBUTES,
    {"threads", driver_threads, NULL, PyDoc_STR("Helpers, which run what is no transfer."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot driver_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("Driver(ring, depth, max_bytes=0, threads=2, force_async=False, name='ucm')\n--\n\n"
                                  "Chains of requests over a ring ('aio' or 'uring') that a thread of its own drives.")},
    {Py_tp_new, driver_new},
    {Py_tp_methods, driver_methods},
    {Py_tp_getset, driver_attributes},
    CONTEXT_SLOTS,
};

PyType_Spec driver_spec = {
    .name = "ucm_async._native.Driver",
    .basicsize = sizeof(struct driver_object),
    .flags = CONTEXT_FLAGS,
    .slots = driver_slots,
};

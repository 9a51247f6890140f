/* The thread pool: a line of batches, of which each free thread takes the next chain. */
#include "context.h"
#include "perform.h"
#include "threads.h"

#include <errno.h>
#include <stdlib.h>

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t work; /* a batch was queued, or the pool is stopping */
    struct batch_queue todo;
    struct batch_queue done;
    size_t pending; /* requests without a result; written under the lock, read anywhere */
    unsigned idle;
    bool stopping;
    int event_fd;
    struct threads threads;
};

static void count_pending(struct pool *pool, size_t pending)
{
    __atomic_store_n(&pool->pending, pending, __ATOMIC_RELAXED);
}

/* Put a batch with the finished ones. True if the loop must be told: one signal covers all until the next reap. */
static bool finish(struct pool *pool, struct batch *batch)
{
    bool first = !pool->done.head;
    batch_push(&pool->done, batch);
    return first;
}

/* Take the next requests of the oldest batch. The lock is held; so it is on return, but not in between. */
static void work_once(struct pool *pool)
{
    struct batch *batch = pool->todo.head;
    struct request *first = &batch->requests[batch->cursor];
    size_t left = batch->count - batch->cursor;
    size_t count = left < batch->chunk ? left : batch->chunk;
    batch->cursor += count;
    if (batch->cursor == batch->count) {
        batch_pop(&pool->todo);
    }
    /* A submit wakes one thread; threads wake each other as long as there is work, so a submit stays cheap. */
    bool more = pool->todo.head && pool->idle;
    pthread_mutex_unlock(&pool->lock);
    if (more) {
        pthread_cond_signal(&pool->work);
    }
    perform(first, count);
    pthread_mutex_lock(&pool->lock);
    count_pending(pool, pool->pending - count);
    batch->remaining -= count;
    if (batch->remaining == 0 && finish(pool, batch)) {
        pthread_mutex_unlock(&pool->lock);
        event_signal(pool->event_fd);
        pthread_mutex_lock(&pool->lock);
    }
}

static void *worker(void *argument)
{
    struct pool *pool = argument;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (!pool->todo.head && !pool->stopping) {
            pool->idle++;
            pthread_cond_wait(&pool->work, &pool->lock);
            pool->idle--;
        }
        if (!pool->todo.head) {
            break; /* stopping, and everything is handed out */
        }
        work_once(pool);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static void stop(struct pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    pool->stopping = true;
    pthread_mutex_unlock(&pool->lock);
    pthread_cond_broadcast(&pool->work);
    threads_join(&pool->threads);
}

static void pool_destroy(void *engine)
{
    struct pool *pool = engine;
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

/* NULL with errno. */
static struct pool *pool_new(unsigned threads, const char *name, int event_fd)
{
    struct pool *pool = calloc(1, sizeof(*pool));
    if (!pool) {
        return NULL;
    }
    pool->event_fd = event_fd;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    int error = threads_start(&pool->threads, threads, name, worker, pool);
    if (error) {
        stop(pool);
        pool_destroy(pool);
        errno = error;
        return NULL;
    }
    return pool;
}

static void pool_submit(void *engine, struct batch *batch)
{
    struct pool *pool = engine;
    batch_reset(batch);
    pthread_mutex_lock(&pool->lock);
    bool tell = false;
    if (batch->count) {
        batch_push(&pool->todo, batch);
        count_pending(pool, pool->pending + batch->count);
    } else {
        tell = finish(pool, batch);
    }
    bool wake = pool->idle > 0;
    pthread_mutex_unlock(&pool->lock);
    if (tell) {
        event_signal(pool->event_fd);
    } else if (wake) {
        pthread_cond_signal(&pool->work);
    }
}

static void pool_reap(void *engine, struct batch_queue *finished)
{
    struct pool *pool = engine;
    event_clear(pool->event_fd);
    pthread_mutex_lock(&pool->lock);
    batch_append(finished, &pool->done);
    pthread_mutex_unlock(&pool->lock);
}

static void pool_drain(void *engine, struct batch_queue *finished)
{
    struct pool *pool = engine;
    stop(pool);
    batch_append(finished, &pool->done);
}

/* In a child the threads are gone and the lock may be held for ever. What is left is a few hundred bytes. */
static void pool_abandon(void *engine)
{
    (void)engine;
}

static size_t pool_running(const void *engine)
{
    return __atomic_load_n(&((const struct pool *)engine)->pending, __ATOMIC_RELAXED);
}

static const struct engine_ops pool_ops = {
    .submit = pool_submit,
    .reap = pool_reap,
    .drain = pool_drain,
    .destroy = pool_destroy,
    .abandon = pool_abandon,
    .running = pool_running,
};

/* ---- the type ---- */

static PyObject *threadpool_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"threads", "name", NULL};
    Py_ssize_t threads;
    const char *name = "ucm";
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "n|s:ThreadPool", names, &threads, &name)) {
        return NULL;
    }
    struct context *self = context_new(type, "threads", threads, THREADS_MAX);
    if (!self) {
        return NULL;
    }
    struct pool *pool;
    int error;
    Py_BEGIN_ALLOW_THREADS
    pool = pool_new(self->size, name, self->event_fd);
    error = errno;
    Py_END_ALLOW_THREADS
    return context_adopt(self, &pool_ops, pool, error);
}

static PyMethodDef threadpool_methods[] = {
    {"submit", METHOD(context_submit_method), METH_FASTCALL, SUBMIT_DOC("requests, token, chunk=1")},
    CONTEXT_METHODS,
};

static PyGetSetDef threadpool_attributes[] = {
    {"threads", context_size, NULL, PyDoc_STR("How many threads the pool has."), NULL},
    {"pending", context_running, NULL, PyDoc_STR("Requests submitted and not finished."), NULL},
    CONTEXT_COUNTERS,
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot threadpool_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("ThreadPool(threads, name='ucm')\n--\n\n"
                                  "Threads that run requests of every opcode without ever needing the GIL.")},
    {Py_tp_new, threadpool_new},
    {Py_tp_methods, threadpool_methods},
    {Py_tp_getset, threadpool_attributes},
    CONTEXT_SLOTS,
};

PyType_Spec threadpool_spec = {
    .name = "ucm_async._native.ThreadPool",
    .basicsize = sizeof(struct context),
    .flags = CONTEXT_FLAGS,
    .slots = threadpool_slots,
};

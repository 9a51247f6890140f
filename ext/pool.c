/* The thread pool: a line of batches, of which each free thread takes the next few requests. */
#include "pool.h"

#include "perform.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

/* The deepest frame is a copy of 1024 iovecs (16 KiB). */
enum { STACK_BYTES = 256 * 1024, NAME_BYTES = 16 };

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t work; /* a batch was queued, or the pool is stopping */
    struct batch_queue todo;
    struct batch_queue done;
    size_t pending; /* requests without a result; written under the lock, read anywhere */
    unsigned idle;
    bool stopping;
    int event_fd;
    unsigned threads;
    pthread_t ids[];
};

size_t pool_pending(const struct pool *pool)
{
    return __atomic_load_n(&pool->pending, __ATOMIC_RELAXED);
}

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
    for (unsigned i = 0; i < pool->threads; i++) {
        pthread_join(pool->ids[i], NULL);
    }
    pool->threads = 0;
}

static void pool_destroy(void *engine)
{
    struct pool *pool = engine;
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

/* Start one thread after another; an errno, with those that run counted in pool->threads. */
static int start(struct pool *pool, unsigned threads, const char *name)
{
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error) {
        return error;
    }
    error = pthread_attr_setstacksize(&attributes, STACK_BYTES);
    for (unsigned i = 0; i < threads && !error; i++) {
        error = pthread_create(&pool->ids[i], &attributes, worker, pool);
        if (!error) {
            char label[NAME_BYTES];
            snprintf(label, sizeof(label), "%.10s-%u", name, i % 1000);
            pthread_setname_np(pool->ids[i], label);
            pool->threads++;
        }
    }
    pthread_attr_destroy(&attributes);
    return error;
}

struct pool *pool_new(unsigned threads, const char *name, int event_fd)
{
    struct pool *pool = calloc(1, sizeof(*pool) + threads * sizeof(pool->ids[0]));
    if (!pool) {
        return NULL;
    }
    pool->event_fd = event_fd;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    /* Signals are for Python's threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = start(pool, threads, name);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
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

const struct engine_ops pool_ops = {
    .submit = pool_submit,
    .reap = pool_reap,
    .drain = pool_drain,
    .destroy = pool_destroy,
    .abandon = pool_abandon,
};

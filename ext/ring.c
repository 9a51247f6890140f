/* The inside of a ring that does not depend on the kernel interface. */
#include "ring.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>

/* The most that one call moves (MAX_RW_COUNT for 4 KiB pages); longer ones come back short and go on. */
#define TRANSFER_BYTES_MAX 0x7FFFF000u

/* So many batches behind the oldest are looked at for a small one: the line may be long, and each chain takes a look. */
#define LOOK_AHEAD 31

int ring_init(struct ring *ring, const struct ring_ops *ops, struct ring_bounds bounds, int event_fd)
{
    ring->chains = calloc(bounds.chains, sizeof(ring->chains[0]));
    if (!ring->chains) {
        return -1;
    }
    for (unsigned i = bounds.chains; i-- > 0;) {
        ring->chains[i].next = ring->free;
        ring->free = &ring->chains[i];
    }
    ring->ops = ops;
    ring->bounds = bounds;
    ring->event_fd = event_fd;
    return 0;
}

void ring_free(struct ring *ring)
{
    free(ring->chains);
}

/* ---- counters ---- */

static void count_in_flight(struct ring *ring, unsigned value)
{
    __atomic_store_n(&ring->in_flight, value, __ATOMIC_RELAXED);
}

size_t ring_waiting(const struct ring *ring)
{
    size_t in_flight = ring_in_flight(ring);
    size_t unfinished = __atomic_load_n(&ring->unfinished, __ATOMIC_RELAXED);
    return unfinished > in_flight ? unfinished - in_flight : 0;
}

/* ---- batches and chains ---- */

void ring_expect(struct ring *ring, struct batch *batch)
{
    batch_reset(batch);
    ring->begun = true;
    __atomic_fetch_add(&ring->unfinished, batch->count, __ATOMIC_RELAXED);
}

void ring_queue(struct ring *ring, struct batch *batch)
{
    batch_push(batch->count ? &ring->waiting : &ring->done, batch);
}

static void finish(struct ring *ring, struct chain *chain)
{
    struct batch *batch = chain->batch;
    __atomic_fetch_sub(&ring->unfinished, chain->count, __ATOMIC_RELAXED);
    batch->remaining -= chain->count;
    if (batch->remaining == 0) {
        batch_push(&ring->done, batch);
    }
    chain->next = ring->free;
    ring->free = chain;
}

void ring_advance(struct ring *ring, struct chain *chain)
{
    if (ring->helper) {
        chain_skip(chain);
    } else {
        chain_run(chain);
    }
    if (chain_is_over(chain)) {
        finish(ring, chain);
    } else if (chain_wants_ring(chain)) {
        chain_push(&ring->line, chain);
    } else {
        ring->helper->take(ring->helper, chain);
    }
}

static void settle(struct ring *ring, struct chain *chain, int64_t result)
{
    job_settle(&chain->job, chain->at++, result);
    ring_advance(ring, chain);
}

/* A ring without helpers takes plain transfers one by one, and everything else in chains only. */
static bool is_misplaced(const struct ring *ring, const struct chain *chain)
{
    return !ring->helper && chain->batch->chunk == 1 && (chain->at->opcode < OP_READ || chain->at->opcode > OP_WRITEV);
}

static size_t unbegun(const struct batch *batch)
{
    return batch->count - batch->cursor;
}

/* The batch whose next chain begins; there is one. In turns the oldest, so that large ones are ready one after the other and who waits for
 * the first has something to do while the next are read; and the one with the least left, so that a small one waits for none of them. */
static struct batch *choose(struct ring *ring)
{
    struct batch *chosen = ring->waiting.head;
    ring->turn_of_oldest = !ring->turn_of_oldest;
    if (!ring->turn_of_oldest) {
        struct batch *other = chosen->next;
        for (unsigned i = 0; other && i < LOOK_AHEAD; i++, other = other->next) {
            chosen = unbegun(other) < unbegun(chosen) ? other : chosen;
        }
    }
    return chosen;
}

static void begin(struct ring *ring)
{
    struct batch *batch = choose(ring);
    struct chain *chain = ring->free;
    ring->free = chain->next;
    size_t left = unbegun(batch);
    chain->batch = batch;
    chain->count = left < batch->chunk ? left : batch->chunk;
    chain->at = &batch->requests[batch->cursor];
    chain->end = chain->at + chain->count;
    chain->job = job_begin();
    batch->cursor += chain->count;
    if (batch->cursor >= batch->count) {
        batch_remove(&ring->waiting, batch);
    }
    if (is_misplaced(ring, chain)) {
        settle(ring, chain, -EINVAL);
    } else {
        ring_advance(ring, chain);
    }
}

/* ---- the bounds ---- */

static bool fits(const struct ring *ring, uint64_t bytes)
{
    uint64_t most = ring->bounds.max_bytes;
    return !most || !ring->used || (ring->bytes < most && bytes <= most - ring->bytes);
}

/* Make the transfers at the head of the line ready that there is room for. */
static void admit(struct ring *ring)
{
    while (ring->line.head && ring->used < ring->bounds.depth) {
        struct chain *chain = ring->line.head;
        int64_t refusal = job_refusal(&chain->job, chain->at); /* its gate was closed while it waited */
        if (refusal) {
            chain_pop(&ring->line);
            settle(ring, chain, refusal);
            continue;
        }
        uint64_t bytes = request_bytes(chain->at);
        if (!fits(ring, bytes)) {
            return;
        }
        chain_pop(&ring->line);
        chain->bytes = bytes;
        chain->done = 0;
        chain->retried = false;
        ring->used++;
        ring->bytes += bytes;
        chain_push(&ring->ready, chain);
    }
}

void ring_fill(struct ring *ring)
{
    do {
        while (ring->waiting.head && ring->free) {
            begin(ring);
        }
        admit(ring);
    } while (ring->waiting.head && ring->free);
}

/* ---- between here and the kernel ---- */

void ring_accepted(struct ring *ring, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        chain_pop(&ring->ready);
    }
    count_in_flight(ring, ring->in_flight + count);
}

static void leave(struct ring *ring, struct chain *chain, int64_t result)
{
    ring->used--;
    ring->bytes -= chain->bytes;
    settle(ring, chain, result);
}

void ring_refused(struct ring *ring, int error)
{
    leave(ring, chain_pop(&ring->ready), -error);
}

void ring_again(struct ring *ring, struct chain *chain)
{
    count_in_flight(ring, ring->in_flight - 1);
    chain_push(&ring->ready, chain);
}

void ring_answered(struct ring *ring, struct chain *chain, int64_t result)
{
    const struct request *request = chain->at;
    struct transfer transfer = ring_transfer(chain);
    if (result >= 0 && !transfer.vectored) {
        chain->done += (uint64_t)result;
        bool whole = chain->done >= request->length;
        if (!whole && result > 0 && transfer_continues(transfer.fd, transfer.writing, (uint64_t)result)) {
            ring_again(ring, chain);
            return;
        }
        /* A write that makes no progress is an error; a read has met the end of the file. */
        result = whole || !transfer.writing ? (int64_t)chain->done : -EIO;
    }
    count_in_flight(ring, ring->in_flight - 1);
    leave(ring, chain, result);
}

struct transfer ring_transfer(const struct chain *chain)
{
    const struct request *request = chain->at;
    uint32_t opcode = request->opcode & OP_MASK;
    bool vectored = opcode == OP_READV || opcode == OP_WRITEV;
    uint64_t length = vectored ? request->length : request->length - chain->done;
    return (struct transfer){
        .fd = job_descriptor(&chain->job, request),
        .writing = opcode == OP_WRITE || opcode == OP_WRITEV,
        .vectored = vectored,
        .address = request->address + (vectored ? 0 : chain->done),
        .length = length < TRANSFER_BYTES_MAX ? length : TRANSFER_BYTES_MAX,
        .offset = request->offset + chain->done,
    };
}

/* ---- a ring as an engine ---- */

static void turn(struct ring *ring)
{
    event_clear(ring->event_fd);
    ring->ops->pull(ring);
    ring->ops->push(ring);
}

static void engine_submit(void *engine, struct batch *batch)
{
    struct ring *ring = engine;
    ring_expect(ring, batch);
    ring_queue(ring, batch);
    ring->ops->push(ring);
    if (ring->done.head) {
        event_signal(ring->event_fd);
    }
}

static void engine_reap(void *engine, struct batch_queue *finished)
{
    struct ring *ring = engine;
    turn(ring);
    batch_append(finished, &ring->done);
}

static void engine_drain(void *engine, struct batch_queue *finished)
{
    struct ring *ring = engine;
    turn(ring);
    while (!ring_is_idle(ring)) {
        /* Every completion signals the eventfd after it is in the ring, and a turn clears it before it looks. */
        struct pollfd readable = {.fd = ring->event_fd, .events = POLLIN};
        poll(&readable, 1, -1);
        turn(ring);
    }
    batch_append(finished, &ring->done);
}

static void engine_destroy(void *engine)
{
    ((struct ring *)engine)->ops->destroy(engine);
}

static void engine_abandon(void *engine)
{
    ((struct ring *)engine)->ops->abandon(engine);
}

static size_t engine_running(const void *engine)
{
    return ring_in_flight(engine);
}

static size_t engine_waiting(const void *engine)
{
    return ring_waiting(engine);
}

const struct engine_ops ring_engine_ops = {
    .submit = engine_submit,
    .reap = engine_reap,
    .drain = engine_drain,
    .destroy = engine_destroy,
    .abandon = engine_abandon,
    .running = engine_running,
    .waiting = engine_waiting,
};

/* ---- the type ---- */

struct context *ring_context_new(PyTypeObject *type, Py_ssize_t depth, Py_ssize_t max_bytes)
{
    if (max_bytes < 0) {
        PyErr_Format(PyExc_ValueError, "max_bytes: %zd, must not be negative", max_bytes);
        return NULL;
    }
    return context_new(type, "depth", depth, DEPTH_MAX);
}

/* Inside context_enter. 0, an errno, or -1 with an exception. */
static int register_once(const struct context *self, struct ring *ring, uint64_t address, uint64_t length)
{
    if (!self->engine) {
        PyErr_SetString(PyExc_ValueError, "register_memory after close");
        return -1;
    }
    if (ring->begun) {
        PyErr_SetString(PyExc_ValueError, "register_memory must be called once, before the first submit");
        return -1;
    }
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = ring->ops->register_memory(ring, address, length);
    Py_END_ALLOW_THREADS
    ring->begun = !error;
    return error;
}

PyObject *ring_register_memory(struct context *self, struct ring *ring, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        return PyErr_Format(PyExc_TypeError, "register_memory() takes 2 arguments (%zd given)", count);
    }
    uint64_t address = PyLong_AsUnsignedLongLong(args[0]);
    uint64_t length = PyErr_Occurred() ? 0 : PyLong_AsUnsignedLongLong(args[1]);
    if (PyErr_Occurred() || !context_enter(self)) {
        return NULL;
    }
    int error = register_once(self, ring, address, length);
    context_leave(self);
    return error < 0 ? NULL : PyBool_FromLong(!error);
}

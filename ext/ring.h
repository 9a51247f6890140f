/* What native AIO and io_uring share: the line of batches, the bounds on what is in flight, and short transfers.
 *
 * A request goes: waiting (in its batch) -> ready (has a slot) -> with the kernel -> finished. A short transfer goes back to
 * ready with the rest of its range. The slot's index names the request to the kernel.
 *
 * Plain C, for one thread at a time. A header, because it is the inside of two engines and the interface of none.
 */
#ifndef UCM_RING_H
#define UCM_RING_H

#include "context.h"
#include "perform.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>

struct slot {
    struct slot *next; /* free, or ready */
    struct batch *batch;
    struct request *request;
    uint64_t bytes; /* what it counts against max_bytes */
    uint64_t done;  /* moved by earlier parts of a short transfer */
    bool retried;   /* was given to the kernel again */
};

struct ring {
    struct batch_queue waiting;
    struct batch_queue done;
    struct slot *slots, *free;
    struct slot *ready, **ready_end;
    unsigned used;  /* slots that are not free */
    uint64_t bytes; /* their sum */
    uint64_t max_bytes;
    int event_fd;
    /* Written by the one thread that is inside, read by any (attributes). */
    unsigned in_flight; /* with the kernel */
    size_t waiting_requests; /* submitted, not finished, not with the kernel */
};

/* The most that one call moves (MAX_RW_COUNT for 4 KiB pages); longer ones come back short and go on. */
#define TRANSFER_BYTES_MAX 0x7FFFF000u

static inline unsigned ring_index(const struct ring *ring, const struct slot *slot)
{
    return (unsigned)(slot - ring->slots);
}

/* For attributes. */
static inline unsigned ring_in_flight(const struct ring *ring)
{
    return __atomic_load_n(&ring->in_flight, __ATOMIC_RELAXED);
}

static inline size_t ring_waiting(const struct ring *ring)
{
    return __atomic_load_n(&ring->waiting_requests, __ATOMIC_RELAXED);
}

/* context_new with the arguments of a ring. */
static inline struct context *ring_context_new(PyTypeObject *type, Py_ssize_t depth, Py_ssize_t max_bytes)
{
    if (max_bytes < 0) {
        PyErr_Format(PyExc_ValueError, "max_bytes: %zd, must not be negative", max_bytes);
        return NULL;
    }
    return context_new(type, "depth", depth, DEPTH_MAX);
}

/* 0, or -1 without memory. */
static inline int ring_init(struct ring *ring, unsigned depth, uint64_t max_bytes, int event_fd)
{
    ring->slots = calloc(depth, sizeof(ring->slots[0]));
    if (!ring->slots) {
        return -1;
    }
    for (unsigned i = depth; i-- > 0;) {
        ring->slots[i].next = ring->free;
        ring->free = &ring->slots[i];
    }
    ring->ready_end = &ring->ready;
    ring->max_bytes = max_bytes;
    ring->event_fd = event_fd;
    return 0;
}

static inline void ring_free(struct ring *ring)
{
    free(ring->slots);
}

static inline void ring_count_in_flight(struct ring *ring, unsigned value)
{
    __atomic_store_n(&ring->in_flight, value, __ATOMIC_RELAXED);
}

static inline void ring_count_waiting(struct ring *ring, size_t value)
{
    __atomic_store_n(&ring->waiting_requests, value, __ATOMIC_RELAXED);
}

static inline void ring_finish(struct ring *ring, struct batch *batch, struct request *request, int64_t result)
{
    request_publish(request, result);
    if (--batch->remaining == 0) {
        batch_push(&ring->done, batch);
    }
}

/* Put a batch in the line. */
static inline void ring_queue(struct ring *ring, struct batch *batch)
{
    batch_reset(batch);
    if (batch->count == 0) {
        batch_push(&ring->done, batch);
        return;
    }
    ring_count_waiting(ring, ring->waiting_requests + batch->count);
    batch_push(&ring->waiting, batch);
}

/* 0, or why the request cannot be given to the kernel. */
static inline int ring_refusal(const struct request *request)
{
    bool vectored = request->opcode == OP_READV || request->opcode == OP_WRITEV;
    if (!vectored && request->opcode != OP_READ && request->opcode != OP_WRITE) {
        return -EINVAL;
    }
    if (vectored && request->length > IOVECS_MAX) {
        return -EINVAL;
    }
    return request_is_cancelled(request) ? -ECANCELED : 0;
}

static inline void ring_append_ready(struct ring *ring, struct slot *slot)
{
    slot->next = NULL;
    *ring->ready_end = slot;
    ring->ready_end = &slot->next;
}

static inline struct slot *ring_pop_ready(struct ring *ring)
{
    struct slot *slot = ring->ready;
    ring->ready = slot->next;
    if (!ring->ready) {
        ring->ready_end = &ring->ready;
    }
    return slot;
}

/* Step over the first waiting request; it is the caller's now. */
static inline void ring_step(struct ring *ring, struct batch *batch)
{
    if (++batch->cursor == batch->count) {
        batch_pop(&ring->waiting);
    }
}

static inline void ring_take_slot(struct ring *ring, struct batch *batch, struct request *request, uint64_t bytes)
{
    struct slot *slot = ring->free;
    ring->free = slot->next;
    slot->batch = batch;
    slot->request = request;
    slot->bytes = bytes;
    slot->done = 0;
    slot->retried = false;
    ring->used++;
    ring->bytes += bytes;
    ring_append_ready(ring, slot);
}

static inline void ring_free_slot(struct ring *ring, struct slot *slot)
{
    ring->used--;
    ring->bytes -= slot->bytes;
    slot->next = ring->free;
    ring->free = slot;
}

/* Make waiting requests ready, as many as the bounds allow; those that cannot be run fail here. */
static inline void ring_fill(struct ring *ring)
{
    while (ring->waiting.head && ring->free) {
        struct batch *batch = ring->waiting.head;
        struct request *request = &batch->requests[batch->cursor];
        int error = ring_refusal(request);
        if (error) {
            ring_step(ring, batch);
            ring_count_waiting(ring, ring->waiting_requests - 1);
            ring_finish(ring, batch, request, error);
            continue;
        }
        uint64_t bytes = request_bytes(request);
        bool fits = !ring->max_bytes || !ring->used ||
                    (ring->bytes < ring->max_bytes && bytes <= ring->max_bytes - ring->bytes);
        if (!fits) {
            return;
        }
        ring_step(ring, batch);
        ring_take_slot(ring, batch, request, bytes);
    }
}

/* The kernel took the first `count` ready slots. */
static inline void ring_accepted(struct ring *ring, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        ring_pop_ready(ring);
    }
    ring_count_waiting(ring, ring->waiting_requests - count);
    ring_count_in_flight(ring, ring->in_flight + count);
}

static inline void ring_finish_slot(struct ring *ring, struct slot *slot, int64_t result)
{
    struct batch *batch = slot->batch;
    struct request *request = slot->request;
    ring_free_slot(ring, slot);
    ring_finish(ring, batch, request, result);
}

/* The kernel refused the first ready slot. */
static inline void ring_refused(struct ring *ring, int error)
{
    ring_count_waiting(ring, ring->waiting_requests - 1);
    ring_finish_slot(ring, ring_pop_ready(ring), -error);
}

/* The kernel gave a slot back, but its request is not finished. */
static inline void ring_again(struct ring *ring, struct slot *slot)
{
    ring_count_in_flight(ring, ring->in_flight - 1);
    ring_count_waiting(ring, ring->waiting_requests + 1);
    ring_append_ready(ring, slot);
}

/* The kernel answered: finish the request, or make the rest of a short transfer ready. */
static inline void ring_answered(struct ring *ring, struct slot *slot, int64_t result)
{
    const struct request *request = slot->request;
    bool writing = request->opcode == OP_WRITE;
    bool whole = result < 0 || (!writing && request->opcode != OP_READ);
    if (!whole) {
        slot->done += (uint64_t)result;
        if (slot->done < request->length && result > 0 && transfer_continues(request->fd, writing, (uint64_t)result)) {
            ring_again(ring, slot);
            return;
        }
        /* A write that makes no progress is an error; a read has met the end of the file. */
        result = slot->done < request->length && writing ? -EIO : (int64_t)slot->done;
    }
    ring_count_in_flight(ring, ring->in_flight - 1);
    ring_finish_slot(ring, slot, result);
}

/* One transfer as the kernel should see it. */
struct transfer {
    int fd;
    bool writing, vectored;
    uint64_t address, length, offset;
};

static inline struct transfer ring_transfer(const struct slot *slot)
{
    const struct request *request = slot->request;
    bool vectored = request->opcode == OP_READV || request->opcode == OP_WRITEV;
    uint64_t length = vectored ? request->length : request->length - slot->done;
    return (struct transfer){
        .fd = request->fd,
        .writing = request->opcode == OP_WRITE || request->opcode == OP_WRITEV,
        .vectored = vectored,
        .address = request->address + (vectored ? 0 : slot->done),
        .length = length < TRANSFER_BYTES_MAX ? length : TRANSFER_BYTES_MAX,
        .offset = request->offset + slot->done,
    };
}

/* Wait until nothing is waiting or in flight; `turn` drains completions and submits what it can. */
static inline void ring_drain(struct ring *ring, void *engine, void (*turn)(void *engine))
{
    turn(engine);
    while (ring->used || ring->waiting.head) {
        /* Every completion signals the eventfd after it is in the ring, and a turn clears it before it looks. */
        struct pollfd readable = {.fd = ring->event_fd, .events = POLLIN};
        poll(&readable, 1, -1);
        turn(engine);
    }
}

#endif

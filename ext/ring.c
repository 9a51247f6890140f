/* The line of batches and the slots of what is with the kernel. Plain C, one thread at a time. */
#include "ring.h"

#include "context.h"
#include "perform.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/uio.h>

/* The most that one call moves (MAX_RW_COUNT for 4 KiB pages); longer ones come back short and go on. */
#define TRANSFER_BYTES_MAX 0x7FFFF000u

int ring_init(struct ring *ring, unsigned depth, uint64_t max_bytes, int event_fd)
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
    ring->depth = depth;
    ring->max_bytes = max_bytes;
    ring->event_fd = event_fd;
    return 0;
}

void ring_free(struct ring *ring)
{
    free(ring->slots);
}

static void count_in_flight(struct ring *ring, unsigned value)
{
    __atomic_store_n(&ring->in_flight, value, __ATOMIC_RELAXED);
}

static void count_waiting(struct ring *ring, size_t value)
{
    __atomic_store_n(&ring->waiting_requests, value, __ATOMIC_RELAXED);
}

static void finish(struct ring *ring, struct batch *batch, struct request *request, int64_t result)
{
    request_publish(request, result);
    if (--batch->remaining == 0) {
        batch_push(&ring->done, batch);
    }
}

void ring_queue(struct ring *ring, struct batch *batch)
{
    batch_reset(batch);
    if (batch->count == 0) {
        batch_push(&ring->done, batch);
        return;
    }
    count_waiting(ring, ring->waiting_requests + batch->count);
    batch_push(&ring->waiting, batch);
}

/* 0, or why the request cannot be given to the kernel. */
static int refusal(const struct request *request)
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

static uint64_t request_bytes(const struct request *request)
{
    if (request->opcode == OP_READ || request->opcode == OP_WRITE) {
        return request->length;
    }
    const struct iovec *vectors = pointer_to(request->address);
    uint64_t total = 0;
    for (uint64_t i = 0; i < request->length; i++) {
        total += vectors[i].iov_len;
    }
    return total;
}

static void append_ready(struct ring *ring, struct slot *slot)
{
    slot->next = NULL;
    *ring->ready_end = slot;
    ring->ready_end = &slot->next;
}

static struct slot *pop_ready(struct ring *ring)
{
    struct slot *slot = ring->ready;
    ring->ready = slot->next;
    if (!ring->ready) {
        ring->ready_end = &ring->ready;
    }
    return slot;
}

/* Step over the first waiting request; it is the caller's now. */
static void step(struct ring *ring, struct batch *batch)
{
    count_waiting(ring, ring->waiting_requests - 1);
    if (++batch->cursor == batch->count) {
        batch_pop(&ring->waiting);
    }
}

static void take_slot(struct ring *ring, struct batch *batch, struct request *request, uint64_t bytes)
{
    struct slot *slot = ring->free;
    ring->free = slot->next;
    slot->batch = batch;
    slot->request = request;
    slot->bytes = bytes;
    slot->done = 0;
    ring->used++;
    ring->bytes += bytes;
    append_ready(ring, slot);
}

static void free_slot(struct ring *ring, struct slot *slot)
{
    ring->used--;
    ring->bytes -= slot->bytes;
    slot->next = ring->free;
    ring->free = slot;
}

void ring_fill(struct ring *ring)
{
    while (ring->waiting.head && ring->free) {
        struct batch *batch = ring->waiting.head;
        struct request *request = &batch->requests[batch->cursor];
        int error = refusal(request);
        if (error) {
            step(ring, batch);
            finish(ring, batch, request, error);
            continue;
        }
        uint64_t bytes = request_bytes(request);
        bool fits = !ring->max_bytes || !ring->used ||
                    (ring->bytes < ring->max_bytes && bytes <= ring->max_bytes - ring->bytes);
        if (!fits) {
            return;
        }
        step(ring, batch);
        take_slot(ring, batch, request, bytes);
    }
}

void ring_accepted(struct ring *ring, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        pop_ready(ring);
    }
    count_in_flight(ring, ring->in_flight + count);
}

static void finish_slot(struct ring *ring, struct slot *slot, int64_t result)
{
    struct batch *batch = slot->batch;
    struct request *request = slot->request;
    free_slot(ring, slot);
    finish(ring, batch, request, result);
}

void ring_refused(struct ring *ring, int error)
{
    finish_slot(ring, pop_ready(ring), -error);
}

void ring_answered(struct ring *ring, struct slot *slot, int64_t result)
{
    count_in_flight(ring, ring->in_flight - 1);
    const struct request *request = slot->request;
    bool writing = request->opcode == OP_WRITE;
    if (result < 0 || (!writing && request->opcode != OP_READ)) {
        finish_slot(ring, slot, result);
        return;
    }
    slot->done += (uint64_t)result;
    bool complete = slot->done >= request->length;
    if (complete || result == 0 || !transfer_continues(request->fd, writing, (uint64_t)result)) {
        /* A write that makes no progress is an error; a read has met the end of the file. */
        finish_slot(ring, slot, complete || !writing ? (int64_t)slot->done : -EIO);
        return;
    }
    append_ready(ring, slot);
}

struct transfer ring_transfer(const struct slot *slot)
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

void ring_drain(struct ring *ring, void *engine, void (*turn)(void *engine))
{
    turn(engine);
    while (ring->used || ring->waiting.head) {
        /* Every completion signals the eventfd after it is in the ring, and a turn clears it before it looks. */
        struct pollfd readable = {.fd = ring->event_fd, .events = POLLIN};
        poll(&readable, 1, -1);
        turn(engine);
    }
}

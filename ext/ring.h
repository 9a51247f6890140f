/* What native AIO and io_uring share: the line of batches, the bounds on what is in flight, and short transfers.
 *
 * A request goes: waiting (in its batch) -> ready (has a slot) -> with the kernel -> finished. A short transfer goes back to
 * ready with the rest of its range. The slot's index names the request to the kernel.
 */
#ifndef UCM_RING_H
#define UCM_RING_H

#include "batch.h"

struct slot {
    struct slot *next; /* free, or ready */
    struct batch *batch;
    struct request *request;
    uint64_t bytes; /* what it counts against max_bytes */
    uint64_t done;  /* moved by earlier parts of a short transfer */
};

struct ring {
    struct batch_queue waiting;
    struct batch_queue done;
    struct slot *slots, *free;
    struct slot *ready, **ready_end;
    unsigned depth;
    unsigned used;  /* slots that are not free */
    uint64_t bytes; /* their sum */
    uint64_t max_bytes;
    int event_fd;
    /* Written by the one thread that is inside, read by any (attributes). */
    unsigned in_flight; /* with the kernel */
    size_t waiting_requests;
};

int ring_init(struct ring *ring, unsigned depth, uint64_t max_bytes, int event_fd);
void ring_free(struct ring *ring);

static inline unsigned ring_index(const struct ring *ring, const struct slot *slot)
{
    return (unsigned)(slot - ring->slots);
}

/* Put a batch in the line. */
void ring_queue(struct ring *ring, struct batch *batch);

/* Make waiting requests ready, as many as the bounds allow; those that cannot be run fail here. */
void ring_fill(struct ring *ring);

/* The kernel took the first `count` ready slots. */
void ring_accepted(struct ring *ring, unsigned count);
/* The kernel refused the first ready slot. */
void ring_refused(struct ring *ring, int error);
/* The kernel answered: finish the request, or make the rest of a short transfer ready. */
void ring_answered(struct ring *ring, struct slot *slot, int64_t result);

/* For attributes. */
static inline unsigned ring_in_flight(const struct ring *ring)
{
    return __atomic_load_n(&ring->in_flight, __ATOMIC_RELAXED);
}
static inline size_t ring_waiting(const struct ring *ring)
{
    return __atomic_load_n(&ring->waiting_requests, __ATOMIC_RELAXED);
}

/* Wait until nothing is waiting or in flight; `turn` drains completions and submits what it can. */
void ring_drain(struct ring *ring, void *engine, void (*turn)(void *engine));

/* One transfer as the kernel should see it. */
struct transfer {
    int fd;
    bool writing, vectored;
    uint64_t address, length, offset;
};
struct transfer ring_transfer(const struct slot *slot);

#endif

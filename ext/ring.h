/* What native AIO and io_uring share: the line of batches, chains, the bounds on what is in flight, and short transfers.
 *
 * Several batches may wait: their chains begin in the order of each, in turns of the oldest batch and the one with the least left. A
 * chain's transfer goes: line -> ready (within the bounds) -> with the kernel -> settled; a short one goes back to ready with the rest of
 * its range. Between its transfers a chain runs here, or is handed to a helper.
 * A chain's index names it to the kernel.
 *
 * Plain C, for one thread at a time, except for the counters.
 */
#ifndef UCM_RING_H
#define UCM_RING_H

#include "chain.h"
#include "context.h"

struct ring;

/* What a kernel interface must do. */
struct ring_ops {
    void (*push)(struct ring *ring); /* ring_fill, and give the kernel what is ready */
    void (*pull)(struct ring *ring); /* pass every completion to ring_answered */
    int (*register_memory)(struct ring *ring, uint64_t address, uint64_t length); /* 0, or an errno */
    void (*destroy)(struct ring *ring);
    void (*abandon)(struct ring *ring); /* in a forked child: leave the parent's kernel objects alone */
};

struct ring_bounds {
    unsigned depth;     /* transfers with the kernel */
    unsigned chains;    /* under way, at least `depth` */
    uint64_t max_bytes; /* with the kernel; 0: no bound. One transfer always fits */
};

/* Takes chains whose next request is not a transfer, and brings them back with ring_advance. */
struct ring_helper {
    void (*take)(struct ring_helper *helper, struct chain *chain);
};

struct ring {
    const struct ring_ops *ops;
    struct ring_helper *helper; /* NULL: the thread that is inside runs everything */
    struct ring_bounds bounds;
    int event_fd; /* signalled by the kernel after each completion */
    bool begun;   /* a batch was submitted, or memory registered */
    struct batch_queue waiting, done;
    bool turn_of_oldest;
    struct chain *chains, *free;
    struct chain_queue line;  /* transfers that wait for room */
    struct chain_queue ready; /* transfers to give to the kernel, in that order */
    unsigned used;            /* transfers that are ready or with the kernel */
    uint64_t bytes;           /* their sum */
    /* Read by any thread (attributes). */
    unsigned in_flight; /* transfers with the kernel */
    size_t unfinished;  /* requests of chains that are not over */
};

/* NULL with errno. ENOSYS, EPERM, EAGAIN (aio-max-nr is used up), ENOMEM (RLIMIT_MEMLOCK of old kernels) ... */
struct ring *aio_new(struct ring_bounds bounds, int event_fd);
struct ring *uring_new(struct ring_bounds bounds, bool force_async, int event_fd);

/* ---- for who submits ---- */

/* A batch will be queued: mark and count its requests. */
void ring_expect(struct ring *ring, struct batch *batch);
/* Put a batch in the line. */
void ring_queue(struct ring *ring, struct batch *batch);
/* Take a chain on from where it is, after its request before was settled. */
void ring_advance(struct ring *ring, struct chain *chain);
size_t ring_waiting(const struct ring *ring);

static inline unsigned ring_in_flight(const struct ring *ring)
{
    return __atomic_load_n(&ring->in_flight, __ATOMIC_RELAXED);
}

static inline bool ring_is_idle(const struct ring *ring)
{
    return __atomic_load_n(&ring->unfinished, __ATOMIC_RELAXED) == 0;
}

/* ---- for the kernel interfaces ---- */

/* 0, or -1 without memory. */
int ring_init(struct ring *ring, const struct ring_ops *ops, struct ring_bounds bounds, int event_fd);
void ring_free(struct ring *ring);
/* Begin chains and make transfers ready, as many as the bounds allow. */
void ring_fill(struct ring *ring);
/* The kernel took the first `count` ready transfers. */
void ring_accepted(struct ring *ring, unsigned count);
/* The kernel refused the first ready transfer. */
void ring_refused(struct ring *ring, int error);
/* The kernel answered: settle the transfer and go on, or make the rest of a short one ready. */
void ring_answered(struct ring *ring, struct chain *chain, int64_t result);
/* The kernel gave a transfer back undone: make it ready again. */
void ring_again(struct ring *ring, struct chain *chain);

static inline unsigned ring_index(const struct ring *ring, const struct chain *chain)
{
    return (unsigned)(chain - ring->chains);
}

/* One transfer as the kernel should see it. */
struct transfer {
    int fd;
    bool writing, vectored;
    uint64_t address, length, offset;
};

struct transfer ring_transfer(const struct chain *chain);

/* ---- the Python face ---- */

enum { DEPTH_MAX = 32768 /* io_uring's own bound */ };

/* A ring that its callers drive themselves; the engine is the struct ring. */
extern const struct engine_ops ring_engine_ops;

/* context_new with the arguments of a ring. */
struct context *ring_context_new(PyTypeObject *type, Py_ssize_t depth, Py_ssize_t max_bytes);
/* register_memory(address, length) of the ring inside a context's engine. */
PyObject *ring_register_memory(struct context *self, struct ring *ring, PyObject *const *args, Py_ssize_t count);

#define REGISTER_DOC                                                                                                   \
    PyDoc_STR("register_memory($self, address, length, /)\n--\n\n"                                                     \
              "Make one range a registered buffer; False if the kernel refuses. Once, before the first submit.")

#define RING_ATTRIBUTES                                                                                                \
    {"depth", context_size, NULL, PyDoc_STR("The most transfers that are with the kernel."), NULL},                    \
    {"in_flight", context_running, NULL, PyDoc_STR("Transfers that are with the kernel."), NULL},                      \
    {"waiting", context_waiting, NULL, PyDoc_STR("Requests of unfinished chains that are not with the kernel."), NULL},     \
    CONTEXT_COUNTERS

#endif

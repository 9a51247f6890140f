/* io_uring: one submission and one completion ring in memory shared with the kernel, announced by an eventfd.
 *
 * Not used, and why: SINGLE_ISSUER and DEFER_TASKRUN bind the ring to one thread, but close() may come from another;
 * COOP_TASKRUN was measured and changes nothing here; SQPOLL burns a processor; registered files save nothing where each file
 * is read once; a larger completion ring is not needed, since never more than `depth` requests are out.
 */
#include "ring.h"

#include "uring_abi.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEEDED_FEATURES (URING_FEATURE_SINGLE_MMAP | URING_FEATURE_NODROP | URING_FEATURE_RW_CUR_POS)

/* The kernel takes at most 1 GiB a registered buffer. */
#define BUFFER_BYTES_MAX (UINT64_C(1) << 30)
enum { BUFFERS_MAX = 1024 };

struct uring {
    struct ring ring; /* first */
    int fd;
    bool force_async;

    void *rings;
    size_t rings_bytes;
    struct uring_sqe *sqes;
    size_t sqes_bytes;
    uint32_t sq_mask;
    uint32_t *sq_tail;
    uint32_t cq_mask;
    uint32_t *cq_head, *cq_tail;
    struct uring_cqe *cqes;

    uint64_t registered, registered_bytes;
};

/* ---- set up and down ---- */

static void uring_release(struct uring *uring)
{
    if (uring->sqes) {
        munmap(uring->sqes, uring->sqes_bytes);
    }
    if (uring->rings) {
        munmap(uring->rings, uring->rings_bytes);
    }
    if (uring->fd >= 0) {
        close(uring->fd);
    }
    ring_free(&uring->ring);
    free(uring);
}

static void *map(int fd, size_t length, long offset)
{
    void *mapped = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);
    return mapped == MAP_FAILED ? NULL : mapped;
}

static int map_rings(struct uring *uring, const struct uring_params *params)
{
    size_t sq_bytes = params->sq.array + params->sq_entries * sizeof(uint32_t);
    size_t cq_bytes = params->cq.cqes + params->cq_entries * sizeof(struct uring_cqe);
    uring->rings_bytes = sq_bytes > cq_bytes ? sq_bytes : cq_bytes;
    uring->sqes_bytes = params->sq_entries * sizeof(struct uring_sqe);
    uring->rings = map(uring->fd, uring->rings_bytes, URING_OFFSET_RINGS);
    uring->sqes = map(uring->fd, uring->sqes_bytes, URING_OFFSET_SQES);
    if (!uring->rings || !uring->sqes) {
        return -1;
    }
    char *base = uring->rings;
    uring->sq_mask = *(uint32_t *)(void *)(base + params->sq.ring_mask);
    uring->sq_tail = (uint32_t *)(void *)(base + params->sq.tail);
    uring->cq_mask = *(uint32_t *)(void *)(base + params->cq.ring_mask);
    uring->cq_head = (uint32_t *)(void *)(base + params->cq.head);
    uring->cq_tail = (uint32_t *)(void *)(base + params->cq.tail);
    uring->cqes = (struct uring_cqe *)(void *)(base + params->cq.cqes);
    /* Entries are used in the order of the ring: the index array between them never changes. */
    uint32_t *array = (uint32_t *)(void *)(base + params->sq.array);
    for (uint32_t i = 0; i < params->sq_entries; i++) {
        array[i] = i;
    }
    return 0;
}

/* 0, or -1 with errno; what was made is in *uring. */
static int set_up(struct uring *uring, unsigned depth, int event_fd)
{
    struct uring_params params = {0};
    uring->fd = (int)syscall(SYS_io_uring_setup, depth, &params);
    if (uring->fd < 0) {
        return -1;
    }
    if ((params.features & NEEDED_FEATURES) != NEEDED_FEATURES) {
        errno = ENOSYS;
        return -1;
    }
    if (map_rings(uring, &params) < 0) {
        return -1;
    }
    return (int)syscall(SYS_io_uring_register, uring->fd, URING_REGISTER_EVENTFD, &event_fd, 1);
}

/* 0, or an errno. */
static int register_memory(struct ring *ring, uint64_t address, uint64_t length)
{
    struct uring *uring = (struct uring *)ring;
    uint64_t count = (length + BUFFER_BYTES_MAX - 1) / BUFFER_BYTES_MAX;
    if (count == 0 || count > BUFFERS_MAX) {
        return EINVAL;
    }
    struct iovec buffers[BUFFERS_MAX];
    for (uint64_t i = 0; i < count; i++) {
        uint64_t left = length - i * BUFFER_BYTES_MAX;
        buffers[i].iov_base = pointer_to(address + i * BUFFER_BYTES_MAX);
        buffers[i].iov_len = left < BUFFER_BYTES_MAX ? left : BUFFER_BYTES_MAX;
    }
    if (syscall(SYS_io_uring_register, uring->fd, URING_REGISTER_BUFFERS, buffers, (unsigned)count) < 0) {
        return errno;
    }
    uring->registered = address;
    uring->registered_bytes = length;
    return 0;
}

/* ---- down ---- */

/* The registered buffer that a range lies in, or -1. */
static int registered_buffer(const struct uring *uring, const struct transfer *transfer)
{
    uint64_t start = transfer->address - uring->registered;
    if (transfer->vectored || transfer->length == 0 || start >= uring->registered_bytes ||
        transfer->length > uring->registered_bytes - start) {
        return -1;
    }
    uint64_t first = start / BUFFER_BYTES_MAX;
    uint64_t last = (start + transfer->length - 1) / BUFFER_BYTES_MAX;
    return first == last ? (int)first : -1;
}

static uint8_t operation(const struct transfer *transfer, bool fixed)
{
    if (transfer->vectored) {
        return transfer->writing ? URING_OP_WRITEV : URING_OP_READV;
    }
    if (fixed) {
        return transfer->writing ? URING_OP_WRITE_FIXED : URING_OP_READ_FIXED;
    }
    return transfer->writing ? URING_OP_WRITE : URING_OP_READ;
}

static void describe(const struct uring *uring, struct uring_sqe *sqe, const struct chain *chain)
{
    struct transfer transfer = ring_transfer(chain);
    int buffer = registered_buffer(uring, &transfer);
    *sqe = (struct uring_sqe){
        .opcode = operation(&transfer, buffer >= 0),
        .flags = uring->force_async ? URING_SQE_ASYNC : 0,
        .fd = transfer.fd,
        .offset = transfer.offset,
        .address = transfer.address,
        .length = (uint32_t)transfer.length,
        .user_data = ring_index(&uring->ring, chain),
        .buffer_index = (uint16_t)(buffer >= 0 ? buffer : 0),
    };
}

/* Write an entry for every ready transfer; there is room, since the ring has at least `depth` entries. Returns how many. */
static unsigned gather(struct uring *uring)
{
    uint32_t tail = *uring->sq_tail;
    unsigned count = 0;
    for (const struct chain *chain = uring->ring.ready.head; chain; chain = chain->next) {
        describe(uring, &uring->sqes[(tail + count) & uring->sq_mask], chain);
        count++;
    }
    __atomic_store_n(uring->sq_tail, tail + count, __ATOMIC_RELEASE);
    return count;
}

static void push(struct ring *ring)
{
    struct uring *uring = (struct uring *)ring;
    for (;;) {
        ring_fill(ring);
        unsigned count = gather(uring);
        if (count == 0) {
            return;
        }
        long taken = syscall(SYS_io_uring_enter, uring->fd, count, 0, 0, NULL, 0L);
        int error = taken < 0 ? errno : EAGAIN;
        unsigned accepted = taken > 0 ? (unsigned)taken : 0;
        /* Take back the entries that the kernel has left: it reads the ring only inside the call above. */
        __atomic_store_n(uring->sq_tail, *uring->sq_tail - (count - accepted), __ATOMIC_RELEASE);
        ring_accepted(ring, accepted);
        if (accepted || error == EINTR) {
            continue;
        }
        if ((error == EAGAIN || error == EBUSY) && ring->in_flight) {
            return; /* the next completion makes room */
        }
        ring_refused(ring, error);
    }
}

/* ---- up ---- */

/* The kernel drops requests whose thread has ended: with ECANCELED, or EFAULT where it had to look at the thread's memory. */
static bool thread_is_gone(int32_t result)
{
    return result == -ECANCELED || result == -EFAULT;
}

static void pull(struct ring *ring)
{
    struct uring *uring = (struct uring *)ring;
    uint32_t head = *uring->cq_head;
    while (head != __atomic_load_n(uring->cq_tail, __ATOMIC_ACQUIRE)) {
        const struct uring_cqe *cqe = &uring->cqes[head & uring->cq_mask];
        struct chain *chain = &ring->chains[cqe->user_data];
        if (thread_is_gone(cqe->result) && !chain->retried) {
            chain->retried = true; /* by the thread that is here now; a real EFAULT comes again */
            ring_again(ring, chain);
        } else {
            ring_answered(ring, chain, cqe->result);
        }
        __atomic_store_n(uring->cq_head, ++head, __ATOMIC_RELEASE);
    }
}

/* ---- the ring ---- */

/* Also in a child: closing and unmapping are its own affair, neither reaches the parent's ring. */
static void destroy(struct ring *ring)
{
    uring_release((struct uring *)ring);
}

static const struct ring_ops uring_ops = {
    .push = push,
    .pull = pull,
    .register_memory = register_memory,
    .destroy = destroy,
    .abandon = destroy,
};

struct ring *uring_new(struct ring_bounds bounds, bool force_async, int event_fd)
{
    struct uring *uring = calloc(1, sizeof(*uring));
    if (!uring) {
        return NULL;
    }
    uring->fd = -1;
    uring->force_async = force_async;
    if (ring_init(&uring->ring, &uring_ops, bounds, event_fd) < 0 || set_up(uring, bounds.depth, event_fd) < 0) {
        int error = errno;
        uring_release(uring);
        errno = error;
        return NULL;
    }
    return &uring->ring;
}

/* ---- the type ---- */

static PyObject *uring_context_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"depth", "max_bytes", "force_async", NULL};
    Py_ssize_t depth, max_bytes = 0;
    int force_async = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "n|np:UringContext", names, &depth, &max_bytes, &force_async)) {
        return NULL;
    }
    struct context *self = ring_context_new(type, depth, max_bytes);
    if (!self) {
        return NULL;
    }
    struct ring *ring;
    int error;
    Py_BEGIN_ALLOW_THREADS
    ring = uring_new((struct ring_bounds){self->size, self->size, (uint64_t)max_bytes}, force_async != 0, self->event_fd);
    error = errno;
    Py_END_ALLOW_THREADS
    return context_adopt(self, &ring_engine_ops, ring, error);
}

static PyObject *uring_register_memory(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    struct context *self = (struct context *)op;
    return ring_register_memory(self, self->engine, args, count);
}

static PyMethodDef uring_methods[] = {
    {"submit", METHOD(context_submit_method), METH_FASTCALL, SUBMIT_DOC("requests, token, chunk=1")},
    {"register_memory", METHOD(uring_register_memory), METH_FASTCALL, REGISTER_DOC},
    CONTEXT_METHODS,
};

static PyGetSetDef uring_attributes[] = {RING_ATTRIBUTES, {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot uring_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("UringContext(depth, max_bytes=0, force_async=False)\n--\n\n"
                                  "io_uring, driven by its caller, who also runs what is no transfer.")},
    {Py_tp_new, uring_context_new},
    {Py_tp_methods, uring_methods},
    {Py_tp_getset, uring_attributes},
    CONTEXT_SLOTS,
};

PyType_Spec uring_context_spec = {
    .name = "ucm_async._native.UringContext",
    .basicsize = sizeof(struct context),
    .flags = CONTEXT_FLAGS,
    .slots = uring_slots,
};

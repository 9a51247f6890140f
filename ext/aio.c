/* Native AIO: completions are announced by the eventfd (IOCB_FLAG_RESFD) and read from the ring that the kernel maps. */
#include "ring.h"

#include <errno.h>
#include <linux/aio_abi.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { ARRAY = 64 }; /* requests a system call */

#define COMPLETION_RING_MAGIC 0xA10A10A1u

/* What io_setup maps: fs/aio.c, struct aio_ring. Stable since 2.6, and marked by its magic. */
struct completion_ring {
    uint32_t id;
    uint32_t size;
    uint32_t head; /* ours */
    uint32_t tail; /* the kernel's */
    uint32_t magic;
    uint32_t compatible_features;
    uint32_t incompatible_features;
    uint32_t header_bytes;
    struct io_event events[];
};

struct aio {
    struct ring ring; /* first */
    aio_context_t kernel; /* also the address of the completion ring */
    struct iocb *controls; /* one a chain */
};

static void aio_release(struct aio *aio)
{
    ring_free(&aio->ring);
    free(aio->controls);
    free(aio);
}

/* ---- down ---- */

static void describe(struct iocb *control, const struct chain *chain, unsigned index, int event_fd)
{
    struct transfer transfer = ring_transfer(chain);
    uint16_t scalar = transfer.writing ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
    uint16_t vectored = transfer.writing ? IOCB_CMD_PWRITEV : IOCB_CMD_PREADV;
    *control = (struct iocb){
        .aio_data = index,
        .aio_lio_opcode = transfer.vectored ? vectored : scalar,
        .aio_fildes = (uint32_t)transfer.fd,
        .aio_buf = transfer.address,
        .aio_nbytes = transfer.length,
        .aio_offset = (int64_t)transfer.offset,
        .aio_flags = IOCB_FLAG_RESFD,
        .aio_resfd = (uint32_t)event_fd,
    };
}

static unsigned gather(struct aio *aio, struct iocb *list[ARRAY])
{
    unsigned count = 0;
    for (const struct chain *chain = aio->ring.ready.head; chain && count < ARRAY; chain = chain->next) {
        unsigned index = ring_index(&aio->ring, chain);
        describe(&aio->controls[index], chain, index, aio->ring.event_fd);
        list[count++] = &aio->controls[index];
    }
    return count;
}

/* Give the kernel what the bounds allow. Returns when everything is there or the kernel has no room. */
static void push(struct ring *ring)
{
    struct aio *aio = (struct aio *)ring;
    for (;;) {
        struct iocb *list[ARRAY];
        ring_fill(ring);
        unsigned count = gather(aio, list);
        if (count == 0) {
            return;
        }
        long taken = syscall(SYS_io_submit, aio->kernel, (long)count, list);
        if (taken > 0) {
            ring_accepted(ring, (unsigned)taken);
            continue;
        }
        int error = taken < 0 ? errno : EAGAIN;
        if (error == EINTR) {
            continue;
        }
        if (error == EAGAIN && ring->in_flight) {
            return; /* the next completion makes room */
        }
        ring_refused(ring, error); /* it is the first of the list that the kernel speaks of */
    }
}

/* ---- up ---- */

static void answer(struct aio *aio, const struct io_event *event)
{
    ring_answered(&aio->ring, &aio->ring.chains[event->data], event->res);
}

static void pull_by_call(struct aio *aio)
{
    struct io_event events[ARRAY];
    struct timespec now = {0, 0};
    for (;;) {
        long got = syscall(SYS_io_getevents, aio->kernel, 0L, (long)ARRAY, events, &now);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        for (long i = 0; i < got; i++) {
            answer(aio, &events[i]);
        }
        if (got < ARRAY) {
            return;
        }
    }
}

/* Take every completion that is there; without a system call where the mapped ring is as we know it. */
static void pull(struct ring *ring)
{
    struct aio *aio = (struct aio *)ring;
    struct completion_ring *done = pointer_to(aio->kernel);
    if (done->magic != COMPLETION_RING_MAGIC || done->incompatible_features) {
        pull_by_call(aio);
        return;
    }
    uint32_t head = done->head;
    while (head != __atomic_load_n(&done->tail, __ATOMIC_ACQUIRE)) {
        answer(aio, &done->events[head]);
        head = head + 1 == done->size ? 0 : head + 1;
        __atomic_store_n(&done->head, head, __ATOMIC_RELEASE);
    }
}

/* ---- set up and down ---- */

static int no_registered_memory(struct ring *ring, uint64_t address, uint64_t length)
{
    (void)ring, (void)address, (void)length;
    return EOPNOTSUPP;
}

static void destroy(struct ring *ring)
{
    struct aio *aio = (struct aio *)ring;
    syscall(SYS_io_destroy, aio->kernel);
    aio_release(aio);
}

/* The kernel's context belongs to the parent's memory map; the child never had it. */
static void abandon(struct ring *ring)
{
    aio_release((struct aio *)ring);
}

static const struct ring_ops aio_ops = {
    .push = push,
    .pull = pull,
    .register_memory = no_registered_memory,
    .destroy = destroy,
    .abandon = abandon,
};

struct ring *aio_new(struct ring_bounds bounds, int event_fd)
{
    struct aio *aio = calloc(1, sizeof(*aio));
    if (!aio) {
        return NULL;
    }
    aio->controls = calloc(bounds.chains, sizeof(aio->controls[0]));
    if (!aio->controls || ring_init(&aio->ring, &aio_ops, bounds, event_fd) < 0) {
        aio_release(aio);
        errno = ENOMEM;
        return NULL;
    }
    if (syscall(SYS_io_setup, bounds.depth, &aio->kernel) < 0) {
        int error = errno;
        aio_release(aio);
        errno = error;
        return NULL;
    }
    return &aio->ring;
}

/* ---- the type ---- */

static PyObject *aio_context_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"depth", "max_bytes", NULL};
    Py_ssize_t depth, max_bytes = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "n|n:AioContext", names, &depth, &max_bytes)) {
        return NULL;
    }
    struct context *self = ring_context_new(type, depth, max_bytes);
    if (!self) {
        return NULL;
    }
    struct ring *ring;
    int error;
    Py_BEGIN_ALLOW_THREADS
    ring = aio_new((struct ring_bounds){self->size, self->size, (uint64_t)max_bytes}, self->event_fd);
    error = errno;
    Py_END_ALLOW_THREADS
    return context_adopt(self, &ring_engine_ops, ring, error);
}

static PyMethodDef aio_methods[] = {
    {"submit", METHOD(context_submit_method), METH_FASTCALL, SUBMIT_DOC("requests, token, chunk=1")},
    CONTEXT_METHODS,
};

static PyGetSetDef aio_attributes[] = {RING_ATTRIBUTES, {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot aio_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("AioContext(depth, max_bytes=0)\n--\n\n"
                                  "Linux native AIO, driven by its caller, who also runs what is no transfer.")},
    {Py_tp_new, aio_context_new},
    {Py_tp_methods, aio_methods},
    {Py_tp_getset, aio_attributes},
    CONTEXT_SLOTS,
};

PyType_Spec aio_context_spec = {
    .name = "ucm_async._native.AioContext",
    .basicsize = sizeof(struct context),
    .flags = CONTEXT_FLAGS,
    .slots = aio_slots,
};

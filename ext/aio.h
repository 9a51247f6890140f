/* Linux native AIO (io_setup(2), io_submit(2)). */
#ifndef UCM_AIO_H
#define UCM_AIO_H

#include "context.h"
#include "ring.h"

/* NULL with errno; EAGAIN if the system's aio-max-nr is used up. */
void *aio_new(unsigned depth, uint64_t max_bytes, int event_fd);
const struct ring *aio_ring_of(const void *engine);

extern const struct engine_ops aio_ops;

#endif

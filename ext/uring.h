/* io_uring over raw system calls. */
#ifndef UCM_URING_H
#define UCM_URING_H

#include "context.h"
#include "ring.h"

/* NULL with errno: ENOSYS, EPERM (seccomp, kernel.io_uring_disabled), ENOMEM (RLIMIT_MEMLOCK of old kernels) ... */
void *uring_new(unsigned depth, uint64_t max_bytes, bool force_async, int event_fd);
const struct ring *uring_ring_of(const void *engine);

/* Register one range of memory. 0, or an errno. */
int uring_register(void *engine, uint64_t address, uint64_t length);

extern const struct engine_ops uring_ops;

#endif

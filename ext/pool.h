/* Threads that run batches of requests and never touch Python. */
#ifndef UCM_POOL_H
#define UCM_POOL_H

#include "context.h"

struct pool;

/* Start `threads` threads. NULL with errno. */
struct pool *pool_new(unsigned threads, const char *name, int event_fd);
size_t pool_pending(const struct pool *pool);

extern const struct engine_ops pool_ops;

#endif

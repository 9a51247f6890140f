/* Requests run in the calling thread, without Python. */
#ifndef UCM_PERFORM_H
#define UCM_PERFORM_H

#include "request.h"

#include <stdbool.h>

/* Run `count` requests one after another; links and chains refer to earlier ones of the same call. */
void perform(struct request *requests, size_t count);

/* True if the request's gate is closed: it need not be started any more. */
bool request_is_cancelled(const struct request *request);

/* After a transfer moved `got` bytes, fewer than it should: may the rest still follow? */
bool transfer_continues(int fd, bool writing, uint64_t got);

#endif

/* Requests run in the calling thread, without Python. */
#ifndef UCM_PERFORM_H
#define UCM_PERFORM_H

#include "request.h"

#include <stdbool.h>
#include <sys/uio.h>

/* The bytes that a data request is to move. */
static inline uint64_t request_bytes(const struct request *request)
{
    uint32_t opcode = request->opcode & OP_MASK;
    if (opcode == OP_READ || opcode == OP_WRITE) {
        return request->length;
    }
    const struct iovec *vectors = pointer_to(request->address);
    uint64_t total = 0;
    for (uint64_t i = 0; i < request->length; i++) {
        total += vectors[i].iov_len;
    }
    return total;
}

/* Run `count` requests one after another; links and chains refer to earlier ones of the same call. */
void perform(struct request *requests, size_t count);

/* True if the request's gate is closed: it need not be started any more. */
bool request_is_cancelled(const struct request *request);

/* After a transfer moved `got` bytes, fewer than it should: may the rest still follow? */
bool transfer_continues(int fd, bool writing, uint64_t got);

#endif

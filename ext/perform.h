/* Requests run in the calling thread, without Python. */
#ifndef UCM_PERFORM_H
#define UCM_PERFORM_H

#include "request.h"

#include <stdbool.h>

/* What a chain remembers for its requests that follow. Whoever runs the chain next carries it. */
struct job {
    int fd;           /* of the last OP_OPEN, or a negative errno for those that are linked to it */
    bool well;        /* all requests so far did what they should */
    int64_t previous; /* result of the request before */
};

struct job job_begin(void);

/* 0, or the error with which the request ends without being run. */
int64_t job_refusal(const struct job *job, const struct request *request);

/* The descriptor that a request works on; job_refusal said that there is one. */
int job_descriptor(const struct job *job, const struct request *request);

/* Remember the result of a request, however it came about, and publish it. */
void job_settle(struct job *job, struct request *request, int64_t result);

/* Run a request here and settle it. */
void job_perform(struct job *job, struct request *request);

/* Run a whole chain of `count` requests. */
void perform(struct request *requests, size_t count);

/* True for OP_READ, OP_WRITE, OP_READV and OP_WRITEV. */
static inline bool request_is_data(const struct request *request)
{
    uint32_t opcode = request->opcode & OP_MASK;
    return opcode >= OP_READ && opcode <= OP_WRITEV;
}

/* The bytes that a data request is to move. */
uint64_t request_bytes(const struct request *request);

/* After a transfer moved `got` bytes, fewer than it should: may the rest still follow? */
bool transfer_continues(int fd, bool writing, uint64_t got);

#endif

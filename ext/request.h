/* The packed request. The layout is REQUEST of ucm_async/engines/requests.py; a test compares the two. */
#ifndef UCM_REQUEST_H
#define UCM_REQUEST_H

#include "platform.h"

#include <stddef.h>

struct request {
    uint32_t opcode; /* OP_*, and FLAG_* above OP_MASK */
    int32_t fd;
    uint64_t offset;
    uint64_t address;
    uint64_t length;
    uint64_t gate; /* address of a gate's state word, 0 = none */
    int64_t result;
};

_Static_assert(sizeof(struct request) == 48, "REQUEST is 48 bytes");
_Static_assert(offsetof(struct request, fd) == 4, "REQUEST.fd");
_Static_assert(offsetof(struct request, offset) == 8, "REQUEST.offset");
_Static_assert(offsetof(struct request, address) == 16, "REQUEST.address");
_Static_assert(offsetof(struct request, length) == 24, "REQUEST.length");
_Static_assert(offsetof(struct request, gate) == 32, "REQUEST.gate");
_Static_assert(offsetof(struct request, result) == 40, "REQUEST.result");

enum {
    OP_NOP = 0,
    OP_READ = 1,
    OP_WRITE = 2,
    OP_READV = 3,
    OP_WRITEV = 4,
    OP_FDATASYNC = 5,
    OP_OPEN = 6,
    OP_CLOSE = 7,
    OP_RENAME = 8,
    OP_UNLINK = 9,
    OP_STAT = 10,
    OP_MKDIR = 11,
    OP_FALLOCATE = 12,
    OP_FSYNC = 13,
    OP_COPY = 16,
    OP_CHECKSUM = 17,
    OP_MOVE = 18,
};

#define OP_MASK 0xFFu
#define FLAG_LINK 0x100u
#define FLAG_CHAIN 0x200u
#define FLAG_CACHED 0x400u
#define FLAG_IF_WELL 0x800u
#define FLAG_ALL (FLAG_LINK | FLAG_CHAIN | FLAG_CACHED | FLAG_IF_WELL)

#define PENDING_RESULT INT64_MIN
#define IOVECS_MAX 1024u /* the kernel's UIO_MAXIOV */

/* Python may look at a result while other threads run: it must see the bytes that the result speaks of. */
static inline void request_publish(struct request *request, int64_t result)
{
    __atomic_store_n(&request->result, result, __ATOMIC_RELEASE);
}

#endif

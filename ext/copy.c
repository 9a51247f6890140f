/* Copies and checksums of requests, piece by piece inside the gate. */
#include "crc32c.h"
#include "gate.h"
#include "perform.h"

#include <errno.h>

/* The longest that a gate is held: a few microseconds. */
enum { PIECE_BYTES = 64 * 1024 };

bool request_is_cancelled(const struct request *request)
{
    return request->gate && gate_is_closed(pointer_to(request->gate));
}

static int64_t in_pieces(const struct request *request, uint32_t value, const char *source, char *target)
{
    uint32_t *gate = pointer_to(request->gate);
    for (uint64_t done = 0; done < request->length;) {
        uint64_t left = request->length - done;
        size_t piece = left < PIECE_BYTES ? left : PIECE_BYTES;
        if (gate && !gate_enter(gate)) {
            return -ECANCELED;
        }
        value = target ? crc32c_copy(value, target + done, source + done, piece)
                       : crc32c_update(value, source + done, piece);
        if (gate) {
            gate_leave(gate);
        }
        done += piece;
    }
    return value;
}

int64_t perform_copy(const struct request *request, uint32_t value)
{
    if (request->length && !request->address) {
        return -EFAULT;
    }
    return in_pieces(request, value, pointer_to(request->offset), pointer_to(request->address));
}

int64_t perform_checksum(const struct request *request, uint32_t value)
{
    return in_pieces(request, value, pointer_to(request->address), NULL);
}

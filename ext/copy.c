/* Requests run in the calling thread, one after another: plain system calls, and copies inside their gate. */
#include "perform.h"

#include "crc32c.h"
#include "gate.h"
#include "move.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* linux/openat2.h; not in old headers. */
struct open_how_v0 {
    uint64_t flags, mode, resolve;
};
#define RESOLVE_IF_CACHED 0x20u
#define RENAME_KEEP_EXISTING 1u /* RENAME_NOREPLACE */

/* O_DIRECT ends on a boundary of the device unless the file ends. */
enum { SECTOR_BYTES = 512 };

/* -errno of a failed system call, its value otherwise. */
static int64_t outcome(int64_t returned)
{
    return returned < 0 ? -errno : returned;
}

#define RETRY(call)                                                                                                    \
    __extension__({                                                                                                    \
        int64_t returned_;                                                                                             \
        do {                                                                                                           \
            returned_ = (call);                                                                                        \
        } while (returned_ < 0 && errno == EINTR);                                                                     \
        outcome(returned_);                                                                                            \
    })

bool transfer_continues(int fd, bool writing, uint64_t got)
{
    if (writing || got % SECTOR_BYTES == 0) {
        return true;
    }
    int flags = fcntl(fd, F_GETFL);
    return flags < 0 || !(flags & O_DIRECT);
}

/* Until everything is moved, the file ends or an error comes. */
static int64_t transfer(int fd, const struct request *request, bool writing)
{
    char *memory = pointer_to(request->address);
    uint64_t done = 0;
    while (done < request->length) {
        size_t left = request->length - done;
        off_t offset = (off_t)(request->offset + done);
        int64_t got = RETRY(writing ? pwrite(fd, memory + done, left, offset) : pread(fd, memory + done, left, offset));
        if (got < 0) {
            return got;
        }
        if (got == 0) {
            return writing ? -EIO : (int64_t)done;
        }
        done += (uint64_t)got;
        if (done < request->length && !transfer_continues(fd, writing, (uint64_t)got)) {
            break;
        }
    }
    return (int64_t)done;
}

/* Drop the first `bytes` of what a list of iovecs names; returns how many iovecs that used up. */
static size_t advance(struct iovec *vectors, size_t count, size_t bytes)
{
    size_t used = 0;
    while (used < count && bytes >= vectors[used].iov_len) {
        bytes -= vectors[used].iov_len;
        used++;
    }
    if (used < count) {
        vectors[used].iov_base = (char *)vectors[used].iov_base + bytes;
        vectors[used].iov_len -= bytes;
    }
    return used;
}

static int64_t vectored(int fd, const struct iovec *vectors, size_t count, uint64_t offset, bool writing)
{
    return RETRY(writing ? pwritev(fd, vectors, (int)count, (off_t)offset) : preadv(fd, vectors, (int)count, (off_t)offset));
}

/* Go on after a short vectored transfer, with a copy of the iovecs: the caller's stay as they are. */
static int64_t transfer_rest(int fd, const struct request *request, uint64_t done, uint64_t total, bool writing)
{
    struct iovec copy[IOVECS_MAX];
    size_t count = request->length;
    memcpy(copy, pointer_to(request->address), count * sizeof(copy[0]));
    struct iovec *rest = copy;
    uint64_t last = done;
    while (done < total && transfer_continues(fd, writing, last)) {
        size_t used = advance(rest, count, last);
        rest += used;
        count -= used;
        int64_t got = vectored(fd, rest, count, request->offset + done, writing);
        if (got < 0) {
            return got;
        }
        if (got == 0) {
            return writing ? -EIO : (int64_t)done;
        }
        last = (uint64_t)got;
        done += last;
    }
    return (int64_t)done;
}

static int64_t transfer_vectors(int fd, const struct request *request, bool writing)
{
    const struct iovec *vectors = pointer_to(request->address);
    if (request->length > IOVECS_MAX) {
        return -EINVAL;
    }
    uint64_t total = request_bytes(request);
    if (total == 0) {
        return 0;
    }
    int64_t got = vectored(fd, vectors, request->length, request->offset, writing);
    if (got <= 0 || (uint64_t)got == total) {
        return got == 0 && writing ? -EIO : got;
    }
    return transfer_rest(fd, request, (uint64_t)got, total, writing);
}

/* Only if no disk is needed. A kernel that cannot tell says EAGAIN, too: the caller then opens in the usual way. */
static int64_t open_cached(int fd, const char *path, uint64_t flags, uint64_t mode)
{
    struct open_how_v0 how = {.flags = flags, .mode = flags & O_CREAT ? mode : 0, .resolve = RESOLVE_IF_CACHED};
    int64_t result = RETRY(syscall(SYS_openat2, fd, path, &how, sizeof(how)));
    return result == -ENOSYS || result == -EINVAL || result == -E2BIG ? -EAGAIN : result;
}

static int64_t open_file(int fd, const struct request *request)
{
    const char *path = pointer_to(request->address);
    uint64_t flags = request->offset | O_CLOEXEC;
    if (request->opcode & FLAG_CACHED) {
        return open_cached(fd, path, flags, request->length);
    }
    return RETRY(openat(fd, path, (int)flags, (mode_t)request->length));
}

static int64_t rename_file(int fd, const struct request *request)
{
    const char *from = pointer_to(request->address);
    const char *to = pointer_to(request->offset);
    unsigned flags = (unsigned)request->length;
    int64_t result = outcome(syscall(SYS_renameat2, fd, from, fd, to, flags));
    if (flags != RENAME_KEEP_EXISTING || (result != -EINVAL && result != -ENOSYS)) {
        return result;
    }
    /* File systems without NOREPLACE: a link is as atomic, and it fails if the name exists. */
    result = outcome(linkat(fd, from, fd, to, 0));
    return result < 0 ? result : outcome(unlinkat(fd, from, 0));
}

static int64_t file_size(int fd, const struct request *request)
{
    struct stat status;
    int64_t result = outcome(fstatat(fd, pointer_to(request->address), &status, 0));
    if (result < 0) {
        return result;
    }
    return S_ISREG(status.st_mode) ? (int64_t)status.st_size : -EISDIR;
}

static int64_t close_file(int fd)
{
    int64_t result = outcome(close(fd));
    return result == -EINTR ? 0 : result; /* Linux has closed it by then */
}

/* ---- memory ---- */

static int64_t in_pieces(const struct request *request, uint32_t value, const char *source, char *target)
{
    uint32_t *gate = pointer_to(request->gate);
    bool streaming = request->length >= STREAMING_BYTES;
    for (uint64_t done = 0; done < request->length;) {
        uint64_t left = request->length - done;
        size_t piece = left < PIECE_BYTES ? left : PIECE_BYTES;
        if (gate && !gate_enter(gate)) {
            return -ECANCELED;
        }
        value = target ? crc32c_copy(value, target + done, source + done, piece, streaming)
                       : crc32c_update(value, source + done, piece);
        if (gate) {
            gate_leave(gate);
        }
        done += piece;
    }
    return value;
}

static int64_t perform_copy(const struct request *request, uint32_t value)
{
    if (request->length && !request->address) {
        return -EFAULT;
    }
    return in_pieces(request, value, pointer_to(request->offset), pointer_to(request->address));
}

static int64_t perform_move(const struct request *request)
{
    if (request->length && !request->address) {
        return -EFAULT;
    }
    uint32_t *gate = pointer_to(request->gate);
    bool whole = move_gated(gate, pointer_to(request->address), pointer_to(request->offset), request->length);
    return whole ? 0 : -ECANCELED;
}

static int64_t perform_checksum(const struct request *request, uint32_t value)
{
    return in_pieces(request, value, pointer_to(request->address), NULL);
}

/* ---- one request ---- */

/* A file system that reserves nothing allocates when the bytes are written: no reason to stop. */
static int64_t reserve_space(int fd, const struct request *request)
{
    int64_t result = RETRY(fallocate(fd, 0, (off_t)request->offset, (off_t)request->length));
    return result == -EOPNOTSUPP || result == -ENOSYS ? 0 : result;
}

static int64_t perform_file(int fd, const struct request *request)
{
    const char *path = pointer_to(request->address);
    switch (request->opcode & OP_MASK) {
    case OP_FDATASYNC:
        return RETRY(fdatasync(fd));
    case OP_FSYNC:
        return RETRY(fsync(fd));
    case OP_OPEN:
        return open_file(fd, request);
    case OP_CLOSE:
        return close_file(fd);
    case OP_RENAME:
        return rename_file(fd, request);
    case OP_UNLINK:
        return outcome(unlinkat(fd, path, (int)request->length));
    case OP_STAT:
        return file_size(fd, request);
    case OP_MKDIR:
        return outcome(mkdirat(fd, path, (mode_t)request->length));
    case OP_FALLOCATE:
        return reserve_space(fd, request);
    default:
        return -EINVAL;
    }
}

static int64_t perform_data(int fd, const struct request *request)
{
    switch (request->opcode & OP_MASK) {
    case OP_READ:
        return transfer(fd, request, false);
    case OP_WRITE:
        return transfer(fd, request, true);
    case OP_READV:
        return transfer_vectors(fd, request, false);
    default:
        return transfer_vectors(fd, request, true);
    }
}

static bool is_memory(uint32_t opcode)
{
    return opcode == OP_COPY || opcode == OP_CHECKSUM || opcode == OP_MOVE;
}

static int64_t perform_memory(const struct request *request, const struct job *job)
{
    uint32_t value = request->opcode & FLAG_CHAIN ? (uint32_t)job->previous : 0;
    if ((request->opcode & OP_MASK) == OP_MOVE) {
        return perform_move(request);
    }
    return (request->opcode & OP_MASK) == OP_COPY ? perform_copy(request, value) : perform_checksum(request, value);
}

static int64_t perform_one(const struct request *request, const struct job *job)
{
    uint32_t opcode = request->opcode & OP_MASK;
    if (opcode == OP_NOP) {
        return 0;
    }
    if (is_memory(opcode)) {
        return perform_memory(request, job);
    }
    int fd = job_descriptor(job, request);
    return request_is_data(request) ? perform_data(fd, request) : perform_file(fd, request);
}

/* ---- the requests of a chain ---- */

struct job job_begin(void)
{
    return (struct job){.fd = -EBADF, .well = true, .previous = PENDING_RESULT};
}

static int64_t refusal_of_data(const struct request *request)
{
    uint32_t opcode = request->opcode & OP_MASK;
    if ((opcode == OP_READV || opcode == OP_WRITEV) && request->length > IOVECS_MAX) {
        return -EINVAL;
    }
    /* The kernel's own transfer cannot be held off by a gate; a cancelled one is at least not begun. */
    return request->gate && gate_is_closed(pointer_to(request->gate)) ? -ECANCELED : 0;
}

int64_t job_refusal(const struct job *job, const struct request *request)
{
    uint32_t opcode = request->opcode & OP_MASK;
    if (request->opcode & ~(OP_MASK | FLAG_ALL)) {
        return -EINVAL;
    }
    if ((request->opcode & FLAG_IF_WELL) && !job->well) {
        return -ECANCELED;
    }
    if (is_memory(opcode)) {
        bool broken = (request->opcode & FLAG_CHAIN) && job->previous < 0;
        int64_t why = job->previous == PENDING_RESULT ? -EINVAL : -ECANCELED;
        return broken ? why : 0;
    }
    if (opcode != OP_NOP && (request->opcode & FLAG_LINK) && job->fd < 0) {
        return job->fd;
    }
    return request_is_data(request) ? refusal_of_data(request) : 0;
}

int job_descriptor(const struct job *job, const struct request *request)
{
    return request->opcode & FLAG_LINK ? job->fd : request->fd;
}

uint64_t request_bytes(const struct request *request)
{
    uint32_t opcode = request->opcode & OP_MASK;
    if (opcode == OP_READ || opcode == OP_WRITE) {
        return request->length;
    }
    const struct iovec *vectors = pointer_to(request->address);
    uint64_t total = 0;
    for (size_t i = 0; i < request->length; i++) {
        total += vectors[i].iov_len;
    }
    return total;
}

static bool went_well(const struct request *request, int64_t result)
{
    return result >= 0 && (!request_is_data(request) || (uint64_t)result == request_bytes(request));
}

static void remember_descriptor(struct job *job, const struct request *request, int64_t result)
{
    uint32_t opcode = request->opcode & OP_MASK;
    if (opcode == OP_OPEN) {
        job->fd = result < 0 ? -ECANCELED : (int)result;
    } else if (opcode == OP_CLOSE && (request->opcode & FLAG_LINK)) {
        job->fd = -EBADF; /* the number may belong to somebody else by now */
    }
}

void job_settle(struct job *job, struct request *request, int64_t result)
{
    job->previous = result;
    job->well = job->well && went_well(request, result);
    request_publish(request, result);
}

void job_perform(struct job *job, struct request *request)
{
    int64_t result = job_refusal(job, request);
    if (!result) {
        result = perform_one(request, job);
        remember_descriptor(job, request, result);
    }
    job_settle(job, request, result);
}

void perform(struct request *requests, size_t count)
{
    struct job job = job_begin();
    for (size_t i = 0; i < count; i++) {
        job_perform(&job, &requests[i]);
    }
}

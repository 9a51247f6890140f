/* The part of the io_uring interface that is used here (io_uring(7), io_uring_setup(2), io_uring_enter(2)).
 * Declared here so that the extension builds where the kernel headers are older than the kernel.
 */
#ifndef UCM_URING_ABI_H
#define UCM_URING_ABI_H

#include <stdint.h>

struct uring_sqe { /* struct io_uring_sqe, 64 bytes */
    uint8_t opcode;
    uint8_t flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t offset;
    uint64_t address;
    uint32_t length;
    uint32_t rw_flags;
    uint64_t user_data;
    uint16_t buffer_index;
    uint16_t personality;
    int32_t file_index;
    uint64_t unused[2];
};

struct uring_cqe {
    uint64_t user_data;
    int32_t result;
    uint32_t flags;
};

struct uring_sq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, reserved;
    uint64_t user_address;
};

struct uring_cq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, reserved;
    uint64_t user_address;
};

struct uring_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd, reserved[3];
    struct uring_sq_offsets sq;
    struct uring_cq_offsets cq;
};

_Static_assert(sizeof(struct uring_sqe) == 64, "io_uring_sqe");
_Static_assert(sizeof(struct uring_cqe) == 16, "io_uring_cqe");
_Static_assert(sizeof(struct uring_params) == 120, "io_uring_params");

enum {
    URING_OP_READV = 1,
    URING_OP_WRITEV = 2,
    URING_OP_READ_FIXED = 4,
    URING_OP_WRITE_FIXED = 5,
    URING_OP_READ = 22,
    URING_OP_WRITE = 23,
};

#define URING_SQE_ASYNC (1u << 4) /* IOSQE_ASYNC */

#define URING_FEATURE_SINGLE_MMAP (1u << 0)
#define URING_FEATURE_NODROP (1u << 1)
#define URING_FEATURE_RW_CUR_POS (1u << 3) /* 5.6, as OP_READ and OP_WRITE are */

#define URING_REGISTER_BUFFERS 0u
#define URING_REGISTER_EVENTFD 4u

#define URING_OFFSET_RINGS 0L
#define URING_OFFSET_SQES 0x10000000L

#endif

/* What this machine's storage gives a C program: the yardstick of `ucm-async bench engine` and `bench slab`.
 *
 *   limit ENGINE LAYOUT DIRECT BLOCK_BYTES BLOCKS DEPTH HUGE PATH [MODE] [SEED]
 *
 *   ENGINE  uring: io_uring, DEPTH requests in flight; thr: DEPTH threads, one system call a block
 *   LAYOUT  files: PATH is a folder of 000000, 000001, ...
 *           slab: PATH is one file, block i at i * BLOCK_BYTES; MODE w allocates it before the clock, if it is missing
 *   DIRECT  1: O_DIRECT         HUGE  1: buffers in huge pages
 *   MODE    r (default): read the files, opened before; w: overwrite them; c: each thread creates a file under
 *           another name, writes it, closes it and renames it (ENGINE thr, PATH without these files)
 *   SEED    accepted and not used: every file is taken once, in order
 *
 * Prints one line: "X MB/s Y iops cpu_us/op Z", of the transfers alone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define THREADS_MAX 256

static size_t block_bytes;
static unsigned blocks, depth;
static int direct_flag, writing;
static const char *folder;
static char *memory;
static int *files;
static int is_slab;

static void fail(const char *what)
{
    fprintf(stderr, "limit: %s: %s\n", what, strerror(errno));
    exit(1);
}

static char *block_at(unsigned i)
{
    return memory + (size_t)i * block_bytes;
}

static void name_of(char *out, size_t size, const char *prefix, unsigned i)
{
    if (snprintf(out, size, "%s/%s%06u", folder, prefix, i) >= (int)size) {
        errno = ENAMETOOLONG;
        fail(folder);
    }
}

static void map_memory(int huge)
{
    size_t length = ((size_t)blocks * block_bytes + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    char *raw = mmap(NULL, length + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED)
        fail("mmap");
    memory = (char *)(((uintptr_t)raw + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    madvise(memory, length, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    memset(memory, 7, length);
}

static off_t offset_of(unsigned i)
{
    return is_slab ? (off_t)i * (off_t)block_bytes : 0;
}

static void open_slab(void)
{
    int fd = open(folder, (writing ? O_WRONLY | O_CREAT : O_RDONLY) | direct_flag | O_CLOEXEC, 0644);
    if (fd < 0)
        fail(folder);
    off_t length = offset_of(blocks);
    if (writing && lseek(fd, 0, SEEK_END) < length && (errno = posix_fallocate(fd, 0, length)) != 0)
        fail("posix_fallocate");
    for (unsigned i = 0; i < blocks; i++)
        files[i] = fd;
}

static void open_files(void)
{
    char path[4096];
    for (unsigned i = 0; i < blocks; i++) {
        name_of(path, sizeof path, "", i);
        files[i] = open(path, (writing ? O_WRONLY : O_RDONLY) | direct_flag | O_CLOEXEC);
        if (files[i] < 0)
            fail(path);
    }
}

/* --- threads --- */

static atomic_uint next_block;

static void transfer_one(unsigned i)
{
    ssize_t n = writing ? pwrite(files[i], block_at(i), block_bytes, offset_of(i))
                        : pread(files[i], block_at(i), block_bytes, offset_of(i));
    if (n != (ssize_t)block_bytes) {
        errno = n < 0 ? errno : EIO;
        fail("transfer");
    }
}

static void create_one(unsigned i)
{
    char hidden[4096], visible[4096];
    name_of(hidden, sizeof hidden, ".new-", i);
    name_of(visible, sizeof visible, "", i);
    int fd = open(hidden, O_WRONLY | O_CREAT | O_EXCL | direct_flag | O_CLOEXEC, 0644);
    if (fd < 0)
        fail(hidden);
    if (pwrite(fd, block_at(i), block_bytes, 0) != (ssize_t)block_bytes)
        fail("write");
    if (close(fd) != 0 || rename(hidden, visible) != 0)
        fail(visible);
}

static void *take_blocks(void *one)
{
    void (*work)(unsigned) = *(void (**)(unsigned))one;
    for (unsigned i; (i = atomic_fetch_add(&next_block, 1)) < blocks;)
        work(i);
    return NULL;
}

static void run_threads(void (*work)(unsigned))
{
    pthread_t threads[THREADS_MAX];
    for (unsigned i = 0; i < depth; i++)
        if ((errno = pthread_create(&threads[i], NULL, take_blocks, &work)) != 0)
            fail("pthread_create");
    for (unsigned i = 0; i < depth; i++)
        pthread_join(threads[i], NULL);
}

/* --- io_uring, over the raw system calls --- */

struct ring {
    int fd;
    unsigned sq_mask, cq_mask;
    _Atomic unsigned *sq_tail, *cq_head, *cq_tail;
    unsigned *sq_array;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
};

static void open_ring(struct ring *ring)
{
    struct io_uring_params p;
    memset(&p, 0, sizeof p);
    ring->fd = (int)syscall(SYS_io_uring_setup, depth, &p);
    if (ring->fd < 0)
        fail("io_uring_setup");
    size_t sq_bytes = p.sq_off.array + p.sq_entries * sizeof(unsigned);
    size_t cq_bytes = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    int prot = PROT_READ | PROT_WRITE, how = MAP_SHARED | MAP_POPULATE;
    char *sq = mmap(NULL, sq_bytes, prot, how, ring->fd, IORING_OFF_SQ_RING);
    char *cq = mmap(NULL, cq_bytes, prot, how, ring->fd, IORING_OFF_CQ_RING);
    ring->sqes = mmap(NULL, p.sq_entries * sizeof *ring->sqes, prot, how, ring->fd, IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || (void *)ring->sqes == MAP_FAILED)
        fail("mmap of the ring");
    ring->sq_mask = *(unsigned *)(sq + p.sq_off.ring_mask);
    ring->cq_mask = *(unsigned *)(cq + p.cq_off.ring_mask);
    ring->sq_tail = (_Atomic unsigned *)(sq + p.sq_off.tail);
    ring->sq_array = (unsigned *)(sq + p.sq_off.array);
    ring->cq_head = (_Atomic unsigned *)(cq + p.cq_off.head);
    ring->cq_tail = (_Atomic unsigned *)(cq + p.cq_off.tail);
    ring->cqes = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
}

static void push(struct ring *ring, unsigned i)
{
    unsigned tail = atomic_load_explicit(ring->sq_tail, memory_order_relaxed), slot = tail & ring->sq_mask;
    struct io_uring_sqe *sqe = &ring->sqes[slot];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = writing ? IORING_OP_WRITE : IORING_OP_READ;
    sqe->fd = files[i];
    sqe->off = (uint64_t)offset_of(i);
    sqe->addr = (uint64_t)(uintptr_t)block_at(i);
    sqe->len = (unsigned)block_bytes;
    ring->sq_array[slot] = slot;
    atomic_store_explicit(ring->sq_tail, tail + 1, memory_order_release);
}

static unsigned reap(struct ring *ring)
{
    unsigned head = atomic_load_explicit(ring->cq_head, memory_order_relaxed), start = head;
    unsigned tail = atomic_load_explicit(ring->cq_tail, memory_order_acquire);
    for (; head != tail; head++) {
        int n = ring->cqes[head & ring->cq_mask].res;
        if (n != (int)block_bytes) {
            errno = n < 0 ? -n : EIO;
            fail("transfer");
        }
    }
    atomic_store_explicit(ring->cq_head, head, memory_order_release);
    return head - start;
}

static void run_ring(struct ring *ring)
{
    unsigned pushed = 0, done = 0;
    while (done < blocks) {
        unsigned fresh = 0;
        for (; pushed < blocks && pushed - done < depth; pushed++, fresh++)
            push(ring, pushed);
        do {
            long n = syscall(SYS_io_uring_enter, ring->fd, fresh, 1, IORING_ENTER_GETEVENTS, NULL, 0);
            if (n < 0 && errno != EINTR)
                fail("io_uring_enter");
            fresh -= n > 0 ? (unsigned)n : 0;
        } while (fresh > 0);
        done += reap(ring);
    }
}

/* --- */

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

int main(int argc, char **argv)
{
    if (argc < 9 || (strcmp(argv[2], "files") != 0 && strcmp(argv[2], "slab") != 0)) {
        fprintf(stderr, "usage: limit uring|thr files|slab DIRECT BLOCK_BYTES BLOCKS DEPTH HUGE PATH [r|w|c] [SEED]\n");
        return 2;
    }
    int uring = strcmp(argv[1], "uring") == 0;
    is_slab = strcmp(argv[2], "slab") == 0;
    char mode = argc > 9 ? argv[9][0] : 'r';
    direct_flag = atoi(argv[3]) ? O_DIRECT : 0;
    block_bytes = strtoul(argv[4], NULL, 10);
    blocks = (unsigned)strtoul(argv[5], NULL, 10);
    depth = (unsigned)strtoul(argv[6], NULL, 10);
    folder = argv[8];
    writing = mode != 'r';
    if (!block_bytes || block_bytes > (size_t)1 << 30 || !blocks || !depth || depth > THREADS_MAX ||
        (mode == 'c' && (uring || is_slab))) {
        fprintf(stderr, "limit: sizes and counts must be positive, DEPTH at most %d, mode c with thr and files only\n",
                THREADS_MAX);
        return 2;
    }
    map_memory(atoi(argv[7]));
    files = calloc(blocks, sizeof *files);
    if (files == NULL)
        fail("calloc");
    if (is_slab)
        open_slab();
    else if (mode != 'c')
        open_files();
    struct ring ring;
    if (uring)
        open_ring(&ring);
    double started = seconds_now(), cpu = cpu_seconds();
    if (uring)
        run_ring(&ring);
    else
        run_threads(mode == 'c' ? create_one : transfer_one);
    double took = seconds_now() - started;
    cpu = cpu_seconds() - cpu;
    printf("%.1f MB/s %.0f iops cpu_us/op %.1f\n", (double)block_bytes * blocks / took / 1e6, blocks / took, cpu / blocks * 1e6);
    return 0;
}

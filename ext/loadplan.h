/* The chains that load blocks, one row of each: writing them, and looking at what became of them. Plain C. */
#ifndef UCM_LOADPLAN_H
#define UCM_LOADPLAN_H

#include "request.h"

#include <stdbool.h>
#include <sys/uio.h>

enum {
    PAGE_BYTES = 4096, /* what O_DIRECT asks of addresses, offsets and lengths */
    READS_MAX = 2,     /* of a chain */
    STEPS_AROUND = 3,  /* the first one, the header's checksum, the last one */
};

/* A header as docs/design/format.md tells it. */
enum {
    OWN_CHECKSUM_AT = 8,
    CHECKSUM_FROM = 12, /* its own checksum covers what follows */
    ID_AT = 16,
    ENTRIES_AT = 80,
    ENTRY_BYTES = 24,
    ENTRY_CHECKSUM_AT = 16,
};

/* What is the same for all blocks of a store. */
struct load_layout {
    unsigned char *header; /* a header without id and checksums */
    uint64_t header_used;  /* its bytes */
    uint64_t header_bytes, shard_bytes, block_bytes;
    uint64_t shards;
    uint64_t gap; /* bytes read along between the header and a row */
};

/* A stretch of a row that lies in one of its pieces and in one shard. */
struct run {
    int64_t offset; /* in the row */
    int64_t length;
    int64_t piece, piece_offset;
    int64_t continues; /* the shard of the run before */
};

/* A batch of n rows. */
struct load_batch {
    size_t n, steps, reads, pieces, runs;
    struct request *table;     /* n x steps */
    int64_t *wanted;           /* n x reads: bytes that each must bring */
    struct iovec *vectors;     /* n x (1 + pieces); NULL: reads go to the slots */
    const unsigned char *ids;  /* n */
    const int64_t *shards;     /* n; -1: the whole block */
    const uint64_t *bases;     /* n: slots, or room for the headers */
    const uint64_t *addresses; /* n x pieces */
    const uint64_t *lengths;   /* of the pieces */
    const uint64_t *gates;     /* n */
    const struct run *row;     /* runs */
};

/* How many reads bring the header and the row. */
size_t load_reads(const struct load_layout *layout, int64_t shard, bool direct);

/* All but the first and the last step of each chain. */
void load_write(const struct load_layout *layout, const struct load_batch *batch);

/* Has every chain read what it should, does the header say what it must, and do the checksums agree? */
bool load_all_good(const struct load_layout *layout, const struct load_batch *batch);

#endif

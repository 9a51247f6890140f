/* A chain that loads a row is: a step that leads to its block, one or two reads, CHECKSUM of the header, a COPY or CHECKSUM for each
 * run of the row, and a step that ends it. The first and the last are not written here: where blocks lie is the business of a stage.
 */
#include "loadplan.h"

#include "ids.h"

#include <string.h>

static uint64_t start_of(const struct load_layout *layout, int64_t shard)
{
    return layout->header_bytes + (shard > 0 ? (uint64_t)shard * layout->shard_bytes : 0);
}

static uint64_t length_of(const struct load_layout *layout, int64_t shard)
{
    return shard < 0 ? layout->block_bytes : layout->shard_bytes;
}

size_t load_reads(const struct load_layout *layout, int64_t shard, bool direct)
{
    uint64_t start = start_of(layout, shard);
    return start == layout->header_bytes || (!direct && start / PAGE_BYTES * PAGE_BYTES - layout->header_bytes <= layout->gap) ? 1 : 2;
}

static struct request read_request(uint64_t offset, uint64_t address, uint64_t length, uint64_t gate)
{
    return (struct request){.opcode = OP_READ, .offset = offset, .address = address, .length = length, .gate = gate};
}

/* Whole pages, the header along with the row or before it. */
static void read_to_slot(const struct load_layout *layout, const struct load_batch *batch, size_t i,
                         struct request *steps, int64_t *wanted)
{
    uint64_t base = batch->bases[i], gate = batch->gates[i];
    uint64_t start = start_of(layout, batch->shards[i]) / PAGE_BYTES * PAGE_BYTES;
    uint64_t stop = start_of(layout, batch->shards[i]) + length_of(layout, batch->shards[i]);
    stop = (stop + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    if (load_reads(layout, batch->shards[i], false) == 1) {
        start = 0;
    } else {
        *steps++ = read_request(0, base, layout->header_bytes, gate);
        *wanted++ = (int64_t)layout->header_bytes;
    }
    *steps = read_request(start, base + start, stop - start, gate);
    *wanted = (int64_t)(stop - start);
}

/* The header goes to its room, along with the row that follows it or after it; the row to its pieces. */
static void read_to_pieces(const struct load_layout *layout, const struct load_batch *batch, size_t i,
                           struct request *steps, int64_t *wanted)
{
    struct iovec *vectors = batch->vectors + i * (1 + batch->pieces);
    vectors[0] = (struct iovec){pointer_to(batch->bases[i]), layout->header_bytes};
    for (size_t k = 0; k < batch->pieces; k++) {
        vectors[1 + k] = (struct iovec){pointer_to(batch->addresses[i * batch->pieces + k]), batch->lengths[k]};
    }
    uint64_t start = start_of(layout, batch->shards[i]), length = length_of(layout, batch->shards[i]);
    bool beside = start == layout->header_bytes;
    steps[0] = (struct request){
        .opcode = OP_READV,
        .offset = beside ? 0 : start,
        .address = (uint64_t)(uintptr_t)(vectors + (beside ? 0 : 1)),
        .length = batch->pieces + beside,
        .gate = batch->gates[i],
    };
    wanted[0] = (int64_t)(length + (beside ? layout->header_bytes : 0));
    if (!beside) {
        steps[1] = read_request(0, batch->bases[i], layout->header_bytes, batch->gates[i]);
        wanted[1] = (int64_t)layout->header_bytes;
    }
}

/* Copy the row from its slot into its pieces, or look at it there; each shard gets a checksum of its own. */
static void write_runs(const struct load_layout *layout, const struct load_batch *batch, size_t i, struct request *steps)
{
    uint64_t slot = batch->bases[i] + start_of(layout, batch->shards[i]);
    for (size_t m = 0; m < batch->runs; m++) {
        const struct run *run = &batch->row[m];
        uint64_t piece = batch->addresses[i * batch->pieces + (size_t)run->piece];
        steps[m] = (struct request){
            .opcode = (batch->vectors ? OP_CHECKSUM : OP_COPY) | FLAG_IF_WELL | (run->continues ? FLAG_CHAIN : 0),
            .offset = batch->vectors ? 0 : slot + (uint64_t)run->offset,
            .address = piece + (uint64_t)run->piece_offset,
            .length = (uint64_t)run->length,
            .gate = batch->gates[i],
        };
    }
}

static void write_chain(const struct load_layout *layout, const struct load_batch *batch, size_t i)
{
    struct request *steps = batch->table + i * batch->steps;
    int64_t *wanted = batch->wanted + i * batch->reads;
    memset(steps, 0, batch->steps * sizeof(*steps));
    memset(wanted, 0, batch->reads * sizeof(*wanted));
    if (batch->vectors) {
        read_to_pieces(layout, batch, i, steps + 1, wanted);
    } else {
        read_to_slot(layout, batch, i, steps + 1, wanted);
    }
    steps[1 + batch->reads] = (struct request){
        .opcode = OP_CHECKSUM | FLAG_IF_WELL,
        .address = batch->bases[i] + CHECKSUM_FROM,
        .length = layout->header_used - CHECKSUM_FROM,
    };
    write_runs(layout, batch, i, steps + 2 + batch->reads);
}

/* The checksum that a header tells of a shard. */
static uint32_t told(const unsigned char *header, uint64_t shard)
{
    uint32_t checksum;
    memcpy(&checksum, header + ENTRIES_AT + shard * ENTRY_BYTES + ENTRY_CHECKSUM_AT, sizeof(checksum));
    return checksum;
}

/* Is it what the template says, but for the id, which is `id`, and the checksums, of which it has its own? */
static bool header_is_good(const struct load_layout *layout, const unsigned char *header, const unsigned char *id, int64_t own)
{
    const unsigned char *wanted = layout->header;
    uint32_t stored;
    memcpy(&stored, header + OWN_CHECKSUM_AT, sizeof(stored));
    if (stored != own || memcmp(header, wanted, OWN_CHECKSUM_AT) != 0 || memcmp(header + ID_AT, id, ID_BYTES) != 0 ||
        memcmp(header + CHECKSUM_FROM, wanted + CHECKSUM_FROM, ID_AT - CHECKSUM_FROM) != 0 ||
        memcmp(header + ID_AT + ID_BYTES, wanted + ID_AT + ID_BYTES, ENTRIES_AT - ID_AT - ID_BYTES) != 0) {
        return false;
    }
    for (uint64_t shard = 0; shard < layout->shards; shard++) {
        size_t at = ENTRIES_AT + shard * ENTRY_BYTES, rest = at + ENTRY_CHECKSUM_AT + sizeof(stored);
        if (memcmp(header + at, wanted + at, ENTRY_CHECKSUM_AT) != 0 ||
            memcmp(header + rest, wanted + rest, at + ENTRY_BYTES - rest) != 0) {
            return false;
        }
    }
    return true;
}

static bool chain_is_good(const struct load_layout *layout, const struct load_batch *batch, size_t i)
{
    const struct request *steps = batch->table + i * batch->steps;
    for (size_t read = 0; read < batch->reads; read++) {
        if (steps[1 + read].result != batch->wanted[i * batch->reads + read]) {
            return false;
        }
    }
    const unsigned char *header = pointer_to(batch->bases[i]);
    if (!header_is_good(layout, header, batch->ids + i * ID_BYTES, steps[1 + batch->reads].result)) {
        return false;
    }
    uint64_t shard = batch->shards[i] > 0 ? (uint64_t)batch->shards[i] : 0;
    for (size_t m = 0; m < batch->runs; m++) {
        bool last = m + 1 == batch->runs || !batch->row[m + 1].continues;
        if (last && steps[2 + batch->reads + m].result != told(header, shard++)) {
            return false;
        }
    }
    return true;
}

void load_write(const struct load_layout *layout, const struct load_batch *batch)
{
    for (size_t i = 0; i < batch->n; i++) {
        write_chain(layout, batch, i);
    }
}

bool load_all_good(const struct load_layout *layout, const struct load_batch *batch)
{
    for (size_t i = 0; i < batch->n; i++) {
        if (!chain_is_good(layout, batch, i)) {
            return false;
        }
    }
    return true;
}

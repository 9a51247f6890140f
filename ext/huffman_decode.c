/* The decoder: a table tells for the next bits all symbols that lie wholly in them, three or four where a symbol takes three bits. An
 * entry holds the bits used (byte 0), the number of symbols (byte 1), and the symbols themselves.
 */
#include "huffman.h"

#include <string.h>

enum {
    LOOKUPS = 5,       /* of 11 bits each, from the 57 bits that one load is good for */
    STEP_SYMBOLS = 25, /* five symbols a look-up at most */
    HEADER_MIN = 2 + 2 + 2 * HUFFMAN_STREAMS, /* four symbols at least have a code */
    SMALL_BITS_MIN = 9,
};

static inline uint64_t load_big(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof(word));
    return __builtin_bswap64(word);
}

static size_t symbols_of_stream(size_t count, size_t stream)
{
    size_t rest = count % HUFFMAN_ROUND;
    size_t before = stream * HUFFMAN_RUN;
    size_t part = rest > before ? rest - before : 0;
    return count / HUFFMAN_ROUND * HUFFMAN_RUN + (part < HUFFMAN_RUN ? part : HUFFMAN_RUN);
}

/* Entries of a smaller table, behind one more symbol. */
static inline void extend(uint64_t *restrict to, const uint64_t *restrict from, size_t count, uint64_t symbol, uint64_t length)
{
    uint64_t added = symbol << 16 | 1 << 8 | length;
    for (size_t i = 0; i < count; i++) {
        to[i] = ((from[i] & ~UINT64_C(0xFFFF)) << 8 | (from[i] & 0xFFFF)) + added;
    }
}

/* The table for `bits` bits is, code by code, one symbol before the table for the bits that it leaves. A range that no code is short
 * enough for is zero: no symbol. Tables of fewer bits are kept from entry 2**bits on.
 */
static void make_table(struct huffman_scratch *scratch, unsigned bits)
{
    unsigned n = huffman_order_symbols(scratch);
    for (unsigned width = 0; width <= bits; width++) {
        if (width < bits && width > bits - HUFFMAN_LENGTH_MIN) {
            continue; /* no code leaves that many */
        }
        size_t size = (size_t)1 << width;
        uint64_t *table = width == bits ? scratch->table : scratch->smaller + size;
        size_t at = 0;
        for (unsigned i = 0; i < n && scratch->lengths[scratch->order[i]] <= width; i++) {
            unsigned length = scratch->lengths[scratch->order[i]];
            size_t part = size >> length;
            extend(table + at, scratch->smaller + part, part, scratch->order[i], length);
            at += part;
        }
        memset(table + at, 0, (size - at) * sizeof(table[0]));
    }
}

/* A stream as it is read: `skip` bits of the byte at `at` are done with. */
struct reader {
    const uint8_t *at;
    unsigned skip;
    uint8_t *out;
    const uint8_t *end;
    uint8_t *out_end;
    uint64_t word;
    uint64_t used; /* bits, in byte 0; above it the sum of what else is in the entries */
};

static inline void fill(struct reader *reader)
{
    reader->word = load_big(reader->at) << reader->skip;
    reader->used = reader->skip;
}

static inline void look_up(struct reader *reader, const uint64_t *table, unsigned shift)
{
    uint64_t entry = table[reader->word >> shift];
    uint64_t symbols = entry >> 16;
    memcpy(reader->out, &symbols, sizeof(symbols));
    reader->out += entry >> 8 & 0xFF;
    reader->word <<= entry & 63;
    reader->used += entry;
}

static inline void advance(struct reader *reader)
{
    unsigned bits = (unsigned)(reader->used & 0xFF);
    reader->at += bits / 8;
    reader->skip = bits % 8;
}

static inline bool has_step(const struct reader *reader, const uint8_t *last_load)
{
    return reader->at <= last_load && reader->out_end - reader->out >= STEP_SYMBOLS;
}

/* All streams, as long as each has symbols for a whole step and `in_end` is not near. */
static void read_streams(struct reader *readers, const uint64_t *table, unsigned shift, const uint8_t *in_end)
{
    const uint8_t *last_load = in_end - sizeof(uint64_t);
    struct reader a = readers[0];
    struct reader b = readers[1];
    struct reader c = readers[2];
    struct reader d = readers[3];
    while (has_step(&a, last_load) && has_step(&b, last_load) && has_step(&c, last_load) && has_step(&d, last_load)) {
        fill(&a);
        fill(&b);
        fill(&c);
        fill(&d);
        for (int i = 0; i < LOOKUPS; i++) {
            look_up(&a, table, shift);
            look_up(&b, table, shift);
            look_up(&c, table, shift);
            look_up(&d, table, shift);
        }
        advance(&a);
        advance(&b);
        advance(&c);
        advance(&d);
    }
    readers[0] = a;
    readers[1] = b;
    readers[2] = c;
    readers[3] = d;
}

static uint64_t load_up_to(const uint8_t *at, const uint8_t *end)
{
    uint64_t word = 0;
    for (unsigned shift = 56; at < end && shift < 64; at++, shift -= 8) {
        word |= (uint64_t)*at << shift;
    }
    return word;
}

/* The rest of one stream, one look-up at a time. True if its last bit lies in its last byte. */
static bool read_rest(struct reader *reader, const struct huffman_scratch *scratch, unsigned shift)
{
    while (reader->out < reader->out_end && reader->at < reader->end) {
        reader->word = load_up_to(reader->at, reader->end) << reader->skip;
        reader->used = reader->skip;
        uint8_t *before = reader->out;
        look_up(reader, scratch->table, shift);
        if (reader->out > reader->out_end) { /* the bits after the last symbol looked like more symbols */
            reader->out = reader->out_end;
            reader->used = reader->skip;
            for (; before < reader->out_end; before++) {
                reader->used += scratch->lengths[*before];
            }
        }
        advance(reader);
    }
    return reader->out == reader->out_end && reader->at + (reader->skip != 0) == reader->end;
}

/* The code lengths, which must fill the code space exactly. The bytes they take, or 0 if they are wrong. */
static size_t read_lengths(struct huffman_scratch *scratch, const uint8_t *in, size_t length, unsigned *longest)
{
    unsigned first = in[0];
    unsigned symbols = in[1] + 1u;
    size_t header = 2 + (symbols + 1) / 2;
    if (first + symbols > 256 || header + 2 * HUFFMAN_STREAMS > length) {
        return 0;
    }
    memset(scratch->lengths, 0, sizeof(scratch->lengths));
    int space = 0;
    *longest = 0;
    for (unsigned i = 0; i < symbols; i++) {
        unsigned bits = in[2 + i / 2] >> (i % 2 * 4) & 15;
        if (bits == 0) {
            continue;
        }
        if (bits < HUFFMAN_LENGTH_MIN || bits > HUFFMAN_LENGTH_MAX) {
            return 0;
        }
        scratch->lengths[first + i] = (uint8_t)bits;
        space += huffman_space(bits);
        *longest = bits > *longest ? bits : *longest;
    }
    return space == HUFFMAN_SPACE ? header : 0;
}

/* Set up the readers from the four sizes; false if these are not what is there. */
static bool find_streams(struct huffman_scratch *scratch, struct reader *readers, const uint8_t *in, const uint8_t *end, size_t count)
{
    const uint8_t *at = in + 2 * HUFFMAN_STREAMS;
    for (unsigned i = 0; i < HUFFMAN_STREAMS; i++) {
        size_t size = in[2 * i] | (size_t)in[2 * i + 1] << 8;
        if (size > (size_t)(end - at)) {
            return false;
        }
        uint8_t *out = scratch->streams[i];
        readers[i] = (struct reader){.at = at, .end = at + size, .out = out, .out_end = out + symbols_of_stream(count, i)};
        at += size;
    }
    return at == end;
}

/* A large table finds more symbols at once, a small one is made sooner. */
static unsigned table_bits(size_t count, unsigned longest)
{
    if (count >= HUFFMAN_SMALL_COUNT) {
        return HUFFMAN_LENGTH_MAX;
    }
    return longest < SMALL_BITS_MIN ? SMALL_BITS_MIN : longest;
}

bool huffman_decode(struct huffman_scratch *scratch, const uint8_t *in, size_t length, uint8_t *symbols, size_t count)
{
    struct reader readers[HUFFMAN_STREAMS];
    unsigned longest;
    if (length < HEADER_MIN) {
        return false;
    }
    size_t header = read_lengths(scratch, in, length, &longest);
    if (!header || !find_streams(scratch, readers, in + header, in + length, count)) {
        return false;
    }
    unsigned bits = table_bits(count, longest);
    make_table(scratch, bits);
    read_streams(readers, scratch->table, 64 - bits, in + length);
    for (unsigned i = 0; i < HUFFMAN_STREAMS; i++) {
        if (!read_rest(&readers[i], scratch, 64 - bits)) {
            return false;
        }
    }
    for (size_t done = 0; done < count; done += HUFFMAN_RUN) {
        size_t run = count - done < HUFFMAN_RUN ? count - done : HUFFMAN_RUN;
        size_t turn = done / HUFFMAN_RUN;
        memcpy(symbols + done, scratch->streams[turn % HUFFMAN_STREAMS] + turn / HUFFMAN_STREAMS * HUFFMAN_RUN, run);
    }
    return true;
}

/* The encoder: counts, code lengths, and four streams written side by side.
 *
 * Where nearly all symbols lie within 16 of each other, as exponents do, symbols are counted and coded in pairs: half as many steps.
 */
#include "huffman.h"
#include "wide.h"

#include <string.h>

enum {
    SMALL_LENGTH_MAX = 10, /* of few symbols: their decoder spends half its time on the table */
    WINDOW = 16,
    PAIRS = HUFFMAN_RUN / 2, /* of a run */
    SAMPLE_RUNS = 8,
    STRAY_MAX = 4, /* of the sample's 1024 symbols may lie outside of the window; a run with one is coded symbol by symbol */
    NO_WINDOW = 256,
};

static inline void store_big(uint8_t *at, uint64_t word)
{
    word = __builtin_bswap64(word);
    memcpy(at, &word, sizeof(word));
}

struct writer {
    uint64_t word; /* its lowest `bits` bits are still to be stored */
    unsigned bits;
    uint8_t *at;
};

/* A code is its length in byte 0, and its bits above that. */
static inline void put(struct writer *writer, uint32_t code)
{
    writer->word = writer->word << (code & 63) | code >> 8;
    writer->bits += code & 0xFF;
}

static inline void flush(struct writer *writer)
{
    store_big(writer->at, writer->word << 1 << (63 - writer->bits));
    writer->at += writer->bits / 8;
    writer->bits %= 8;
}

static inline void put_four(struct writer *writer, const uint32_t *codes, const uint8_t *symbols)
{
    put(writer, codes[symbols[0]]);
    put(writer, codes[symbols[1]]);
    put(writer, codes[symbols[2]]);
    put(writer, codes[symbols[3]]);
    flush(writer); /* 7 bits were left, and 44 came: they fit in a word */
}

static inline void put_two_pairs(struct writer *writer, const uint32_t *codes, const uint8_t *pairs)
{
    put(writer, codes[pairs[0]]);
    put(writer, codes[pairs[1]]);
    flush(writer);
}

static void make_codes(struct huffman_scratch *scratch)
{
    unsigned n = huffman_order_symbols(scratch);
    uint32_t code = 0;
    unsigned length = HUFFMAN_LENGTH_MIN;
    for (unsigned i = 0; i < n; i++, code++) {
        unsigned symbol = scratch->order[i];
        code <<= scratch->lengths[symbol] - length;
        length = scratch->lengths[symbol];
        scratch->codes[symbol] = code << 8 | length;
    }
}

/* ---- pairs ---- */

/* The first of WINDOW symbols that hold nearly all of a sample, or NO_WINDOW. */
static unsigned find_window(const uint8_t *symbols, size_t count)
{
    uint16_t seen[256] = {0};
    size_t runs = count / HUFFMAN_RUN;
    if (runs < SAMPLE_RUNS) {
        return NO_WINDOW;
    }
    for (size_t run = 0; run < SAMPLE_RUNS; run++) {
        const uint8_t *at = symbols + runs * run / SAMPLE_RUNS * HUFFMAN_RUN;
        for (size_t i = 0; i < HUFFMAN_RUN; i++) {
            seen[at[i]]++;
        }
    }
    unsigned inside = 0;
    unsigned most = 0;
    unsigned best = 0;
    for (unsigned last = 0; last < 256; last++) {
        inside += seen[last];
        inside -= last >= WINDOW ? seen[last - WINDOW] : 0u;
        if (inside > most) {
            most = inside;
            best = last < WINDOW ? 0 : last - WINDOW + 1;
        }
    }
    return SAMPLE_RUNS * HUFFMAN_RUN - most <= STRAY_MAX ? best : NO_WINDOW;
}

/* Each two symbols of a run as one byte, less the window's first; `paired[run]` tells if all of them lie in the window. */
BODY void pair_up_body(const uint8_t *restrict symbols, size_t runs, uint8_t first, uint8_t *restrict pairs, uint8_t *restrict paired)
{
    for (size_t run = 0; run < runs; run++, symbols += HUFFMAN_RUN, pairs += PAIRS) {
        uint8_t all = 0;
        for (size_t i = 0; i < HUFFMAN_RUN; i++) {
            all |= (uint8_t)(symbols[i] - first);
        }
        for (size_t i = 0; i < PAIRS; i++) {
            uint16_t two;
            memcpy(&two, symbols + 2 * i, sizeof(two));
            uint8_t low = (uint8_t)((uint8_t)two - first);
            uint8_t high = (uint8_t)((uint8_t)(two >> 8) - first);
            pairs[i] = (uint8_t)(low | high << 4);
        }
        paired[run] = all < WINDOW;
    }
}

TWICE(pair_up, (const uint8_t *restrict symbols, size_t runs, uint8_t first, uint8_t *restrict pairs, uint8_t *restrict paired),
      (symbols, runs, first, pairs, paired))

static void make_pair_codes(struct huffman_scratch *scratch, unsigned first)
{
    for (unsigned pair = 0; pair < 256; pair++) {
        uint32_t one = scratch->codes[(first + pair % WINDOW) & 0xFF];
        uint32_t two = scratch->codes[(first + pair / WINDOW) & 0xFF];
        uint32_t bits = (one >> 8) << (two & 0xFF) | two >> 8;
        scratch->pair_codes[pair] = bits << 8 | ((one & 0xFF) + (two & 0xFF));
    }
}

/* ---- streams ---- */

static void put_rest(struct writer *writers, const uint32_t *codes, const uint8_t *symbols, size_t rest)
{
    for (size_t i = 0; i < rest; i++) {
        struct writer *writer = &writers[i / HUFFMAN_RUN];
        put(writer, codes[symbols[i]]);
        flush(writer);
    }
}

static inline bool round_is_paired(const uint8_t *paired)
{
    return paired[0] & paired[1] & paired[2] & paired[3];
}

static void write_streams(struct huffman_scratch *scratch, const uint8_t *symbols, size_t count, size_t *sizes)
{
    const uint32_t *codes = scratch->codes;
    const uint32_t *pair_codes = scratch->pair_codes;
    /* Four variables and not an array, so that they stay in registers. */
    struct writer a = {.at = scratch->streams[0]};
    struct writer b = {.at = scratch->streams[1]};
    struct writer c = {.at = scratch->streams[2]};
    struct writer d = {.at = scratch->streams[3]};
    for (size_t round = 0; round < count / HUFFMAN_ROUND; round++, symbols += HUFFMAN_ROUND) {
        if (round_is_paired(scratch->paired + round * HUFFMAN_STREAMS)) {
            const uint8_t *pairs = scratch->pairs + round * HUFFMAN_ROUND / 2;
            for (size_t i = 0; i < PAIRS; i += 2) {
                put_two_pairs(&a, pair_codes, pairs + i);
                put_two_pairs(&b, pair_codes, pairs + i + PAIRS);
                put_two_pairs(&c, pair_codes, pairs + i + 2 * PAIRS);
                put_two_pairs(&d, pair_codes, pairs + i + 3 * PAIRS);
            }
            continue;
        }
        for (size_t i = 0; i < HUFFMAN_RUN; i += 4) {
            put_four(&a, codes, symbols + i);
            put_four(&b, codes, symbols + i + HUFFMAN_RUN);
            put_four(&c, codes, symbols + i + 2 * HUFFMAN_RUN);
            put_four(&d, codes, symbols + i + 3 * HUFFMAN_RUN);
        }
    }
    struct writer writers[HUFFMAN_STREAMS] = {a, b, c, d};
    put_rest(writers, codes, symbols, count % HUFFMAN_ROUND);
    for (unsigned i = 0; i < HUFFMAN_STREAMS; i++) {
        sizes[i] = (size_t)(writers[i].at - scratch->streams[i]) + (writers[i].bits != 0);
    }
}

/* ---- counts ---- */

/* Four tables, so that equal symbols one after another need not wait for each other. */
static void count_run(uint32_t (*counts)[256], const uint8_t *symbols, size_t count)
{
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        uint64_t word;
        memcpy(&word, symbols + i, sizeof(word));
        counts[0][word & 0xFF]++;
        counts[1][word >> 8 & 0xFF]++;
        counts[2][word >> 16 & 0xFF]++;
        counts[3][word >> 24 & 0xFF]++;
        counts[0][word >> 32 & 0xFF]++;
        counts[1][word >> 40 & 0xFF]++;
        counts[2][word >> 48 & 0xFF]++;
        counts[3][word >> 56]++;
    }
    for (; i < count; i++) {
        counts[0][symbols[i]]++;
    }
}

static void count_pairs(uint32_t (*counts)[256], const uint8_t *pairs)
{
    for (size_t i = 0; i < PAIRS; i += 8) {
        uint64_t word;
        memcpy(&word, pairs + i, sizeof(word));
        counts[0][word & 0xFF]++;
        counts[1][word >> 8 & 0xFF]++;
        counts[0][word >> 16 & 0xFF]++;
        counts[1][word >> 24 & 0xFF]++;
        counts[0][word >> 32 & 0xFF]++;
        counts[1][word >> 40 & 0xFF]++;
        counts[0][word >> 48 & 0xFF]++;
        counts[1][word >> 56]++;
    }
}

/* Into counts[0], the total of all tables. */
static void add_up(struct huffman_scratch *scratch, unsigned first)
{
    uint32_t(*counts)[256] = scratch->counts;
    for (unsigned symbol = 0; symbol < 256; symbol++) {
        counts[0][symbol] += counts[1][symbol] + counts[2][symbol] + counts[3][symbol];
    }
    for (unsigned pair = 0; pair < 256 && first != NO_WINDOW; pair++) {
        uint32_t both = scratch->pair_counts[0][pair] + scratch->pair_counts[1][pair];
        counts[0][(first + pair % WINDOW) & 0xFF] += both;
        counts[0][(first + pair / WINDOW) & 0xFF] += both;
    }
}

/* Count all symbols, and tell which runs can be coded in pairs. The window, or NO_WINDOW. */
static unsigned count_symbols(struct huffman_scratch *scratch, const uint8_t *symbols, size_t count, bool wide)
{
    size_t runs = count / HUFFMAN_RUN;
    unsigned first = find_window(symbols, count);
    memset(scratch->counts, 0, sizeof(scratch->counts));
    memset(scratch->paired, 0, sizeof(scratch->paired));
    if (first == NO_WINDOW) {
        count_run(scratch->counts, symbols, count);
        add_up(scratch, first);
        return first;
    }
    memset(scratch->pair_counts, 0, sizeof(scratch->pair_counts));
    EITHER(wide, pair_up, symbols, runs, (uint8_t)first, scratch->pairs, scratch->paired);
    for (size_t run = 0; run < runs; run++) {
        if (scratch->paired[run]) {
            count_pairs(scratch->pair_counts, scratch->pairs + run * PAIRS);
        } else {
            count_run(scratch->counts, symbols + run * HUFFMAN_RUN, HUFFMAN_RUN);
        }
    }
    count_run(scratch->counts, symbols + runs * HUFFMAN_RUN, count % HUFFMAN_RUN);
    add_up(scratch, first);
    return first;
}

/* ---- all of it ---- */

/* First symbol, number of symbols less one, and their lengths, two a byte. Where the next byte goes. */
static uint8_t *write_lengths(const uint8_t *lengths, unsigned first, unsigned last, uint8_t *out)
{
    *out++ = (uint8_t)first;
    *out++ = (uint8_t)(last - first);
    for (unsigned symbol = first; symbol <= last; symbol += 2) {
        unsigned high = symbol < last ? lengths[symbol + 1] : 0;
        *out++ = (uint8_t)(lengths[symbol] | high << 4);
    }
    return out;
}

size_t huffman_encode(struct huffman_scratch *scratch, const uint8_t *symbols, size_t count, uint8_t *out, size_t capacity, bool wide)
{
    unsigned window = count_symbols(scratch, symbols, count, wide);
    huffman_choose_lengths(scratch, count < HUFFMAN_SMALL_COUNT ? SMALL_LENGTH_MAX : HUFFMAN_LENGTH_MAX);
    uint64_t bits = 0;
    for (unsigned symbol = 0; symbol < 256; symbol++) {
        bits += (uint64_t)scratch->counts[0][symbol] * scratch->lengths[symbol];
    }
    unsigned first = 0;
    unsigned last = 255;
    for (; !scratch->lengths[first]; first++) {
    }
    for (; !scratch->lengths[last]; last--) {
    }
    size_t header = 2 + (last - first + 2) / 2 + 2 * HUFFMAN_STREAMS;
    if (header + bits / 8 + HUFFMAN_STREAMS >= capacity) {
        return 0;
    }
    make_codes(scratch);
    if (window != NO_WINDOW) {
        make_pair_codes(scratch, window);
    }
    size_t sizes[HUFFMAN_STREAMS];
    write_streams(scratch, symbols, count, sizes);
    uint8_t *at = write_lengths(scratch->lengths, first, last, out);
    for (unsigned i = 0; i < HUFFMAN_STREAMS; i++) {
        *at++ = (uint8_t)sizes[i];
        *at++ = (uint8_t)(sizes[i] >> 8);
    }
    for (unsigned i = 0; i < HUFFMAN_STREAMS; i++) {
        memcpy(at, scratch->streams[i], sizes[i]);
        at += sizes[i];
    }
    return (size_t)(at - out);
}

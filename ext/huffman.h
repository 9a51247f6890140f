/* Huffman coding of a plane of bytes: canonical codes of 2 to 11 bits, most significant bit first, in four streams.
 *
 * Each look-up has to wait for the one before it in its stream, so four streams keep the processor busy. Symbols go to them in turns
 * of 128, not in quarters: what differs along a plane makes all streams longer, and none of them late.
 */
#ifndef UCM_HUFFMAN_H
#define UCM_HUFFMAN_H

#include "platform.h"

#include <stdbool.h>
#include <stddef.h>

enum {
    HUFFMAN_LENGTH_MIN = 2,  /* bits of a code; so a look-up of 11 bits never finds more than five symbols */
    HUFFMAN_LENGTH_MAX = 11, /* a table of 2**11 entries stays in the L1 cache */
    HUFFMAN_STREAMS = 4,
    HUFFMAN_RUN = 128, /* symbols that one stream takes before it is the next one's turn */
    HUFFMAN_ROUND = HUFFMAN_STREAMS * HUFFMAN_RUN,
    HUFFMAN_SPACE = 1 << HUFFMAN_LENGTH_MAX, /* the code space, in codes of the greatest length */
    HUFFMAN_SMALL_COUNT = 8192, /* symbols; below it the code is made shorter, and so the decoder's table smaller */
    HUFFMAN_SYMBOLS_MAX = 32768,
    HUFFMAN_STREAM_SYMBOLS = HUFFMAN_SYMBOLS_MAX / HUFFMAN_STREAMS,
    HUFFMAN_SLACK = 64, /* past the end of a stream: whole words are stored, and tables look ahead */
};

/* What both directions work in. About 100 KiB; one thread at a time. */
struct huffman_scratch {
    uint64_t table[1 << HUFFMAN_LENGTH_MAX];
    uint64_t smaller[1 << (HUFFMAN_LENGTH_MAX - 1)];
    uint32_t codes[256];
    uint32_t pair_codes[256];
    uint32_t counts[4][256];
    uint32_t pair_counts[2][256];
    uint8_t pairs[HUFFMAN_SYMBOLS_MAX / 2];
    uint8_t paired[HUFFMAN_SYMBOLS_MAX / HUFFMAN_RUN]; /* runs that `pairs` stands for */
    uint8_t lengths[256];
    uint8_t order[256]; /* the symbols that have a code, in the order of their codes */
    uint8_t streams[HUFFMAN_STREAMS][HUFFMAN_STREAM_SYMBOLS * 3 / 2 + HUFFMAN_SLACK];
};

/* Encode `count` symbols (1 ... HUFFMAN_SYMBOLS_MAX). The bytes written, or 0 if that would be `capacity` or more. */
size_t huffman_encode(struct huffman_scratch *scratch, const uint8_t *symbols, size_t count, uint8_t *out, size_t capacity, bool wide);

/* Decode exactly `count` symbols (1 ... HUFFMAN_SYMBOLS_MAX) from exactly `length` bytes, whatever they are. False if they do not fit
 * each other; `symbols` is undefined then.
 */
bool huffman_decode(struct huffman_scratch *scratch, const uint8_t *in, size_t length, uint8_t *symbols, size_t count);

/* ---- between encoder and decoder ---- */

/* The part of the code space that a code of `length` bits takes. */
static inline int huffman_space(unsigned length)
{
    return HUFFMAN_SPACE >> length;
}

/* From counts[0] to lengths that fill the code space exactly. */
void huffman_choose_lengths(struct huffman_scratch *scratch, unsigned longest);

/* From lengths to `order`. Codes are canonical: they ascend with their length, and with the symbol among those of one length. The
 * number of codes.
 */
unsigned huffman_order_symbols(struct huffman_scratch *scratch);

#endif

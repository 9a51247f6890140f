/* CRC-32C: carry-less multiplication for long runs where there is one of 64 bytes (crc32c_fold.c); else three interleaved
 * streams of the processor's crc32 instruction, or slicing by eight without it.
 *
 * The instruction takes 8 bytes a cycle but answers after three cycles, so three lanes run side by side. Their values are
 * joined by "what would this value be after so many zero bytes", a linear map that four table look-ups apply.
 */
#include "crc32c.h"

#include "crc32c_fold.h"

#include <pthread.h>
#include <string.h>

/* UCM_PORTABLE_CRC32C leaves the instruction out, UCM_NARROW_CRC32C the multiplication; the tests build these, too. */
#if defined(__x86_64__) && !defined(UCM_PORTABLE_CRC32C)
#include <nmmintrin.h>
#ifdef __clang__
#define HARDWARE_TARGET __attribute__((target("sse4.2,crc32")))
#else
#define HARDWARE_TARGET __attribute__((target("sse4.2")))
#endif
#define STEP8(value, word) ((uint32_t)_mm_crc32_u64((value), (word)))
#define STEP1(value, byte) _mm_crc32_u8((value), (byte))
#elif defined(__aarch64__) && !defined(UCM_PORTABLE_CRC32C)
#include <arm_acle.h>
#include <sys/auxv.h>
#ifdef __clang__
#define HARDWARE_TARGET __attribute__((target("crc")))
#else
#define HARDWARE_TARGET __attribute__((target("+crc")))
#endif
#define STEP8(value, word) __crc32cd((value), (word))
#define STEP1(value, byte) __crc32cb((value), (byte))
#define HWCAP_CRC32_BIT (1u << 7)
#endif

#define POLYNOMIAL 0x82F63B78u /* reflected */

/* Long lanes join seldom, but the processor's prefetcher takes them for three streams and memory is read at half its speed.
 * With short ones a block of three is one stream, and is still in the L1 cache when it is copied.
 */
enum { LANE = 256, BLOCK = 3 * LANE }; /* bytes */

static uint32_t slices[8][256];
static uint32_t after_lane[4][256];
static bool hardware;
static bool folding;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* ---- tables ---- */

/* Product of two polynomials modulo POLYNOMIAL, both reflected: bit 31 is x**0. */
static uint32_t multiply(uint32_t a, uint32_t b)
{
    uint32_t product = 0;
    for (uint32_t bit = 0x80000000u; bit; bit >>= 1) {
        if (a & bit) {
            product ^= b;
        }
        b = b & 1 ? (b >> 1) ^ POLYNOMIAL : b >> 1;
    }
    return product;
}

/* x**bits modulo POLYNOMIAL. */
static uint32_t power(size_t bits)
{
    uint32_t result = 0x80000000u;
    uint32_t square = 0x40000000u; /* x**1 */
    for (; bits; bits >>= 1) {
        if (bits & 1) {
            result = multiply(result, square);
        }
        square = multiply(square, square);
    }
    return result;
}

static void fill_after_lane(void)
{
    uint32_t factor = power(8 * LANE);
    for (uint32_t byte = 0; byte < 256; byte++) {
        for (unsigned place = 0; place < 4; place++) {
            after_lane[place][byte] = multiply(factor, byte << (8 * place));
        }
    }
}

static void fill_slices(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (unsigned bit = 0; bit < 8; bit++) {
            value = value & 1 ? (value >> 1) ^ POLYNOMIAL : value >> 1;
        }
        slices[0][byte] = value;
    }
    for (uint32_t byte = 0; byte < 256; byte++) {
        for (unsigned k = 1; k < 8; k++) {
            slices[k][byte] = (slices[k - 1][byte] >> 8) ^ slices[0][slices[k - 1][byte] & 0xFF];
        }
    }
}

static bool have_instruction(void)
{
#ifndef HARDWARE_TARGET
    return false;
#elif defined(__x86_64__)
    return __builtin_cpu_supports("sse4.2");
#else
    return getauxval(AT_HWCAP) & HWCAP_CRC32_BIT;
#endif
}

static void set_up(void)
{
    fill_slices();
    fill_after_lane();
    hardware = have_instruction();
    folding = hardware && crc32c_fold_setup(power);
}

void crc32c_setup(void)
{
    pthread_once(&once, set_up);
}

bool crc32c_in_hardware(void)
{
    return hardware;
}

/* ---- kernels; here the value is the raw register, without the final inversion ---- */

static inline uint64_t load8(const unsigned char *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof(word));
    return word;
}

static uint32_t portable(uint32_t value, const unsigned char *at, size_t length)
{
    for (; length >= 8; length -= 8, at += 8) {
        uint64_t word = load8(at) ^ value;
        value = slices[7][word & 0xFF] ^ slices[6][(word >> 8) & 0xFF] ^ slices[5][(word >> 16) & 0xFF] ^
                slices[4][(word >> 24) & 0xFF] ^ slices[3][(word >> 32) & 0xFF] ^ slices[2][(word >> 40) & 0xFF] ^
                slices[1][(word >> 48) & 0xFF] ^ slices[0][word >> 56];
    }
    for (; length; length--, at++) {
        value = (value >> 8) ^ slices[0][(value ^ *at) & 0xFF];
    }
    return value;
}

static uint32_t portable_copy(uint32_t value, unsigned char *to, const unsigned char *from, size_t length)
{
    while (length) {
        size_t piece = length < BLOCK ? length : BLOCK;
        value = portable(value, from, piece);
        memcpy(to, from, piece);
        from += piece;
        to += piece;
        length -= piece;
    }
    return value;
}

#ifdef HARDWARE_TARGET

/* What `value` would be after LANE zero bytes. */
static inline uint32_t shifted(uint32_t value)
{
    return after_lane[0][value & 0xFF] ^ after_lane[1][(value >> 8) & 0xFF] ^ after_lane[2][(value >> 16) & 0xFF] ^
           after_lane[3][value >> 24];
}

HARDWARE_TARGET static inline uint32_t one_block(uint32_t value, const unsigned char *at)
{
    uint32_t second = 0;
    uint32_t third = 0;
    for (const unsigned char *end = at + LANE; at < end; at += 8) {
        value = STEP8(value, load8(at));
        second = STEP8(second, load8(at + LANE));
        third = STEP8(third, load8(at + 2 * LANE));
    }
    return shifted(shifted(value) ^ second) ^ third;
}

HARDWARE_TARGET static uint32_t less_than_block(uint32_t value, const unsigned char *at, size_t length)
{
    for (; length >= 8; length -= 8, at += 8) {
        value = STEP8(value, load8(at));
    }
    for (; length; length--, at++) {
        value = STEP1(value, *at);
    }
    return value;
}

HARDWARE_TARGET static uint32_t by_instruction(uint32_t value, const unsigned char *at, size_t length)
{
    size_t lines = length / LINE_BYTES;
    if (folding && lines >= FOLD_LINES_MIN) {
        value = crc32c_fold(value, at, lines);
        at += lines * LINE_BYTES;
        length -= lines * LINE_BYTES;
    }
    for (; length >= BLOCK; length -= BLOCK, at += BLOCK) {
        value = one_block(value, at);
    }
    return less_than_block(value, at, length);
}

/* Move a block that has just been read. Streaming stores (aligned) do not fetch what they overwrite. */
static inline void move_block(unsigned char *to, const unsigned char *from, bool streaming)
{
#if defined(__x86_64__)
    const __m128i *source = (const void *)from;
    __m128i *target = (void *)to;
    if (streaming) {
        for (int i = 0; i < BLOCK / 16; i++) {
            _mm_stream_si128(target + i, _mm_loadu_si128(source + i));
        }
        return;
    }
    for (int i = 0; i < BLOCK / 16; i++) {
        _mm_storeu_si128(target + i, _mm_loadu_si128(source + i));
    }
#else
    (void)streaming;
    memcpy(to, from, BLOCK);
#endif
}

HARDWARE_TARGET static uint32_t copy_blocks(uint32_t value, unsigned char *to, const unsigned char *from, size_t blocks,
                                            bool streaming)
{
    if (!streaming) {
        for (; blocks; blocks--, from += BLOCK, to += BLOCK) {
            value = one_block(value, from);
            move_block(to, from, false);
        }
        return value;
    }
    for (; blocks; blocks--, from += BLOCK, to += BLOCK) {
        value = one_block(value, from);
        move_block(to, from, true);
    }
#if defined(__x86_64__)
    _mm_sfence(); /* before anyone is told that the bytes are there */
#endif
    return value;
}

HARDWARE_TARGET static uint32_t copy_tail(uint32_t value, unsigned char *to, const unsigned char *from, size_t length)
{
    memcpy(to, from, length);
    return less_than_block(value, from, length);
}

static size_t until_aligned(const unsigned char *to, size_t length)
{
    size_t head = (size_t)(-(uintptr_t)to & (LINE_BYTES - 1));
    return head < length ? head : length;
}

HARDWARE_TARGET static uint32_t copy_by_instruction(uint32_t value, unsigned char *to, const unsigned char *from,
                                                    size_t length, bool streaming)
{
    size_t head = streaming ? until_aligned(to, length) : 0;
    value = copy_tail(value, to, from, head);
    to += head;
    from += head;
    length -= head;
    size_t lines = length / LINE_BYTES;
    size_t middle;
    if (folding && lines >= FOLD_LINES_MIN) {
        middle = lines * LINE_BYTES;
        value = crc32c_fold_copy(value, to, from, lines, streaming);
    } else {
        middle = length / BLOCK * BLOCK;
        value = copy_blocks(value, to, from, length / BLOCK, streaming);
    }
    return copy_tail(value, to + middle, from + middle, length - middle);
}

#else
#define by_instruction portable
#define copy_by_instruction(value, to, from, length, streaming) ((void)(streaming), portable_copy(value, to, from, length))
#endif

uint32_t crc32c_update(uint32_t value, const void *data, size_t length)
{
    return ~(hardware ? by_instruction(~value, data, length) : portable(~value, data, length));
}

uint32_t crc32c_copy(uint32_t value, void *target, const void *source, size_t length, bool streaming)
{
    return ~(hardware ? copy_by_instruction(~value, target, source, length, streaming)
                      : portable_copy(~value, target, source, length));
}

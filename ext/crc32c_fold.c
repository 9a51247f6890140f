/* Folding (Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel, 2009).
 *
 * Read as polynomials, bytes that lie D bits before others count x**D times as much, modulo the polynomial. So a line is
 * multiplied by x**D and added to the line that lies D bits behind it, again and again; the sum of all bytes is in the last line then,
 * and from there in its last 16 bytes, of which the crc32 instruction makes the register.
 *
 * The crc32 instruction takes 8 bytes a cycle; this takes three times as many, and leaves more of a core to a
 * hyper-thread beside it, which is what counts where the kernel and the event loop share the core.
 */
#include "crc32c_fold.h"

#if defined(__x86_64__) && !defined(UCM_PORTABLE_CRC32C) && !defined(UCM_NARROW_CRC32C)

#include <immintrin.h>

#define FOLD_TARGET __attribute__((target("sse4.2,pclmul,avx512f,vpclmulqdq")))

enum { ROWS = 4 }; /* lines under way side by side: a product takes several cycles, and one can begin in each */

/* Multiply by x**D: the factor of the first 8 bytes of each 16, then that of the last 8. */
struct shift {
    uint64_t first, last;
};

static struct shift by_rows; /* D = 2048 bits */
static struct shift by_line; /* 512 */
static struct shift by_lane; /* 128 */

/* A product of reflected numbers comes out shifted by one bit, hence D - 1. The factors have their 32 bits on top. */
static struct shift shift_by(size_t bits, uint32_t (*power)(size_t bits))
{
    return (struct shift){(uint64_t)power(bits + 63) << 32, (uint64_t)power(bits - 1) << 32};
}

bool crc32c_fold_setup(uint32_t (*power)(size_t bits))
{
    by_rows = shift_by(8 * ROWS * LINE_BYTES, power);
    by_line = shift_by(8 * LINE_BYTES, power);
    by_lane = shift_by(128, power);
    return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("vpclmulqdq");
}

FOLD_TARGET static inline __m512i factors(struct shift shift)
{
    return _mm512_broadcast_i32x4(_mm_set_epi64x((long long)shift.last, (long long)shift.first));
}

/* `line` times x**D, plus `next`. */
FOLD_TARGET static inline __m512i fold(__m512i line, __m512i by, __m512i next)
{
    __m512i first = _mm512_clmulepi64_epi128(line, by, 0x00);
    __m512i last = _mm512_clmulepi64_epi128(line, by, 0x11);
    return _mm512_ternarylogic_epi64(first, last, next, 0x96); /* the exclusive or of three */
}

/* The four lanes of a line in one. */
FOLD_TARGET static inline __m128i fold_lanes(__m512i line)
{
    __m128i by = _mm_set_epi64x((long long)by_lane.last, (long long)by_lane.first);
    __m128i sum = _mm512_extracti32x4_epi32(line, 0);
    __m128i lanes[] = {_mm512_extracti32x4_epi32(line, 1), _mm512_extracti32x4_epi32(line, 2),
                       _mm512_extracti32x4_epi32(line, 3)};
    for (size_t i = 0; i < sizeof(lanes) / sizeof(lanes[0]); i++) {
        __m128i product = _mm_xor_si128(_mm_clmulepi64_si128(sum, by, 0x00), _mm_clmulepi64_si128(sum, by, 0x11));
        sum = _mm_xor_si128(product, lanes[i]);
    }
    return sum;
}

enum target { NOWHERE, CACHED, STREAMED };

/* Line i of the source, which is copied on the way. */
FOLD_TARGET static inline __attribute__((always_inline)) __m512i take(const unsigned char *from, unsigned char *to, size_t i,
                                                                      enum target target)
{
    __m512i line = _mm512_loadu_si512(from + i * LINE_BYTES);
    if (target == CACHED) {
        _mm512_storeu_si512(to + i * LINE_BYTES, line);
    } else if (target == STREAMED) {
        _mm512_stream_si512((void *)(to + i * LINE_BYTES), line);
    }
    return line;
}

FOLD_TARGET static inline __attribute__((always_inline)) uint32_t fold_all(uint32_t value, unsigned char *to,
                                                                           const unsigned char *from, size_t lines,
                                                                           enum target target)
{
    __m512i start = _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)value));
    __m512i rows[ROWS];
    for (size_t row = 0; row < ROWS; row++) {
        rows[row] = take(from, to, row, target);
    }
    rows[0] = _mm512_xor_si512(rows[0], start);
    __m512i by = factors(by_rows);
    size_t i = ROWS;
    for (; i + ROWS <= lines; i += ROWS) {
        for (size_t row = 0; row < ROWS; row++) {
            rows[row] = fold(rows[row], by, take(from, to, i + row, target));
        }
    }
    by = factors(by_line);
    __m512i sum = rows[0];
    for (size_t row = 1; row < ROWS; row++) {
        sum = fold(sum, by, rows[row]);
    }
    for (; i < lines; i++) {
        sum = fold(sum, by, take(from, to, i, target));
    }
    __m128i last = fold_lanes(sum);
    uint64_t half = _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(last));
    return (uint32_t)_mm_crc32_u64(half, (uint64_t)_mm_extract_epi64(last, 1));
}

FOLD_TARGET uint32_t crc32c_fold(uint32_t value, const unsigned char *from, size_t lines)
{
    return fold_all(value, NULL, from, lines, NOWHERE);
}

FOLD_TARGET uint32_t crc32c_fold_copy(uint32_t value, unsigned char *to, const unsigned char *from, size_t lines,
                                      bool streaming)
{
    if (!streaming) {
        return fold_all(value, to, from, lines, CACHED);
    }
    value = fold_all(value, to, from, lines, STREAMED);
    _mm_sfence(); /* before anyone is told that the bytes are there */
    return value;
}

#else

bool crc32c_fold_setup(uint32_t (*power)(size_t bits))
{
    (void)power;
    return false;
}

/* Never called; they are here so that the others need no condition. */
uint32_t crc32c_fold(uint32_t value, const unsigned char *from, size_t lines)
{
    (void)from;
    (void)lines;
    return value;
}

uint32_t crc32c_fold_copy(uint32_t value, unsigned char *to, const unsigned char *from, size_t lines, bool streaming)
{
    (void)to;
    (void)streaming;
    return crc32c_fold(value, from, lines);
}

#endif

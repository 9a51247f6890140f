/* Codecs without Python: one shard to encode or decode, and what a thread needs for it. */
#ifndef UCM_CODING_H
#define UCM_CODING_H

#include "gate.h"
#include "huffman.h"
#include "levels.h"
#include "planes.h"

#include <stdbool.h>
#include <stddef.h>

enum { PARAMETER_BYTES = 16 };

/* One shard. The layout is CODING of ucm_async/coding.py; a test compares the two. */
struct coding {
    uint64_t source; /* address */
    uint64_t source_length;
    uint64_t target;        /* address; must not overlap the source */
    uint64_t target_length; /* decoding: the raw length, exactly; encoding: at least that */
    uint64_t gate;          /* address of the state word that guards the raw side, be it source or target; 0 = none */
    uint32_t codec;         /* encoding: CODEC_AUTO becomes its choice, and CODEC_RAW is put where that is what was stored */
    uint32_t flags;         /* CODING_... */
    uint8_t parameters[PARAMETER_BYTES]; /* the element type, and what the codec makes of the rest */
    uint32_t checksum;                   /* CODING_CHECKSUM: CRC-32C of the stored bytes, those that were read or written */
    uint32_t reserved;
    int64_t result; /* bytes written, or a negative errno */
};

enum {
    CODING_CHECKSUM = 1, /* fill in the checksum, while the stored bytes are in the cache */
    CODING_BEHIND = 2,   /* encoding: the target is where the coding before it ended; it fails as that one failed */
};

_Static_assert(sizeof(struct coding) == 80, "CODING is 80 bytes");
_Static_assert(offsetof(struct coding, gate) == 32, "CODING.gate");
_Static_assert(offsetof(struct coding, codec) == 40, "CODING.codec");
_Static_assert(offsetof(struct coding, parameters) == 48, "CODING.parameters");
_Static_assert(offsetof(struct coding, checksum) == 64, "CODING.checksum");
_Static_assert(offsetof(struct coding, result) == 72, "CODING.result");

enum codec {
    CODEC_RAW = 0,
    CODEC_HUFFMAN = 1,
    CODEC_PACKED = 2,
    CODEC_FP8_E4M3 = 3,
    CODEC_INT8 = 4,
    CODEC_INT4 = 5,
    /* Never stored as such: */
    CODEC_BYTE_PLANES = 128, /* another order only; for compressors outside of the extension */
    CODEC_BIT_PLANES = 129,
    CODEC_AUTO = 255,
};

enum { FLAG_ENTROPY = 1 }; /* in parameters[1] of a lossy codec: CODEC_HUFFMAN stores what it stores */

/* No shard is larger: lengths fit in the 32 bits that headers have for them. */
#define SHARD_BYTES_MAX ((uint64_t)1 << 31)

/* Memory of one thread at a time. Nothing in it outlasts a call. */
struct codec_context {
    bool wide;             /* the processor has AVX2, and may use it */
    uint8_t *quantized;    /* between a lossy codec and the entropy coder */
    size_t quantized_size; /* bytes there */
    struct huffman_scratch huffman;
    union {
        uint8_t planes[PLANES_MAX][PLANE_SYMBOLS_MAX];
        float values[BAND_VALUES];
    };
    uint8_t levels[BAND_VALUES];
    struct band_groups groups;
};

/* Run codings one after another, and set `result` of each: the bytes written, or
 *   -EBADMSG   decoding: payload, lengths or parameters do not fit each other
 *   -EINVAL    encoding: parameters that the codec cannot use, or nothing before it that it could be behind
 *   -ENOBUFS   encoding: the target is shorter than the source; both: the context's memory is too small for the shard
 *   -EMSGSIZE  a shard of more than SHARD_BYTES_MAX
 *   -ENOSYS    no such codec here
 *   -ECANCELED the gate is closed
 * Payloads may be anything: no byte outside of source and target is touched, and decoding writes the target only.
 */
void codings_encode(struct codec_context *context, struct coding *codings, size_t count);
void codings_decode(struct codec_context *context, struct coding *codings, size_t count);

/* ---- the raw side: where an encoder reads, or a decoder writes ---- */

struct raw_side {
    uint8_t *at; /* an encoder only reads it */
    size_t length;
    uint32_t *gate; /* NULL: none */
};

/* Its gate is held for a chunk at a time, which is microseconds. False if it is closed. */
static inline bool raw_enter(const struct raw_side *raw)
{
    return !raw->gate || gate_enter(raw->gate);
}

static inline void raw_leave(const struct raw_side *raw)
{
    if (raw->gate) {
        gate_leave(raw->gate);
    }
}

/* Copy its last bytes, which are no whole element, out of it or into it. False if the gate is closed. */
bool raw_take_tail(const struct raw_side *raw, size_t tail, uint8_t *to);
bool raw_put_tail(const struct raw_side *raw, size_t tail, const uint8_t *from);

/* ---- the codecs; docs/design/codecs.md tells what they store ----
 * Encoders return the bytes stored, 0 if these would be `capacity` or more, -EINVAL or -ECANCELED. Decoders return 0, -EBADMSG or
 * -ECANCELED.
 */

int64_t planar_encode(struct codec_context *context, const struct element *element, const struct raw_side *raw, uint8_t *out,
                      size_t capacity);
int planar_decode(struct codec_context *context, const struct element *element, const uint8_t *in, size_t stored,
                  const struct raw_side *raw);

/* Elements whose top plane is an exponent and nothing else. */
static inline bool packed_takes(const struct element *element)
{
    return element->rotated && element->step == 1 && element->planes == element->width;
}

int64_t packed_encode(struct codec_context *context, const struct element *element, const struct raw_side *raw, uint8_t *out,
                      size_t capacity);
int packed_decode(struct codec_context *context, const struct element *element, const uint8_t *in, size_t stored,
                  const struct raw_side *raw);

/* The lossless codec that suits a shard: CODEC_RAW, CODEC_PACKED or CODEC_HUFFMAN. From a sample, in microseconds. */
int64_t choose_codec(struct codec_context *context, const struct element *element, const struct raw_side *raw);

/* Elements by planes, and back: as many bytes. 0 or -ECANCELED. */
int shuffle_apart(struct codec_context *context, const struct element *element, bool bits, const struct raw_side *raw, uint8_t *out);
int shuffle_together(struct codec_context *context, const struct element *element, bool bits, const uint8_t *in,
                     const struct raw_side *raw);

/* Lossy codecs without the entropy coder. A shard with an infinity or what is not a number is not for them: 0. */
int64_t fp8_encode(struct codec_context *context, const uint8_t *parameters, const struct raw_side *raw, uint8_t *out,
                   size_t capacity);
int fp8_decode(struct codec_context *context, const uint8_t *parameters, const uint8_t *in, size_t stored,
               const struct raw_side *raw);
int64_t quantize_encode(struct codec_context *context, enum codec codec, const uint8_t *parameters, const struct raw_side *raw,
                        uint8_t *out, size_t capacity);
int quantize_decode(struct codec_context *context, enum codec codec, const uint8_t *parameters, const uint8_t *in, size_t stored,
                    const struct raw_side *raw);

/* The bytes that they store for so many raw ones. False if the parameters make no sense. */
bool fp8_stored(const uint8_t *parameters, size_t raw_length, size_t *stored);
bool quantize_stored(enum codec codec, const uint8_t *parameters, size_t raw_length, size_t *stored);

#endif

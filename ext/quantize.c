/* The codecs "int8" and "int4": a few bits an element, and for each group of elements a step.
 *
 * A shard is a row of parts, each of keys or of values, and a part is a table of tokens and channels. Keys differ from channel to
 * channel and values from token to token, so a group runs along the tokens in the one and along the channels in the other. What is
 * stored is, one after another: the steps of all groups, their lowest levels, the levels of all elements, and what is no whole
 * part, as it is.
 */
#include "coding.h"
#include "floats.h"
#include "levels.h"

#include <errno.h>
#include <string.h>

enum {
    HEAD = 4, /* exponent of the steps, and zeros */
    PANEL = 1024, /* columns of a band at most */
    GROUP_TOKENS_MAX = 512,
    GROUP_CHANNELS_MIN = 16,
    GROUP_CHANNELS_MAX = 1024,
};

enum parts { VALUES, KEYS, KEYS_AND_VALUES, PARTS };

/* The parameters as headers hold them. */
struct parameters {
    uint8_t dtype;
    uint8_t flags;
    uint8_t parts;
    uint8_t reserved;
    uint16_t group_tokens;   /* of keys */
    uint16_t group_channels; /* of values */
    uint16_t tokens;         /* of a table of keys; a part may have several */
    uint16_t channels;
    uint32_t part_elements;
};
_Static_assert(sizeof(struct parameters) == 16, "they fill the parameters of a coding");

/* Everything that follows from the parameters and the raw length. */
struct plan {
    struct parameters p;
    struct scheme scheme;
    size_t width; /* bytes of an element */
    size_t parts; /* whole ones */
    size_t groups;
    size_t levels_at;
    size_t tail_at;
    size_t tail_bytes;
};

/* ---- the plan ---- */

static size_t ceiling(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static bool is_of_keys(const struct plan *plan, size_t part)
{
    return plan->p.parts == KEYS || (plan->p.parts == KEYS_AND_VALUES && part % 2 == 0);
}

static size_t groups_of_part(const struct plan *plan, bool keys)
{
    const struct parameters *p = &plan->p;
    size_t rows = p->part_elements / p->channels;
    if (keys) {
        return rows / p->tokens * ceiling(p->tokens, p->group_tokens) * p->channels;
    }
    return rows * ceiling(p->channels, p->group_channels);
}

static bool parameters_are_good(const struct parameters *p)
{
    if (!float_width(p->dtype) || p->flags & ~FLAG_ENTROPY || p->parts >= PARTS || p->reserved || !p->tokens || !p->channels || p->channels % 2) {
        return false;
    }
    if (!p->part_elements || p->part_elements % ((uint32_t)p->tokens * p->channels)) {
        return false;
    }
    return p->group_tokens >= 1 && p->group_tokens <= GROUP_TOKENS_MAX && p->group_channels >= GROUP_CHANNELS_MIN &&
           p->group_channels <= GROUP_CHANNELS_MAX && p->group_channels % 2 == 0;
}

/* False if the parameters make no sense. Shards are bounded by SHARD_BYTES_MAX, so nothing here overflows. */
static bool make_plan(struct plan *plan, enum codec codec, const uint8_t *parameters, size_t raw_length)
{
    memset(plan, 0, sizeof(*plan));
    memcpy(&plan->p, parameters, sizeof(plan->p));
    if (!parameters_are_good(&plan->p)) {
        return false;
    }
    plan->scheme = codec == CODEC_INT8 ? (struct scheme){.top = 254} : (struct scheme){.top = 15, .has_lowest = true};
    plan->width = float_width(plan->p.dtype);
    plan->parts = raw_length / plan->width / plan->p.part_elements;
    for (size_t part = 0; part < 2; part++) { /* all even parts are alike, and all odd ones */
        plan->groups += (plan->parts + 1 - part) / 2 * groups_of_part(plan, is_of_keys(plan, part));
    }
    size_t elements = plan->parts * plan->p.part_elements;
    plan->levels_at = HEAD + plan->groups * (plan->scheme.has_lowest ? 2 : 1);
    plan->tail_at = plan->levels_at + (codec == CODEC_INT8 ? elements : elements / 2);
    plan->tail_bytes = raw_length - elements * plan->width;
    return true;
}

bool quantize_stored(enum codec codec, const uint8_t *parameters, size_t raw_length, size_t *stored)
{
    struct plan plan;
    if (!make_plan(&plan, codec, parameters, raw_length)) {
        return false;
    }
    *stored = plan.tail_at + plan.tail_bytes;
    return true;
}

/* ---- bands ---- */

/* A band, where its first row and its groups are, and how far it is to the next ones. */
struct place {
    struct band band;
    size_t first;  /* element */
    size_t stride;
    size_t pieces; /* consecutive elements: its rows, or all of it in one where the rows follow each other */
    size_t piece;
    size_t group;
    size_t group_rows;
    size_t group_columns;
    size_t group_stride;
};

/* What is done with bands. */
struct work {
    struct codec_context *context;
    const struct plan *plan;
    const struct raw_side *raw;
    const uint8_t *in; /* the payload, of a decoder */
    uint8_t *out;      /* and of an encoder */
    struct step_table table;
    int (*one)(struct work *work, const struct place *place);
};

/* A table of keys, or all rows of a part of values: cut into bands that fit in the context. */
static int walk_rows(struct work *work, bool keys, size_t first, size_t rows, size_t group)
{
    const struct parameters *p = &work->plan->p;
    size_t channels = p->channels;
    size_t tokens = p->group_tokens;
    size_t group_channels = p->group_channels;
    size_t panel = keys ? BAND_VALUES / tokens / 2 * 2 : PANEL - PANEL % group_channels;
    size_t columns = least(channels, least(panel, PANEL));
    size_t step = keys ? tokens : least(BAND_VALUES / columns, BAND_GROUPS / ceiling(columns, group_channels));
    for (size_t row = 0; row < rows; row += step) {
        for (size_t column = 0; column < channels; column += columns) {
            struct place place = {.first = first + row * channels + column, .stride = channels};
            place.band.rows = least(step, rows - row);
            place.band.columns = least(columns, channels - column);
            place.band.group = keys ? 0 : group_channels;
            place.pieces = columns == channels ? 1 : place.band.rows;
            place.piece = place.band.rows * place.band.columns / place.pieces;
            place.group_rows = keys ? 1 : place.band.rows;
            place.group_columns = band_group_count(&place.band) / place.group_rows;
            place.group_stride = keys ? channels : ceiling(channels, group_channels);
            place.group = group + (keys ? row / step * channels + column : row * place.group_stride + column / group_channels);
            int result = work->one(work, &place);
            if (result) {
                return result;
            }
        }
    }
    return 0;
}

static int walk(struct work *work)
{
    const struct parameters *p = &work->plan->p;
    size_t first = 0;
    size_t group = 0;
    for (size_t part = 0; part < work->plan->parts; part++) {
        bool keys = is_of_keys(work->plan, part);
        size_t rows = keys ? p->tokens : p->part_elements / p->channels;
        size_t tables = p->part_elements / p->channels / rows;
        for (size_t table = 0; table < tables; table++) {
            int result = walk_rows(work, keys, first, rows, group);
            if (result) {
                return result;
            }
            first += rows * p->channels;
            group += groups_of_part(work->plan, keys) / tables;
        }
    }
    return 0;
}

/* ---- encoding ---- */

/* The greatest magnitude of the whole parts; negative if the gate is closed. */
static float greatest_of(const struct codec_context *context, const struct plan *plan, const struct raw_side *raw)
{
    float greatest = 0;
    size_t elements = plan->parts * plan->p.part_elements;
    for (size_t first = 0; first < elements; first += BAND_VALUES) {
        if (!raw_enter(raw)) {
            return -1;
        }
        float one = floats_greatest(plan->p.dtype, raw->at + first * plan->width, least(elements - first, BAND_VALUES), context->wide);
        raw_leave(raw);
        greatest = one > greatest ? one : greatest;
    }
    return greatest;
}

static bool load_band(const struct work *work, const struct place *place)
{
    struct codec_context *context = work->context;
    size_t width = work->plan->width;
    if (!raw_enter(work->raw)) {
        return false;
    }
    for (size_t i = 0; i < place->pieces; i++) {
        const uint8_t *elements = work->raw->at + (place->first + i * place->stride) * width;
        floats_load(work->plan->p.dtype, elements, context->values + i * place->piece, place->piece, context->wide);
    }
    raw_leave(work->raw);
    return true;
}

static void put_levels(const struct work *work, const struct place *place)
{
    struct codec_context *context = work->context;
    uint8_t *levels = work->out + work->plan->levels_at;
    for (size_t i = 0; i < place->pieces; i++) {
        size_t at = place->first + i * place->stride;
        if (work->plan->scheme.has_lowest) {
            levels_pack(context->levels + i * place->piece, levels + at / 2, place->piece, context->wide);
        } else {
            memcpy(levels + at, context->levels + i * place->piece, place->piece);
        }
    }
}

static void put_groups(const struct work *work, const struct place *place)
{
    const struct band_groups *groups = &work->context->groups;
    uint8_t *codes = work->out + HEAD;
    for (size_t row = 0; row < place->group_rows; row++) {
        size_t at = place->group + row * place->group_stride;
        memcpy(codes + at, groups->codes + row * place->group_columns, place->group_columns);
        if (work->plan->scheme.has_lowest) {
            memcpy(codes + work->plan->groups + at, groups->lowest + row * place->group_columns, place->group_columns);
        }
    }
}

static int encode_band(struct work *work, const struct place *place)
{
    struct codec_context *context = work->context;
    if (!load_band(work, place)) {
        return -ECANCELED;
    }
    band_to_levels(&work->plan->scheme, &work->table, &place->band, context->values, &context->groups, context->levels, context->wide);
    put_groups(work, place);
    put_levels(work, place);
    return 0;
}

int64_t quantize_encode(struct codec_context *context, enum codec codec, const uint8_t *parameters, const struct raw_side *raw,
                        uint8_t *out, size_t capacity)
{
    struct plan plan;
    if (!make_plan(&plan, codec, parameters, raw->length)) {
        return -EINVAL;
    }
    if (plan.tail_at + plan.tail_bytes >= capacity) {
        return 0;
    }
    float greatest = greatest_of(context, &plan, raw);
    if (greatest < 0) {
        return -ECANCELED;
    }
    if (greatest > GREATEST_MAX) {
        return 0;
    }
    struct work work = {.context = context, .plan = &plan, .raw = raw, .out = out, .one = encode_band};
    int16_t exponent = (int16_t)step_exponent(&plan.scheme, greatest);
    memset(out, 0, HEAD);
    memcpy(out, &exponent, sizeof(exponent));
    int result = fill_steps(&work.table, exponent) ? walk(&work) : -EINVAL;
    if (result || !raw_take_tail(raw, plan.tail_bytes, out + plan.tail_at)) {
        return result ? result : -ECANCELED;
    }
    return (int64_t)(plan.tail_at + plan.tail_bytes);
}

/* ---- decoding ---- */

static void get_levels(const struct work *work, const struct place *place)
{
    struct codec_context *context = work->context;
    const uint8_t *levels = work->in + work->plan->levels_at;
    for (size_t i = 0; i < place->pieces; i++) {
        size_t at = place->first + i * place->stride;
        if (work->plan->scheme.has_lowest) {
            levels_unpack(levels + at / 2, context->levels + i * place->piece, place->piece, context->wide);
        } else {
            memcpy(context->levels + i * place->piece, levels + at, place->piece);
        }
    }
}

static void get_groups(const struct work *work, const struct place *place)
{
    struct band_groups *groups = &work->context->groups;
    const uint8_t *codes = work->in + HEAD;
    for (size_t row = 0; row < place->group_rows; row++) {
        size_t at = place->group + row * place->group_stride;
        memcpy(groups->codes + row * place->group_columns, codes + at, place->group_columns);
        if (work->plan->scheme.has_lowest) {
            memcpy(groups->lowest + row * place->group_columns, codes + work->plan->groups + at, place->group_columns);
        }
    }
}

static bool store_band(const struct work *work, const struct place *place)
{
    const struct codec_context *context = work->context;
    size_t width = work->plan->width;
    if (!raw_enter(work->raw)) {
        return false;
    }
    for (size_t i = 0; i < place->pieces; i++) {
        uint8_t *elements = work->raw->at + (place->first + i * place->stride) * width;
        floats_store(work->plan->p.dtype, elements, context->values + i * place->piece, place->piece, context->wide);
    }
    raw_leave(work->raw);
    return true;
}

static int decode_band(struct work *work, const struct place *place)
{
    struct codec_context *context = work->context;
    get_groups(work, place);
    get_levels(work, place);
    band_from_levels(&work->plan->scheme, &work->table, &place->band, context->levels, &context->groups, context->values,
                     context->wide);
    return store_band(work, place) ? 0 : -ECANCELED;
}

int quantize_decode(struct codec_context *context, enum codec codec, const uint8_t *parameters, const uint8_t *in, size_t stored,
                    const struct raw_side *raw)
{
    struct plan plan;
    int16_t exponent;
    if (!make_plan(&plan, codec, parameters, raw->length) || stored != plan.tail_at + plan.tail_bytes) {
        return -EBADMSG;
    }
    struct work work = {.context = context, .plan = &plan, .raw = raw, .in = in, .one = decode_band};
    memcpy(&exponent, in, sizeof(exponent));
    if (in[2] || in[3] || !fill_steps(&work.table, exponent)) {
        return -EBADMSG;
    }
    int result = walk(&work);
    if (!result && !raw_put_tail(raw, plan.tail_bytes, in + plan.tail_at)) {
        return -ECANCELED;
    }
    return result;
}

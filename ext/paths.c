/* Names of blocks: what the files of docs/design/format.md are called, for a batch in one call. */
#include "native.h"

#include <stdbool.h>

enum {
    ID_BYTES = 16,
    PATH_BYTES = 36,    /* "xx/" + 32 hex digits + NUL */
    IDS_WITH_GIL = 512, /* some ten microseconds */
};

/* Constants of the format; any odd ones would do. */
#define MIX_LOW 0x9E3779B97F4A7C15u
#define MIX_HIGH 0xC2B2AE3D27D4EB4Fu

static uint64_t little_endian(const unsigned char *bytes)
{
    uint64_t word = 0;
    for (int i = 7; i >= 0; i--) {
        word = word << 8 | bytes[i];
    }
    return word;
}

static uint64_t mix(const unsigned char *id)
{
    uint64_t low = little_endian(id), high = little_endian(id + 8);
    uint64_t mixed = low * MIX_LOW ^ (high + (low >> 32)) * MIX_HIGH;
    mixed ^= mixed >> 29;
    mixed *= MIX_LOW;
    return mixed ^ mixed >> 32;
}

static void put_hex(char *out, const unsigned char *bytes, size_t count)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < count; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
}

static void mix_all(const unsigned char *ids, size_t count, void *out)
{
    uint64_t *mixed = out;
    for (size_t i = 0; i < count; i++) {
        mixed[i] = mix(ids + ID_BYTES * i);
    }
}

static void name_all(const unsigned char *ids, size_t count, void *out)
{
    for (size_t i = 0; i < count; i++) {
        const unsigned char *id = ids + ID_BYTES * i;
        char *path = (char *)out + PATH_BYTES * i;
        unsigned char directory = (unsigned char)(mix(id) >> 56);
        put_hex(path, &directory, 1);
        path[2] = '/';
        put_hex(path + 3, id, ID_BYTES);
        path[PATH_BYTES - 1] = '\0';
    }
}

/* Run `work` over the ids of args[0] into args[1], which has `width` bytes for each. */
static PyObject *for_all(PyObject *const *args, Py_ssize_t count, const char *name, size_t width,
                         void (*work)(const unsigned char *ids, size_t count, void *out))
{
    if (count != 2) {
        return PyErr_Format(PyExc_TypeError, "%s() takes 2 arguments (%zd given)", name, count);
    }
    Py_buffer ids, out;
    if (PyObject_GetBuffer(args[0], &ids, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    if (PyObject_GetBuffer(args[1], &out, PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&ids);
        return NULL;
    }
    size_t rows = (size_t)ids.len / ID_BYTES;
    bool fits = (size_t)ids.len % ID_BYTES == 0 && (size_t)out.len == rows * width &&
                (width != sizeof(uint64_t) || (uintptr_t)out.buf % _Alignof(uint64_t) == 0);
    if (!fits) {
        PyErr_Format(PyExc_ValueError, "%s(): %zd bytes of ids and %zd of room, must be 16 and %zu for each id", name, ids.len,
                     out.len, width);
    } else if (rows <= IDS_WITH_GIL) {
        work(ids.buf, rows, out.buf);
    } else {
        Py_BEGIN_ALLOW_THREADS
        work(ids.buf, rows, out.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&out);
    PyBuffer_Release(&ids);
    if (!fits) {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyObject *mix_ids(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    return for_all(args, count, "mix_ids", sizeof(uint64_t), mix_all);
}

PyObject *block_paths(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    return for_all(args, count, "block_paths", PATH_BYTES, name_all);
}

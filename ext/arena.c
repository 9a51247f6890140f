/* Mapping: memory for an arena, on 2 MiB boundaries, faulted in before use, with huge pages where the kernel gives them.
 *
 * The mapping lies in a larger reservation whose rest stays inaccessible: it aligns, it keeps neighbours from being merged
 * into one area (smaps speaks of areas), and it catches overruns.
 */
#include "native.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define HUGE_BYTES ((size_t)2 << 20)

enum page_mode { PAGES_4K, PAGES_MIXED, PAGES_HUGE };
static const char *const PAGE_MODES[] = {"4k", "partly huge", "huge"};

struct area {
    char *reserved;
    size_t reserved_bytes;
    char *address; /* NULL: not mapped */
    size_t bytes;  /* mapped; `length` rounded up to pages */
    bool shared;
    bool huge;     /* wanted */
    enum page_mode pages;
};

static size_t round_up(size_t value, size_t unit)
{
    return (value + unit - 1) / unit * unit;
}

/* ---- mapping and faulting; 0 or an errno; without the GIL ---- */

/* The kernel says EFAULT where a touch would be a SIGBUS: the file system cannot give the page. */
static int populate_error(int error)
{
    return error == EFAULT ? ENOSPC : error;
}

static void touch(char *from, size_t bytes, size_t page)
{
    for (size_t at = 0; at < bytes; at += page) {
        /* A write that changes nothing, even if another process writes there, too. */
        __atomic_fetch_or(from + at, 0, __ATOMIC_RELAXED);
    }
}

/* Fault in every page. Kernels before 5.14 cannot be asked to, there each page is touched. */
static int populate(char *from, size_t bytes)
{
    if (madvise(from, bytes, MADV_POPULATE_WRITE) == 0) {
        return 0;
    }
    if (errno != EINVAL) {
        return populate_error(errno);
    }
    touch(from, bytes, (size_t)sysconf(_SC_PAGESIZE));
    return 0;
}

/* Shared memory gets huge pages from MADV_COLLAPSE, which wants one page of each in place; no privileges, no mount option. */
static int collapse(char *from, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t at = 0; at + HUGE_BYTES <= bytes; at += HUGE_BYTES) {
        int error = populate(from + at, page);
        if (error) {
            return error;
        }
    }
    (void)madvise(from, bytes, MADV_COLLAPSE); /* a wish: what did not work is populated by the caller */
    return 0;
}

/* Fault in a part of the area; `offset` is a multiple of HUGE_BYTES. */
static int fault_part(const struct area *area, size_t offset, size_t bytes)
{
    char *from = area->address + offset;
    int error = area->shared && area->huge ? collapse(from, bytes) : 0;
    return error ? error : populate(from, bytes);
}

/* Bytes of huge pages in the area that starts at `address`, from smaps. */
static uint64_t huge_bytes(const char *address)
{
    char line[256];
    uint64_t total_kib = 0;
    bool inside = false;
    FILE *file = fopen("/proc/self/smaps", "re");
    if (!file) {
        return 0;
    }
    while (fgets(line, sizeof(line), file)) {
        uint64_t from, to, kib;
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &from, &to) == 2) {
            if (inside) {
                break;
            }
            inside = from == (uint64_t)(uintptr_t)address;
        } else if (inside && (sscanf(line, "AnonHugePages: %" SCNu64, &kib) == 1 ||
                              sscanf(line, "ShmemPmdMapped: %" SCNu64, &kib) == 1 ||
                              sscanf(line, "FilePmdMapped: %" SCNu64, &kib) == 1)) {
            total_kib += kib;
        }
    }
    fclose(file);
    return total_kib * 1024;
}

static enum page_mode look_at_pages(const struct area *area)
{
    uint64_t huge = huge_bytes(area->address);
    if (huge == 0) {
        return PAGES_4K;
    }
    return huge >= area->bytes / HUGE_BYTES * HUGE_BYTES ? PAGES_HUGE : PAGES_MIXED;
}

static int reserve(struct area *area)
{
    area->reserved_bytes = area->bytes + 2 * HUGE_BYTES;
    void *mapped = mmap(NULL, area->reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) {
        return errno;
    }
    area->reserved = mapped;
    return 0;
}

static void area_unmap(struct area *area)
{
    if (area->reserved) {
        munmap(area->reserved, area->reserved_bytes);
        area->reserved = NULL;
        area->address = NULL;
    }
}

static int area_map(struct area *area, size_t length, int fd, bool huge, bool fault)
{
    area->shared = fd >= 0;
    area->huge = huge;
    /* Nothing may be touched behind the end of a file; anonymous memory can have whole huge pages. */
    area->bytes = round_up(length, fd < 0 && huge ? HUGE_BYTES : (size_t)sysconf(_SC_PAGESIZE));
    int error = reserve(area);
    if (error) {
        return error;
    }
    uintptr_t start = round_up((uintptr_t)area->reserved + 1, HUGE_BYTES);
    int flags = MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
    void *mapped = mmap(pointer_to(start), area->bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (mapped == MAP_FAILED) {
        return errno;
    }
    area->address = mapped;
    if (!area->shared) {
        (void)madvise(area->address, area->bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE); /* a wish */
    }
    if (!fault) {
        return 0;
    }
    error = fault_part(area, 0, area->bytes);
    if (!error) {
        area->pages = look_at_pages(area);
    }
    return error;
}

/* ---- the object ---- */

struct mapping_object {
    PyObject_HEAD
    struct area area;
    size_t length;
    Py_ssize_t exports;
};

/* A file that is too short would be a SIGBUS later. */
static int check_file(int fd, Py_ssize_t length)
{
    struct stat status;
    if (fstat(fd, &status) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    if (S_ISREG(status.st_mode) && status.st_size < length) {
        PyErr_Format(PyExc_ValueError, "fd: the file has %lld bytes, the mapping needs %zd", (long long)status.st_size, length);
        return -1;
    }
    return 0;
}

static PyObject *mapping_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"length", "fd", "huge", "populate", NULL};
    Py_ssize_t length;
    int fd = -1, huge = 1, fault = 1;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "n|ipp:Mapping", names, &length, &fd, &huge, &fault)) {
        return NULL;
    }
    if (length < 1 || length > PY_SSIZE_T_MAX / 2) {
        PyErr_Format(PyExc_ValueError, "length: %zd, must be at least 1 and fit in the address space", length);
        return NULL;
    }
    if (fd >= 0 && check_file(fd, length) < 0) {
        return NULL;
    }
    struct mapping_object *self = (struct mapping_object *)type->tp_alloc(type, 0);
    if (!self) {
        return NULL;
    }
    int error;
    self->length = (size_t)length;
    Py_BEGIN_ALLOW_THREADS
    error = area_map(&self->area, self->length, fd, huge != 0, fault != 0);
    Py_END_ALLOW_THREADS
    if (error) {
        Py_DECREF(self);
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return (PyObject *)self;
}

static void mapping_dealloc(PyObject *op)
{
    area_unmap(&((struct mapping_object *)op)->area);
    PyTypeObject *type = Py_TYPE(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *mapping_populate(PyObject *op, PyObject *args)
{
    struct mapping_object *self = (struct mapping_object *)op;
    Py_ssize_t offset, length;
    if (!PyArg_ParseTuple(args, "nn:populate", &offset, &length)) {
        return NULL;
    }
    if (offset < 0 || (size_t)offset % HUGE_BYTES) {
        return PyErr_Format(PyExc_ValueError, "offset: %zd, must be a multiple of %zu", offset, HUGE_BYTES);
    }
    if (length < 1 || (size_t)length > self->length || (size_t)offset > self->length - (size_t)length) {
        return PyErr_Format(PyExc_ValueError, "length: %zd bytes from %zd on, must lie within %zu", length, offset, self->length);
    }
    if (!self->area.address) {
        return PyErr_Format(PyExc_ValueError, "Mapping: closed");
    }
    int error;
    self->exports++; /* it must not be closed meanwhile */
    Py_BEGIN_ALLOW_THREADS
    error = fault_part(&self->area, (size_t)offset, (size_t)length);
    if (!error) {
        self->area.pages = look_at_pages(&self->area);
    }
    Py_END_ALLOW_THREADS
    self->exports--;
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *mapping_close(PyObject *op, PyObject *Py_UNUSED(none))
{
    struct mapping_object *self = (struct mapping_object *)op;
    if (self->exports) {
        return PyErr_Format(PyExc_BufferError, "Mapping: %zd buffers of it are in use", self->exports);
    }
    struct area area = self->area;
    self->area = (struct area){.pages = area.pages};
    Py_BEGIN_ALLOW_THREADS /* giving gigabytes back takes a while */
    area_unmap(&area);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static int mapping_getbuffer(PyObject *op, Py_buffer *view, int flags)
{
    struct mapping_object *self = (struct mapping_object *)op;
    if (!self->area.address) {
        view->obj = NULL;
        PyErr_SetString(PyExc_BufferError, "Mapping: closed");
        return -1;
    }
    if (PyBuffer_FillInfo(view, op, self->area.address, (Py_ssize_t)self->length, 0, flags) < 0) {
        return -1;
    }
    self->exports++;
    return 0;
}

static void mapping_releasebuffer(PyObject *op, Py_buffer *Py_UNUSED(view))
{
    ((struct mapping_object *)op)->exports--;
}

static PyObject *mapping_address(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromVoidPtr(((struct mapping_object *)op)->area.address);
}

static PyObject *mapping_length(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(((struct mapping_object *)op)->length);
}

static PyObject *mapping_page_mode(PyObject *op, void *Py_UNUSED(closure))
{
    return PyUnicode_FromString(PAGE_MODES[((struct mapping_object *)op)->area.pages]);
}

static PyMethodDef mapping_methods[] = {
    {"populate", mapping_populate, METH_VARARGS,
     PyDoc_STR("populate($self, offset, length, /)\n--\n\nFault in a part, of a mapping that was made without.")},
    {"close", mapping_close, METH_NOARGS, PyDoc_STR("close($self)\n--\n\nUnmap. BufferError while exported. Idempotent.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef mapping_attributes[] = {
    {"address", mapping_address, NULL, PyDoc_STR("Where it starts, a multiple of 2 MiB; 0 once closed."), NULL},
    {"length", mapping_length, NULL, PyDoc_STR("Bytes, as asked for."), NULL},
    {"page_mode", mapping_page_mode, NULL, PyDoc_STR("'huge', 'partly huge' or '4k', as found after faulting in."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot mapping_slots[] = {
    {Py_tp_doc, (char *)PyDoc_STR("Mapping(length, fd=-1, huge=True, populate=True)\n--\n\n"
                                  "Memory for an arena: 2 MiB aligned, prefaulted, huge pages where the kernel gives them.")},
    {Py_tp_new, mapping_new},
    {Py_tp_dealloc, mapping_dealloc},
    {Py_tp_methods, mapping_methods},
    {Py_tp_getset, mapping_attributes},
    {Py_bf_getbuffer, mapping_getbuffer},
    {Py_bf_releasebuffer, mapping_releasebuffer},
    {0, NULL},
};

PyType_Spec mapping_spec = {
    .name = "ucm_async._native.Mapping",
    .basicsize = sizeof(struct mapping_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = mapping_slots,
};

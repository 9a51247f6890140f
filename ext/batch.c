/* Batches and the queues they stand in. */
#include "batch.h"

#include <stdlib.h>

void batch_push(struct batch_queue *queue, struct batch *batch)
{
    batch->next = NULL;
    if (queue->head) {
        queue->tail->next = batch;
    } else {
        queue->head = batch;
    }
    queue->tail = batch;
}

struct batch *batch_pop(struct batch_queue *queue)
{
    struct batch *batch = queue->head;
    if (batch) {
        queue->head = batch->next;
        batch->next = NULL;
    }
    return batch;
}

void batch_append(struct batch_queue *to, struct batch_queue *from)
{
    if (!from->head) {
        return;
    }
    if (to->head) {
        to->tail->next = from->head;
    } else {
        to->head = from->head;
    }
    to->tail = from->tail;
    from->head = NULL;
}

void batch_reset(struct batch *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        request_publish(&batch->requests[i], PENDING_RESULT);
    }
}

int requests_view(PyObject *requests, Py_buffer *view, size_t *count)
{
    if (PyObject_GetBuffer(requests, view, PyBUF_WRITABLE) < 0) {
        return -1;
    }
    size_t length = (size_t)view->len;
    if (length % sizeof(struct request)) {
        PyErr_Format(PyExc_ValueError, "requests: %zd bytes, must be a multiple of %zu", view->len, sizeof(struct request));
    } else if (length && (uintptr_t)view->buf % _Alignof(struct request)) {
        PyErr_SetString(PyExc_ValueError, "requests: the array is not aligned to 8 bytes");
    } else {
        *count = length / sizeof(struct request);
        return 0;
    }
    PyBuffer_Release(view);
    return -1;
}

struct batch *batch_new(PyObject *requests, PyObject *token, size_t chunk)
{
    struct batch *batch = calloc(1, sizeof(*batch));
    if (!batch) {
        PyErr_NoMemory();
        return NULL;
    }
    if (requests_view(requests, &batch->view, &batch->count) < 0) {
        free(batch);
        return NULL;
    }
    batch->requests = batch->view.buf;
    batch->remaining = batch->count;
    batch->chunk = chunk;
    batch->token = Py_NewRef(token);
    return batch;
}

PyObject *batch_free(struct batch *batch)
{
    PyObject *token = batch->token;
    PyBuffer_Release(&batch->view);
    free(batch);
    return token;
}

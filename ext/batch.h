/* A submitted array of requests: what keeps it alive, and how far it is. */
#ifndef UCM_BATCH_H
#define UCM_BATCH_H

#include "native.h"
#include "request.h"

#include <stdbool.h>

struct batch {
    struct batch *next; /* in whichever queue it stands; one at a time */
    struct request *requests;
    size_t count;
    size_t cursor;    /* requests before it were handed out */
    size_t remaining; /* requests without a result */
    size_t chunk;     /* requests of a chain: they run one after another */

    /* Python's side; touched with the GIL held only. */
    struct batch *live_next, **live_link;
    Py_buffer view;
    PyObject *token;
};

struct batch_queue {
    struct batch *head;
    struct batch *tail; /* valid while head is set */
};

void batch_push(struct batch_queue *queue, struct batch *batch);
struct batch *batch_pop(struct batch_queue *queue);
/* Take out one that is in there. */
void batch_remove(struct batch_queue *queue, struct batch *batch);
/* Move all of `from` behind what is in `to`. */
void batch_append(struct batch_queue *to, struct batch_queue *from);

/* Mark every request as not finished. */
void batch_reset(struct batch *batch);

/* Add what a finished batch moved (transfers and copies), and how many of its requests failed. */
void batch_count(const struct batch *batch, uint64_t *bytes, uint64_t *errors);

/* Take a writable view of an array of requests. -1 with an exception where it is none. */
int requests_view(PyObject *requests, Py_buffer *view, size_t *count);

/* Hold `requests` and `token` until batch_free. NULL with an exception. */
struct batch *batch_new(PyObject *requests, PyObject *token, size_t chunk);
/* Release the array and return the token, whose reference passes to the caller. */
PyObject *batch_free(struct batch *batch);

#endif

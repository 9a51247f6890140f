/* A chain under way: consecutive requests of a batch that run one after another, here or in a ring. */
#ifndef UCM_CHAIN_H
#define UCM_CHAIN_H

#include "batch.h"
#include "perform.h"

struct chain {
    struct chain *next; /* in whichever queue it stands; one at a time */
    struct batch *batch;
    struct request *at, *end; /* the request that is next or runs; behind the last one */
    size_t count;
    struct job job;
    /* Of the data request that a ring has. */
    uint64_t bytes; /* what it counts against max_bytes */
    uint64_t done;  /* moved by earlier parts of a short transfer */
    bool retried;   /* was given to the kernel again */
};

struct chain_queue {
    struct chain *head;
    struct chain *tail; /* valid while head is set */
};

static inline void chain_push(struct chain_queue *queue, struct chain *chain)
{
    chain->next = NULL;
    if (queue->head) {
        queue->tail->next = chain;
    } else {
        queue->head = chain;
    }
    queue->tail = chain;
}

static inline struct chain *chain_pop(struct chain_queue *queue)
{
    struct chain *chain = queue->head;
    if (chain) {
        queue->head = chain->next;
    }
    return chain;
}

/* Move all of `from` behind what is in `to`. */
static inline void chain_append(struct chain_queue *to, struct chain_queue *from)
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

static inline bool chain_is_over(const struct chain *chain)
{
    return chain->at == chain->end;
}

/* True if the next request is a transfer that can be begun. */
static inline bool chain_wants_ring(const struct chain *chain)
{
    return !chain_is_over(chain) && request_is_data(chain->at) && !job_refusal(&chain->job, chain->at);
}

/* Run everything up to the next transfer in the calling thread. */
static inline void chain_run(struct chain *chain)
{
    while (!chain_is_over(chain) && !chain_wants_ring(chain)) {
        job_perform(&chain->job, chain->at++);
    }
}

/* Settle what needs no work: padding, and requests that must not run. */
static inline void chain_skip(struct chain *chain)
{
    while (!chain_is_over(chain) &&
           ((chain->at->opcode & OP_MASK) == OP_NOP || job_refusal(&chain->job, chain->at))) {
        job_perform(&chain->job, chain->at++);
    }
}

#endif

/* Threads that never touch Python. */
#ifndef UCM_THREADS_H
#define UCM_THREADS_H

#include "platform.h"

#include <pthread.h>

enum { THREADS_MAX = 1024 };

struct threads {
    unsigned count;
    pthread_t *ids;
    void *(*run)(void *argument);
    void *argument;
};

/* Start `count` threads that do not take signals and give way to the process' other threads.
 * `threads` stays where it is until they are joined. An errno if not all could be had; those that run are counted, and joined as others. */
int threads_start(struct threads *threads, unsigned count, const char *name, void *(*run)(void *argument), void *argument);

/* Wait for all of them to return. They must have been told to. */
void threads_join(struct threads *threads);

#endif

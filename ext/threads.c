#include "threads.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

/* The deepest frame is a copy of 1024 iovecs (16 KiB). */
enum { STACK_BYTES = 256 * 1024, NAME_BYTES = 16 };

static int start_one_by_one(struct threads *threads, unsigned count, const char *name, void *(*run)(void *), void *argument)
{
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error) {
        return error;
    }
    error = pthread_attr_setstacksize(&attributes, STACK_BYTES);
    for (unsigned i = 0; i < count && !error; i++) {
        error = pthread_create(&threads->ids[i], &attributes, run, argument);
        if (!error) {
            char label[NAME_BYTES];
            snprintf(label, sizeof(label), "%.10s-%u", name, i % 1000);
            pthread_setname_np(threads->ids[i], label);
            threads->count++;
        }
    }
    pthread_attr_destroy(&attributes);
    return error;
}

int threads_start(struct threads *threads, unsigned count, const char *name, void *(*run)(void *), void *argument)
{
    threads->count = 0;
    threads->ids = calloc(count, sizeof(threads->ids[0]));
    if (!threads->ids) {
        return ENOMEM;
    }
    /* Signals are for Python's threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = start_one_by_one(threads, count, name, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

void threads_join(struct threads *threads)
{
    for (unsigned i = 0; i < threads->count; i++) {
        pthread_join(threads->ids[i], NULL);
    }
    threads->count = 0;
    free(threads->ids);
    threads->ids = NULL;
}

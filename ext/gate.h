/* A gate's state word: bit 31 = closed, the rest counts who is inside. Requests carry its address. */
#ifndef UCM_GATE_H
#define UCM_GATE_H

#include "platform.h"

#include <stdbool.h>

#define GATE_CLOSED 0x80000000u

static inline bool gate_is_closed(const uint32_t *state)
{
    return __atomic_load_n(state, __ATOMIC_ACQUIRE) & GATE_CLOSED;
}

/* Go in, unless the gate is closed. A loop and not a plain add: a refused visitor must leave no trace that close() waits for. */
static inline bool gate_enter(uint32_t *state)
{
    uint32_t seen = __atomic_load_n(state, __ATOMIC_RELAXED);
    while (!(seen & GATE_CLOSED)) {
        if (__atomic_compare_exchange_n(state, &seen, seen + 1, true, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
            return true;
        }
    }
    return false;
}

static inline void gate_leave(uint32_t *state)
{
    __atomic_fetch_sub(state, 1, __ATOMIC_RELEASE);
}

/* Let nobody in any more, and wait until everybody is out. */
void gate_close(uint32_t *state);

#endif

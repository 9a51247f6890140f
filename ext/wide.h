/* One loop, compiled twice: for every processor, and for those with AVX2. The compiler makes the vectors; which one runs is
 * decided at run time, so the extension never needs more than the architecture's base.
 */
#ifndef UCM_WIDE_H
#define UCM_WIDE_H

#include "platform.h"

#include <stdbool.h>

/* For the bodies: they take on the target of the function they are inlined into. */
#define BODY static inline __attribute__((always_inline))

#if defined(__x86_64__)
#define WIDE __attribute__((target("avx2")))
static inline bool have_wide(void)
{
    return __builtin_cpu_supports("avx2");
}
#else
#define WIDE
static inline bool have_wide(void)
{
    return false;
}
#endif

/* Define `name` from `name##_body`: the same parameters behind `bool wide`. */
#define TWICE(name, parameters, arguments)      \
    static void name##_base parameters          \
    {                                           \
        name##_body arguments;                  \
    }                                           \
    WIDE static void name##_wide parameters     \
    {                                           \
        name##_body arguments;                  \
    }

/* The same for a function that returns something. */
#define GIVE_TWICE(type, name, parameters, arguments) \
    static type name##_base parameters                \
    {                                                 \
        return name##_body arguments;                 \
    }                                                 \
    WIDE static type name##_wide parameters           \
    {                                                 \
        return name##_body arguments;                 \
    }

#define EITHER(wide, name, ...) ((wide) ? name##_wide(__VA_ARGS__) : name##_base(__VA_ARGS__))

#endif

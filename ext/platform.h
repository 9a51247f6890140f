/* Included first, or after Python.h: what the system headers need to know, and the few compiler differences. */
#ifndef UCM_PLATFORM_H
#define UCM_PLATFORM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif

#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#if !defined(__linux__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__ || UINTPTR_MAX != UINT64_MAX
#error "the extension needs 64-bit little-endian Linux; without it the package runs on psync"
#endif

/* Numbers are the same on every architecture from 424 on; old libc headers do not have them yet. */
#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#define SYS_io_uring_enter 426
#define SYS_io_uring_register 427
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static inline void *pointer_to(uint64_t address)
{
    return (void *)(uintptr_t)address; // NOLINT: requests carry addresses as numbers
}

/* Tell the processor that this is a spin loop. */
static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

#endif

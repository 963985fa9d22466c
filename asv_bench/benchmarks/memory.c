/* Counts allocations, and the bytes that memcpy and memmove copy: preload it (LD_PRELOAD; glibc). Copies of a few bytes
   that the compiler wrote out, and what realloc and the kernel copy, are not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

/* The functions behind glibc's malloc: asking dlsym for malloc would allocate. */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *block, size_t size);

static uint64_t allocated, copied;
static void *(*move)(void *, const void *, size_t);

uint64_t allocations(void) { return allocated; }
uint64_t copied_bytes(void) { return copied; }

__attribute__((constructor)) static void find(void)
{
    move = (void *(*)(void *, const void *, size_t))dlsym(RTLD_NEXT, "memmove");
}

void *malloc(size_t size)
{
    allocated++;
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    allocated++;
    return __libc_calloc(count, size);
}

void *realloc(void *block, size_t size)
{
    allocated++;
    return __libc_realloc(block, size);
}

void *memmove(void *to, const void *from, size_t size)
{
    copied += size;
    if (move)
        return move(to, from, size);
    /* Before the constructor ran, one by one. */
    volatile char *target = to;
    const char *source = from;
    if (target <= source)
        for (size_t i = 0; i < size; i++)
            target[i] = source[i];
    else
        for (size_t i = size; i > 0; i--)
            target[i - 1] = source[i - 1];
    return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t size) { return memmove(to, from, size); }
void *mempcpy(void *restrict to, const void *restrict from, size_t size) { return (char *)memmove(to, from, size) + size; }
/* What _FORTIFY_SOURCE makes of them. */
void *__memcpy_chk(void *to, const void *from, size_t size, size_t room) { return (void)room, memmove(to, from, size); }
void *__memmove_chk(void *to, const void *from, size_t size, size_t room) { return (void)room, memmove(to, from, size); }

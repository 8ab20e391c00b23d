/* What the C tests share: a check that says where it failed, and a reproducible sequence. */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <mycoram.h>

#define PAGE ((size_t)4096)
#define MIB ((size_t)1 << 20)

#define CHECK(condition)                                                                            \
    do {                                                                                            \
        if (!(condition)) {                                                                         \
            fprintf(stderr, "%s:%d: not so: %s (errno %d, last error: %s)\n", __FILE__, __LINE__,   \
                    #condition, errno, mycoram_last_error());                                       \
            exit(1);                                                                                \
        }                                                                                           \
    } while (0)

#define CHECK_STATUS(call, expected)                                                                \
    do {                                                                                            \
        mycoram_status got_ = (call);                                                               \
        if (got_ != (expected)) {                                                                   \
            fprintf(stderr, "%s:%d: %s gave %d and not %d (last error: %s)\n", __FILE__, __LINE__,  \
                    #call, (int)got_, (int)(expected), mycoram_last_error());                       \
            exit(1);                                                                                \
        }                                                                                           \
    } while (0)

static inline uint64_t mix(uint64_t z)
{
    z += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Says that the program has come so far, and waits until the test writes a line. */
static inline void meet(const char *word)
{
    char line[64];
    printf("%s\n", word);
    fflush(stdout);
    CHECK(fgets(line, sizeof line, stdin) != NULL);
}

#endif

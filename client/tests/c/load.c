/* dlopen, use, dlclose, use on: the library stays, and so does the mapping. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mycoram.h>

#define CHECK(condition)                                                          \
    do {                                                                          \
        if (!(condition)) {                                                       \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                              \
        }                                                                         \
    } while (0)

int main(int argc, char **argv)
{
    CHECK(argc == 3); /* URI LIBRARY */
    size_t bytes = (size_t)16 << 20;
    unsigned char *memory = NULL;
    for (int round = 0; round < 2; round++) {
        void *library = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL);
        CHECK(library != NULL);
        mycoram *(*open_far)(const char *) = (mycoram * (*)(const char *)) dlsym(library, "mycoram_open");
        void *(*map)(mycoram *, size_t) = (void *(*)(mycoram *, size_t))dlsym(library, "mycoram_map");
        CHECK(open_far != NULL && map != NULL);
        if (round == 0) {
            mycoram *far = open_far(argv[1]);
            CHECK(far != NULL);
            memory = map(far, bytes);
            CHECK(memory != NULL);
            memset(memory, 3, bytes);
        }
        CHECK(dlclose(library) == 0);
        for (size_t at = 0; at < bytes; at += 1024)
            CHECK(memory[at] == 3);
    }
    return 0; /* with everything open and mapped */
}

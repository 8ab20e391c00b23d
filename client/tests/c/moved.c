/* mremap: a mapping that is moved as a whole goes on where it is now. */
#include "check.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

static void verify(uint64_t *words, size_t bytes)
{
    for (size_t page = 0; page < bytes / PAGE; page++)
        CHECK(words[page * PAGE / 8] == mix(page));
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    mycoram *far = mycoram_open(argv[1]);
    CHECK(far != NULL);
    size_t bytes = 32 * MIB;
    uint64_t *words = mycoram_map(far, bytes);
    CHECK(words != NULL);
    for (size_t page = 0; page < bytes / PAGE; page++)
        words[page * PAGE / 8] = mix(page);

    for (int round = 0; round < 3; round++) {
        void *room = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(room != MAP_FAILED);
        uint64_t *moved = mremap(words, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, room);
        CHECK(moved == room);
        verify(moved, bytes);
        CHECK_STATUS(mycoram_flush(words), MYCORAM_STATUS_NOT_MAPPED);
        CHECK_STATUS(mycoram_flush(moved), MYCORAM_STATUS_OK);
        CHECK_STATUS(mycoram_advise(moved + 1000, MIB, MYCORAM_ADVICE_WILL_NEED), MYCORAM_STATUS_OK);
        words = moved;
        for (size_t page = 0; page < bytes / PAGE; page++)
            words[page * PAGE / 8] = mix(page);
    }
    CHECK_STATUS(mycoram_unmap(words, bytes), MYCORAM_STATUS_OK);
    CHECK_STATUS(mycoram_close(far), MYCORAM_STATUS_OK);
    return 0;
}

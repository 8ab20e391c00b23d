/* munmap behind the library's back, and an end without any unmap: nothing hangs, nobody else is hurt. */
#include "check.h"
#include <sys/mman.h>

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    mycoram *far = mycoram_open(argv[1]);
    CHECK(far != NULL);
    size_t bytes = 16 * MIB;
    uint64_t *gone = mycoram_map(far, bytes), *kept = mycoram_map(far, bytes);
    CHECK(gone != NULL && kept != NULL);
    for (size_t page = 0; page < bytes / PAGE; page++)
        gone[page * PAGE / 8] = kept[page * PAGE / 8] = mix(page);
    CHECK(munmap(gone, bytes) == 0);
    /* Something else may be there now, and must stay. */
    unsigned char *other = mmap(gone, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(other == (unsigned char *)gone);
    memset(other, 9, bytes);
    for (size_t page = 0; page < bytes / PAGE; page++)
        CHECK(kept[page * PAGE / 8] == mix(page));
    for (size_t at = 0; at < bytes; at += PAGE)
        CHECK(other[at] == 9);
    return 0;
}

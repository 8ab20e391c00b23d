/* As many mappings as there may be, all in use at once; one more is refused, and room again after an unmap. */
#include "check.h"

enum { MOST = 16 };

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    mycoram *far = mycoram_open(argv[1]);
    CHECK(far != NULL);
    size_t bytes = 4 * MIB;
    uint64_t *words[MOST];
    for (size_t i = 0; i < MOST; i++) {
        words[i] = mycoram_map(far, bytes);
        CHECK(words[i] != NULL);
    }
    CHECK(mycoram_map(far, bytes) == NULL);
    CHECK(mycoram_last_status() == MYCORAM_STATUS_LIMIT);
    for (size_t page = 0; page < bytes / PAGE; page++)
        for (size_t i = 0; i < MOST; i++)
            words[i][page * PAGE / 8] = mix(i << 32 | page);
    for (size_t page = 0; page < bytes / PAGE; page++)
        for (size_t i = 0; i < MOST; i++)
            CHECK(words[i][page * PAGE / 8] == mix(i << 32 | page));
    CHECK_STATUS(mycoram_unmap(words[3], bytes), MYCORAM_STATUS_OK);
    words[3] = mycoram_map(far, bytes);
    CHECK(words[3] != NULL);
    CHECK(words[3][0] == 0);
    for (size_t i = 0; i < MOST; i++)
        CHECK_STATUS(mycoram_unmap(words[i], bytes), MYCORAM_STATUS_OK);
    CHECK_STATUS(mycoram_close(far), MYCORAM_STATUS_OK);
    return 0;
}

/* A memory node dies while pages are on it: what was on it raises SIGBUS, the rest reads as it was written. */
#include "check.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>

static sigjmp_buf back;

static void on_bus(int signal)
{
    (void)signal;
    siglongjmp(back, 1);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    mycoram *far = mycoram_open(argv[1]);
    CHECK(far != NULL);
    size_t bytes = 64 * MIB;
    uint64_t *words = mycoram_map(far, bytes);
    CHECK(words != NULL);
    size_t pages = bytes / PAGE, per_page = PAGE / sizeof *words;
    for (size_t page = 0; page < pages; page++)
        for (size_t i = 0; i < per_page; i++)
            words[page * per_page + i] = mix(page * per_page + i);
    CHECK_STATUS(mycoram_flush(words), MYCORAM_STATUS_OK);
    meet("filled");

    struct sigaction action = { .sa_handler = on_bus };
    CHECK(sigaction(SIGBUS, &action, NULL) == 0);
    volatile size_t lost = 0, whole = 0, first_lost = 0;
    for (volatile size_t page = 0; page < pages; page++) {
        if (sigsetjmp(back, 1) != 0) {
            if (lost == 0)
                first_lost = page;
            lost++;
            continue;
        }
        for (size_t i = 0; i < per_page; i++)
            CHECK(((volatile uint64_t *)words)[page * per_page + i] == mix(page * per_page + i));
        whole++;
    }
    printf("lost %zu whole %zu\n", lost, whole);
    CHECK(lost > 0 && whole > 0);

    /* A system call gets EFAULT for it. */
    int null = open("/dev/zero", O_RDONLY);
    CHECK(null >= 0);
    CHECK(read(null, (char *)words + first_lost * PAGE, 8) == -1 && errno == EFAULT);

    /* It stays lost, and the figures say how much of it there is. */
    if (sigsetjmp(back, 1) == 0) {
        (void)*(volatile uint64_t *)(words + first_lost * per_page);
        CHECK(!"a lost page was read");
    }
    mycoram_stats stats;
    CHECK_STATUS(mycoram_read_stats(words, &stats, sizeof stats), MYCORAM_STATUS_OK);
    CHECK(stats.lost_pages == lost);

    /* The rest goes on. */
    for (volatile size_t page = 0; page < pages; page++) {
        if (sigsetjmp(back, 1) != 0)
            continue;
        words[page * per_page] = page;
        CHECK(((volatile uint64_t *)words)[page * per_page] == page);
    }
    meet("done");
    CHECK_STATUS(mycoram_unmap(words, bytes), MYCORAM_STATUS_OK);
    CHECK_STATUS(mycoram_close(far), MYCORAM_STATUS_OK);
    return 0;
}

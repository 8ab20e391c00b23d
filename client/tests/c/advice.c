/* What advice and flush do, as the figures show it. */
#include "check.h"
#include <sys/mman.h>
#include <time.h>

static uint64_t *words;
static size_t bytes = 64 * MIB;

static mycoram_stats figures(void)
{
    mycoram_stats stats;
    CHECK_STATUS(mycoram_read_stats(words, &stats, sizeof stats), MYCORAM_STATUS_OK);
    return stats;
}

/* Reads a word of each page of a range and checks it. */
static void walk(size_t from, size_t to)
{
    for (size_t page = from; page < to; page++)
        CHECK(((volatile uint64_t *)words)[page * PAGE / 8] == mix(page));
}

/* Waits, within a bound, until the figures say so. */
#define AWAIT(condition)                                       \
    do {                                                       \
        for (int tries = 0; !(condition) && tries < 10000; tries++) \
            usleep(1000);                                      \
        CHECK(condition);                                      \
    } while (0)

/* How many pages of a range are here, as the kernel has it. */
static size_t pages_here(size_t from, size_t to)
{
    size_t count = 0;
    for (size_t page = from; page < to; page++) {
        unsigned char here = 0;
        CHECK(mincore((char *)words + page * PAGE, PAGE, &here) == 0);
        count += here & 1;
    }
    return count;
}

/* The first `count` neighbours of which none is here. */
static size_t missing_run(size_t pages, size_t count)
{
    size_t run = 0;
    for (size_t page = 0; page < pages; page++) {
        run = pages_here(page, page + 1) ? 0 : run + 1;
        if (run == count)
            return page + 1 - count;
    }
    CHECK(!"a run of missing pages");
    return 0;
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    mycoram *far = mycoram_open(argv[1]);
    CHECK(far != NULL);
    words = mycoram_map(far, bytes);
    CHECK(words != NULL);
    size_t pages = bytes / PAGE;
    for (size_t page = 0; page < pages; page++)
        words[page * PAGE / 8] = mix(page);

    /* In order, advised to be random: nothing is fetched ahead. */
    CHECK_STATUS(mycoram_advise(words, bytes, MYCORAM_ADVICE_RANDOM), MYCORAM_STATUS_OK);
    mycoram_stats before = figures();
    walk(0, pages);
    mycoram_stats after = figures();
    CHECK(after.prefetched_pages == before.prefetched_pages);
    CHECK(after.major_faults - before.major_faults > pages / 2);

    /* The same, advised to be in order: most of it is. */
    CHECK_STATUS(mycoram_advise(words, bytes, MYCORAM_ADVICE_SEQUENTIAL), MYCORAM_STATUS_OK);
    before = figures();
    walk(0, pages);
    after = figures();
    CHECK(after.prefetched_pages - before.prefetched_pages > pages / 2);
    CHECK(after.major_faults - before.major_faults < pages / 2);

    /* Wanted pages come by themselves, as far as there is room, and touching them asks no memory node. */
    CHECK_STATUS(mycoram_advise(words, bytes, MYCORAM_ADVICE_RANDOM), MYCORAM_STATUS_OK);
    size_t few = 16;
    size_t first = missing_run(pages, few);
    before = figures();
    CHECK_STATUS(mycoram_advise(words + first * PAGE / 8, few * PAGE, MYCORAM_ADVICE_WILL_NEED),
                 MYCORAM_STATUS_OK);
    AWAIT(figures().bytes_read - before.bytes_read >= few * PAGE);
    before = figures();
    walk(first, first + few);
    after = figures();
    CHECK(after.major_faults - before.major_faults <= few / 4);

    /* Written pages are written out by a flush, and then leave without another write. */
    size_t some = MIB / PAGE;
    for (size_t page = 0; page < some; page++)
        words[page * PAGE / 8 + 1] = ~mix(page);
    before = figures();
    CHECK_STATUS(mycoram_flush(words), MYCORAM_STATUS_OK);
    after = figures();
    CHECK(after.bytes_written - before.bytes_written >= MIB / 2);
    /* Not needed soon: they are the first to leave when room is needed for others. */
    CHECK_STATUS(mycoram_advise(words, MIB, MYCORAM_ADVICE_DONT_NEED), MYCORAM_STATUS_OK);
    walk(pages / 2, pages / 2 + 4 * some);
    AWAIT(pages_here(0, some) <= some / 4);
    after = figures();
    CHECK(after.clean_pages - before.clean_pages >= some / 2);
    before = figures();
    walk(0, some);
    after = figures();
    CHECK(after.faults - before.faults >= some / 2);
    /* What they hold is kept. */
    for (size_t page = 0; page < some; page++)
        CHECK(words[page * PAGE / 8] == mix(page) && words[page * PAGE / 8 + 1] == ~mix(page));

    CHECK_STATUS(mycoram_unmap(words, bytes), MYCORAM_STATUS_OK);
    CHECK_STATUS(mycoram_close(far), MYCORAM_STATUS_OK);
    return 0;
}

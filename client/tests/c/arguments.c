/* Every argument that is not possible: refused with its status and a sentence, and nothing else. */
#include "check.h"

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    CHECK(mycoram_abi_version() == MYCORAM_ABI_VERSION);
    CHECK(strlen(mycoram_version()) > 0);
    CHECK(mycoram_last_error()[0] == '\0');
    CHECK(mycoram_last_status() == MYCORAM_STATUS_OK);

    CHECK(mycoram_open(NULL) == NULL);
    CHECK(mycoram_last_status() == MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK(mycoram_open("myco://\xff") == NULL);
    CHECK(mycoram_last_status() == MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK(mycoram_open("myco://127.0.0.1:1") == NULL);
    CHECK(mycoram_last_status() == MYCORAM_STATUS_CONFIG);
    CHECK(strstr(mycoram_last_error(), "local=128MiB") != NULL);
    CHECK(mycoram_open("/nonexistent/far.toml") == NULL);
    CHECK(mycoram_last_status() == MYCORAM_STATUS_CONFIG);

    mycoram *far = mycoram_open(argv[1]);
    CHECK(far != NULL);
    CHECK(mycoram_last_error()[0] == '\0');

    CHECK(mycoram_map(NULL, PAGE) == NULL);
    CHECK(mycoram_last_status() == MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK(mycoram_map((mycoram *)(void *)&argc, PAGE) == NULL);
    CHECK(mycoram_last_status() == MYCORAM_STATUS_INVALID_HANDLE);
    CHECK(mycoram_map(far, 0) == NULL);
    CHECK(mycoram_last_status() == MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK(mycoram_map(far, (size_t)1 << 62) == NULL);
    CHECK(mycoram_last_status() == MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK(mycoram_map(far, SIZE_MAX) == NULL);
    CHECK(mycoram_last_status() == MYCORAM_STATUS_INVALID_ARGUMENT);
    /* Counted by the library, and more than the nodes have. */
    CHECK(mycoram_map(far, (size_t)1 << 40) == NULL);
    CHECK(mycoram_last_status() == MYCORAM_STATUS_NO_SPACE);
    CHECK(strlen(mycoram_last_error()) > 0);

    /* Not whole pages: rounded up. */
    size_t bytes = 8 * MIB + 1;
    char *memory = mycoram_map(far, bytes);
    CHECK(memory != NULL);
    CHECK((uintptr_t)memory % PAGE == 0);
    size_t whole = 8 * MIB + PAGE;
    for (size_t at = 0; at < whole; at += PAGE / 2)
        CHECK(memory[at] == 0);
    memory[whole - 1] = 7;

    CHECK_STATUS(mycoram_advise(NULL, 1, MYCORAM_ADVICE_WILL_NEED), MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK_STATUS(mycoram_advise(&argc, 1, MYCORAM_ADVICE_WILL_NEED), MYCORAM_STATUS_NOT_MAPPED);
    CHECK_STATUS(mycoram_advise(memory + whole, 1, MYCORAM_ADVICE_WILL_NEED), MYCORAM_STATUS_NOT_MAPPED);
    CHECK_STATUS(mycoram_advise(memory, whole + 1, MYCORAM_ADVICE_WILL_NEED), MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK_STATUS(mycoram_advise(memory + 1, SIZE_MAX, MYCORAM_ADVICE_WILL_NEED), MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK_STATUS(mycoram_advise(memory, PAGE, 99), MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK_STATUS(mycoram_advise(memory, PAGE, -1), MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK(strstr(mycoram_last_error(), "-1") != NULL);
    /* Unaligned is fine: the range is widened or narrowed to pages. */
    CHECK_STATUS(mycoram_advise(memory + 5, 1, MYCORAM_ADVICE_WILL_NEED), MYCORAM_STATUS_OK);
    CHECK_STATUS(mycoram_advise(memory + 5, 1, MYCORAM_ADVICE_DONT_NEED), MYCORAM_STATUS_OK);
    CHECK_STATUS(mycoram_advise(memory, 0, MYCORAM_ADVICE_NORMAL), MYCORAM_STATUS_OK);

    CHECK_STATUS(mycoram_flush(NULL), MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK_STATUS(mycoram_flush(&argc), MYCORAM_STATUS_NOT_MAPPED);
    CHECK_STATUS(mycoram_flush(memory + 12345), MYCORAM_STATUS_OK);

    struct {
        mycoram_stats stats;
        uint64_t guard;
    } figures = { .guard = 0x1122334455667788 };
    CHECK_STATUS(mycoram_read_stats(memory, NULL, sizeof figures.stats), MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK_STATUS(mycoram_read_stats(memory, &figures.stats, sizeof figures.stats), MYCORAM_STATUS_OK);
    CHECK(figures.stats.mapped_bytes == whole);
    CHECK(figures.guard == 0x1122334455667788);
    /* A program made for an older library knows less. */
    memset(&figures, 0xee, sizeof figures);
    CHECK_STATUS(mycoram_read_stats(memory, &figures.stats, sizeof(uint64_t)), MYCORAM_STATUS_OK);
    CHECK(figures.stats.mapped_bytes == whole);
    CHECK(figures.stats.local_budget_bytes == UINT64_C(0xeeeeeeeeeeeeeeee));
    /* A program made for a newer one knows more. */
    memset(&figures, 0xee, sizeof figures);
    CHECK_STATUS(mycoram_read_stats(memory, &figures.stats, sizeof figures), MYCORAM_STATUS_OK);
    CHECK(figures.guard == 0);

    /* A closed handle's mappings stay. */
    CHECK_STATUS(mycoram_close(NULL), MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK_STATUS(mycoram_close(far), MYCORAM_STATUS_OK);
    CHECK_STATUS(mycoram_close(far), MYCORAM_STATUS_INVALID_HANDLE);
    CHECK(mycoram_map(far, PAGE) == NULL);
    CHECK(mycoram_last_status() == MYCORAM_STATUS_INVALID_HANDLE);
    CHECK(memory[whole - 1] == 7);

    CHECK_STATUS(mycoram_unmap(NULL, whole), MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK_STATUS(mycoram_unmap(memory + PAGE, whole - PAGE), MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK_STATUS(mycoram_unmap(memory, PAGE), MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK_STATUS(mycoram_unmap(memory, SIZE_MAX), MYCORAM_STATUS_INVALID_ARGUMENT);
    CHECK(memory[whole - 1] == 7);
    CHECK_STATUS(mycoram_unmap(memory, bytes), MYCORAM_STATUS_OK);
    CHECK_STATUS(mycoram_unmap(memory, bytes), MYCORAM_STATUS_NOT_MAPPED);
    return 0;
}

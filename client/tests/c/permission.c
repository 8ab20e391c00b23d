/* A program that may not have a userfaultfd: told what to change, and that the daemon is another way. */
#include "check.h"

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    mycoram *far = mycoram_open(argv[1]);
    CHECK(far != NULL);
    CHECK(mycoram_map(far, MIB) == NULL);
    CHECK(mycoram_last_status() == MYCORAM_STATUS_PERMISSION);
    const char *ways[] = { "vm.unprivileged_userfaultfd", "CAP_SYS_PTRACE", "/dev/userfaultfd", "myco agent serve" };
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        CHECK(strstr(mycoram_last_error(), ways[i]) != NULL);
    CHECK_STATUS(mycoram_close(far), MYCORAM_STATUS_OK);
    return 0;
}

/* Maps, touches, says so, waits, and ends without unmapping anything. */
#include "check.h"

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    mycoram *far = mycoram_open(argv[1]);
    CHECK(far != NULL);
    char *memory = mycoram_map(far, 16 * MIB);
    CHECK(memory != NULL);
    memset(memory, 1, 16 * MIB);
    meet("mapped");
    return 0;
}

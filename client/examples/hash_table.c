/* A hash table far larger than local memory: insert, look up, verify.
 *
 *     cc -O2 hash_table.c $(pkg-config --cflags --libs mycoram) -o hash_table
 *     ./hash_table 'myco://127.0.0.1:7700?local=64MiB' 512
 *
 * The second argument is the table's size in MiB. The table is open addressing over one array; it
 * does not know where its memory is.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include <mycoram.h>

struct entry {
    uint64_t key; /* 0: free */
    uint64_t value;
};

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* The n-th key; never 0, never twice. */
static uint64_t key_of(uint64_t n)
{
    return n * 2 + 1;
}

/* The slot of `key`, or the free one where it belongs. `slots` is a power of two. */
static struct entry *find(struct entry *table, uint64_t slots, uint64_t key)
{
    uint64_t at = mix(key) & (slots - 1);
    while (table[at].key != 0 && table[at].key != key)
        at = (at + 1) & (slots - 1);
    return &table[at];
}

static int failed(const char *what)
{
    fprintf(stderr, "hash_table: %s: %s\n", what, mycoram_last_error());
    return 1;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: hash_table URI|CONFIG_FILE TABLE_MIB\n");
        return 2;
    }
    char *end;
    unsigned long mib = strtoul(argv[2], &end, 10);
    if (*end != '\0' || mib == 0 || (mib & (mib - 1)) != 0) {
        fprintf(stderr, "hash_table: the table's size is a power of two of MiB\n");
        return 2;
    }
    if (mycoram_abi_version() != MYCORAM_ABI_VERSION) {
        fprintf(stderr, "hash_table: built for another version of libmycoram\n");
        return 1;
    }

    mycoram *far = mycoram_open(argv[1]);
    if (far == NULL)
        return failed("open");
    size_t bytes = (size_t)mib << 20;
    struct entry *table = mycoram_map(far, bytes);
    if (table == NULL)
        return failed("map");
    if (mycoram_advise(table, bytes, MYCORAM_ADVICE_RANDOM) != MYCORAM_STATUS_OK)
        return failed("advise");

    uint64_t slots = bytes / sizeof(struct entry);
    uint64_t keys = slots / 2;
    for (uint64_t n = 0; n < keys; n++) {
        struct entry *entry = find(table, slots, key_of(n));
        entry->key = key_of(n);
        entry->value = mix(n);
    }
    printf("%" PRIu64 " keys in a table of %lu MiB\n", keys, mib);

    uint64_t wrong = 0;
    for (uint64_t n = 0; n < keys; n++) {
        struct entry *entry = find(table, slots, key_of(n));
        wrong += entry->key != key_of(n) || entry->value != mix(n);
    }
    for (uint64_t n = keys; n < keys + keys / 16; n++)
        wrong += find(table, slots, key_of(n))->key != 0;

    mycoram_stats stats;
    if (mycoram_read_stats(table, &stats, sizeof stats) != MYCORAM_STATUS_OK)
        return failed("figures");
    printf("%" PRIu64 " faults, p50 %.1f us, p99 %.1f us; %" PRIu64 " MiB of %" PRIu64 " MiB resident\n",
           stats.faults, (double)stats.fault_p50_ns / 1000, (double)stats.fault_p99_ns / 1000,
           stats.resident_bytes >> 20, stats.mapped_bytes >> 20);

    if (mycoram_unmap(table, bytes) != MYCORAM_STATUS_OK)
        return failed("unmap");
    if (mycoram_close(far) != MYCORAM_STATUS_OK)
        return failed("close");
    if (wrong != 0) {
        printf("fail: %" PRIu64 " look-ups were wrong\n", wrong);
        return 1;
    }
    printf("pass: every look-up was right\n");
    return 0;
}

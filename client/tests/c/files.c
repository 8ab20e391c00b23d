/* System calls on far memory: read, pread, O_DIRECT, write, pipes, while other pages push these out. */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>

static volatile char *pressure;
static size_t pressure_bytes;
static atomic_bool stop;

static void *push(void *unused)
{
    (void)unused;
    uint64_t at = 1;
    while (!stop) {
        at = mix(at);
        pressure[at % pressure_bytes] += 1;
        usleep(500);
    }
    return NULL;
}

static void fill(unsigned char *bytes, size_t from, size_t len)
{
    for (size_t i = 0; i < len; i += 8) {
        uint64_t word = mix((from + i) / 8);
        memcpy(bytes + i, &word, 8);
    }
}

static void verify(const unsigned char *bytes, size_t from, size_t len)
{
    for (size_t i = 0; i < len; i += 8) {
        uint64_t word;
        memcpy(&word, bytes + i, 8);
        CHECK(word == mix((from + i) / 8));
    }
}

static void read_all(int fd, unsigned char *into, size_t len, size_t piece)
{
    for (size_t at = 0; at < len;) {
        size_t want = len - at < piece ? len - at : piece;
        ssize_t got = pread(fd, into + at, want, (off_t)at);
        CHECK(got > 0);
        at += (size_t)got;
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 3); /* URI DIRECTORY_ON_A_DISK */
    mycoram *far = mycoram_open(argv[1]);
    CHECK(far != NULL);
    size_t bytes = 12 * MIB;
    unsigned char *memory = mycoram_map(far, 2 * bytes);
    CHECK(memory != NULL);
    pressure = (volatile char *)memory + bytes;
    pressure_bytes = bytes;

    char path[512];
    snprintf(path, sizeof path, "%s/data", argv[2]);
    int fd = open(path, O_CREAT | O_TRUNC | O_RDWR, 0600);
    CHECK(fd >= 0);
    unsigned char *piece = malloc(MIB);
    CHECK(piece != NULL);
    for (size_t at = 0; at < bytes; at += MIB) {
        fill(piece, at, MIB);
        CHECK(pwrite(fd, piece, MIB, (off_t)at) == (ssize_t)MIB);
    }
    CHECK(fsync(fd) == 0);

    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, push, NULL) == 0);

    /* pread into far memory, more than the budget, in pieces that cross pages. */
    read_all(fd, memory, bytes, 100000);
    verify(memory, 0, bytes);

    /* O_DIRECT into far memory, straight from the disk. */
    int direct = open(path, O_RDONLY | O_DIRECT);
    CHECK(direct >= 0);
    for (int round = 0; round < 2; round++) {
        memset(memory, round, bytes);
        read_all(direct, memory, bytes, 64 * 1024);
        verify(memory, 0, bytes);
    }

    CHECK(close(direct) == 0);

    /* write from far memory, buffered and direct, and read it back elsewhere. */
    char copy_path[512];
    snprintf(copy_path, sizeof copy_path, "%s/copy", argv[2]);
    int copy = open(copy_path, O_CREAT | O_TRUNC | O_RDWR, 0600);
    CHECK(copy >= 0);
    for (size_t at = 0; at < bytes; at += MIB)
        CHECK(pwrite(copy, memory + at, MIB, (off_t)at) == (ssize_t)MIB);
    int direct_out = open(copy_path, O_WRONLY | O_DIRECT);
    CHECK(direct_out >= 0);
    for (size_t at = 0; at < bytes; at += 3 * MIB)
        CHECK(pwrite(direct_out, memory + at, MIB, (off_t)at) == (ssize_t)MIB);
    CHECK(close(direct_out) == 0);
    for (size_t at = 0; at < bytes; at += MIB) {
        CHECK(pread(copy, piece, MIB, (off_t)at) == (ssize_t)MIB);
        verify(piece, at, MIB);
    }

    /* Through a pipe, byte counts that are no pages. */
    int ends[2];
    CHECK(pipe(ends) == 0);
    for (size_t at = 0; at + 5000 < bytes; at += 997 * PAGE + 24) {
        CHECK(write(ends[1], memory + at, 5000) == 5000);
        CHECK(read(ends[0], piece, 5000) == 5000);
        CHECK(memcmp(piece, memory + at, 5000) == 0);
    }

    stop = true;
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(unlink(path) == 0 && unlink(copy_path) == 0);
    CHECK_STATUS(mycoram_unmap(memory, 2 * bytes), MYCORAM_STATUS_OK);
    CHECK_STATUS(mycoram_close(far), MYCORAM_STATUS_OK);
    return 0;
}

/* fork: the child has no mapping and no library, the parent goes on as before. */
#include "check.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>

static uint64_t *words;
static size_t count;
static atomic_bool stop;
static atomic_ulong rounds;

/* Keeps pages coming and going while the others fork. */
static void *reader(void *unused)
{
    (void)unused;
    uint64_t at = 0;
    while (!stop) {
        at = mix(at);
        size_t place = at % count;
        CHECK(words[place] == mix(place));
        rounds++;
    }
    return NULL;
}

static int in_child(void (*body)(void))
{
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        body();
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

static void touch(void)
{
    volatile uint64_t *word = words;
    (void)*word;
}

static void write_far(void)
{
    volatile uint64_t *word = words + count / 2;
    *word = 1;
}

static void call(void)
{
    if (mycoram_flush(words) != MYCORAM_STATUS_FORKED)
        _exit(1);
    if (strstr(mycoram_last_error(), "fork") == NULL)
        _exit(2);
    if (mycoram_open("myco://127.0.0.1:1?local=8MiB") != NULL)
        _exit(3);
    if (mycoram_unmap(words, count * 8) != MYCORAM_STATUS_FORKED)
        _exit(4);
}

static void leave(void)
{
    exit(0); /* with handlers and destructors, which have nothing to tear down here */
}

static void run_other(void)
{
    execl("/bin/true", "true", (char *)NULL);
    _exit(127);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    mycoram *far = mycoram_open(argv[1]);
    CHECK(far != NULL);
    size_t bytes = 32 * MIB;
    words = mycoram_map(far, bytes);
    CHECK(words != NULL);
    count = bytes / sizeof *words;
    for (size_t i = 0; i < count; i++)
        words[i] = mix(i);

    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, reader, NULL) == 0);
    for (int round = 0; round < 10; round++) {
        int status = in_child(touch);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
        status = in_child(write_far);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
        status = in_child(call);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        status = in_child(leave);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        status = in_child(run_other);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    unsigned long before = rounds;
    while (rounds < before + 1000)
        usleep(1000);
    stop = true;
    CHECK(pthread_join(thread, NULL) == 0);

    for (size_t i = 0; i < count; i++)
        CHECK(words[i] == mix(i));
    CHECK_STATUS(mycoram_flush(words), MYCORAM_STATUS_OK);
    CHECK_STATUS(mycoram_unmap(words, bytes), MYCORAM_STATUS_OK);
    CHECK_STATUS(mycoram_close(far), MYCORAM_STATUS_OK);
    return 0;
}

/* Threads hammer pages that they share, each its own words, with signals flying; every read is the last
 * write. A signal handler never runs on a thread of the library: those are named myco-... and block all. */
#include "check.h"
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/time.h>

enum { THREADS = 4, WRITES = 60000 };

static uint64_t *words;
static size_t count;
static atomic_ulong signals, strangers;

static void on_alarm(int signal)
{
    (void)signal;
    char name[16];
    if (prctl(PR_GET_NAME, name) == 0 && strncmp(name, "myco", 4) == 0)
        strangers++;
    signals++;
}

/* A number from a thread's status file, in base 16. */
static uint64_t status_of(const char *thread, const char *key)
{
    char path[300], line[256];
    snprintf(path, sizeof path, "/proc/self/task/%s/status", thread);
    FILE *file = fopen(path, "r");
    CHECK(file != NULL);
    uint64_t value = 0;
    while (fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, key, strlen(key)) == 0)
            value = strtoull(line + strlen(key), NULL, 16);
    fclose(file);
    return value;
}

/* Looks at every thread of the process: `program` of them are the program's, the others the library's.
 * A new thread has its maker's name for a moment. */
static int threads_are_known(int program)
{
    /* SIGKILL and SIGSTOP cannot be blocked, and 32 and 33 are the C library's own. */
    const uint64_t all = ~(UINT64_C(1) << 8 | UINT64_C(1) << 18 | UINT64_C(3) << 31);
    DIR *threads = opendir("/proc/self/task");
    CHECK(threads != NULL);
    int ours = 0, theirs = 0;
    for (struct dirent *thread; (thread = readdir(threads)) != NULL;) {
        if (thread->d_name[0] == '.')
            continue;
        char path[300], name[64] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", thread->d_name);
        FILE *file = fopen(path, "r");
        CHECK(file != NULL && fgets(name, sizeof name, file) != NULL);
        fclose(file);
        if (strncmp(name, "myco", 4) == 0) {
            theirs++;
            if ((status_of(thread->d_name, "SigBlk:") & all) != all) {
                fprintf(stderr, "signals reach thread %s", name);
                exit(1);
            }
        } else {
            ours++;
        }
    }
    closedir(threads);
    return theirs > 0 && ours == program;
}

static void *worker(void *argument)
{
    size_t id = (size_t)(uintptr_t)argument;
    uint32_t *written = calloc(count / THREADS, sizeof *written);
    CHECK(written != NULL);
    uint64_t state = id;
    for (uint32_t n = 1; n <= WRITES; n++) {
        state = mix(state);
        size_t mine = state % (count / THREADS);
        uint64_t *word = &words[mine * THREADS + id];
        CHECK(*word == (written[mine] ? mix(written[mine] * THREADS + id) : 0));
        *word = mix((uint64_t)n * THREADS + id);
        written[mine] = n;
    }
    for (size_t mine = 0; mine < count / THREADS; mine++)
        CHECK(words[mine * THREADS + id] == (written[mine] ? mix((uint64_t)written[mine] * THREADS + id) : 0));
    free(written);
    return NULL;
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

    struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval every = { .it_interval = { .tv_usec = 1000 }, .it_value = { .tv_usec = 1000 } };
    CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0);

    for (int tries = 0; !threads_are_known(1); tries++) {
        CHECK(tries < 1000);
        usleep(10000);
    }
    pthread_t threads[THREADS];
    for (size_t id = 0; id < THREADS; id++)
        CHECK(pthread_create(&threads[id], NULL, worker, (void *)(uintptr_t)id) == 0);
    for (size_t id = 0; id < THREADS; id++)
        CHECK(pthread_join(threads[id], NULL) == 0);
    every.it_interval.tv_usec = every.it_value.tv_usec = 0;
    CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0);
    CHECK(signals > 0);
    CHECK(strangers == 0);

    CHECK_STATUS(mycoram_unmap(words, bytes), MYCORAM_STATUS_OK);
    CHECK_STATUS(mycoram_close(far), MYCORAM_STATUS_OK);
    return 0;
}

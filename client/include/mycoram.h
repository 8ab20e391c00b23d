/* Mycoram: far memory for C programs. Build with `pkg-config --cflags --libs mycoram`.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Every function may be called from any thread. Those that can fail keep a sentence for their thread:
 * mycoram_last_error(). After fork, the child may call nothing here but that, until it execs.
 */

#ifndef MYCORAM_H
#define MYCORAM_H

/* Made by cbindgen from client/src: change it there. */

#include <stddef.h>
#include <stdint.h>

/*
 Version of this interface. A program made for one number runs with every library that gives the same.
 */
#define MYCORAM_ABI_VERSION 1

/*
 What became of a call. The sentence that belongs to it is given by `mycoram_last_error`.
 */
typedef enum mycoram_status {
  /*
   It was done.
   */
  MYCORAM_STATUS_OK = 0,
  /*
   An argument is not possible: NULL, out of range, not aligned, no advice.
   */
  MYCORAM_STATUS_INVALID_ARGUMENT = 1,
  /*
   The handle is not open (any more).
   */
  MYCORAM_STATUS_INVALID_HANDLE = 2,
  /*
   The address is not in a mapping made by this library (any more).
   */
  MYCORAM_STATUS_NOT_MAPPED = 3,
  /*
   The configuration is not possible or cannot be read.
   */
  MYCORAM_STATUS_CONFIG = 4,
  /*
   A memory node or the agent's socket cannot be reached.
   */
  MYCORAM_STATUS_UNREACHABLE = 5,
  /*
   The memory nodes have no room for it.
   */
  MYCORAM_STATUS_NO_SPACE = 6,
  /*
   A right is missing; the sentence says which.
   */
  MYCORAM_STATUS_PERMISSION = 7,
  /*
   Pages are lost: no memory node has them any more.
   */
  MYCORAM_STATUS_LOST = 8,
  /*
   A forked child may not use its parent's far memory.
   */
  MYCORAM_STATUS_FORKED = 9,
  /*
   A bound of the library or of the agent was reached.
   */
  MYCORAM_STATUS_LIMIT = 10,
  /*
   The operating system refused.
   */
  MYCORAM_STATUS_SYSTEM = 11,
  /*
   The memory node or the agent refused, or does not speak this version.
   */
  MYCORAM_STATUS_REFUSED = 12,
  /*
   A bug in the library. What it was is in the sentence; nothing else can be said of the state.
   */
  MYCORAM_STATUS_BUG = 13,
} mycoram_status;

/*
 What is going to happen to a range. Advice never changes what the memory holds.
 */
typedef enum mycoram_advice {
  /*
   No particular pattern: the agent finds patterns by itself. The state of a new mapping.
   */
  MYCORAM_ADVICE_NORMAL = 0,
  /*
   The whole mapping is read in order: prefetch further ahead.
   */
  MYCORAM_ADVICE_SEQUENTIAL = 1,
  /*
   The whole mapping is read in no order: do not prefetch.
   */
  MYCORAM_ADVICE_RANDOM = 2,
  /*
   These pages are needed soon: bring them in now, as far as the free part of the budget goes.
   */
  MYCORAM_ADVICE_WILL_NEED = 3,
  /*
   These pages are not needed soon: they are the first to leave when room is needed. What they hold is
   kept (unlike `madvise(MADV_DONTNEED)`, which throws it away).
   */
  MYCORAM_ADVICE_DONT_NEED = 4,
} mycoram_advice;

/*
 Opened far memory. Not an address: only this library knows what it stands for.
 */
typedef struct mycoram mycoram;

/*
 How a mapping has fared. All counts only grow, except those of pages and bytes held now.
 The same struct as C's `mycoram_stats`: it may grow at its end, never change before it.
 */
typedef struct mycoram_stats {
  /*
   Size of the mapping, bytes.
   */
  uint64_t mapped_bytes;
  /*
   How much of it may be local, bytes.
   */
  uint64_t local_budget_bytes;
  /*
   How much of it is local now, bytes.
   */
  uint64_t resident_bytes;
  /*
   Accesses that the agent had to serve.
   */
  uint64_t faults;
  /*
   Of those, how many waited for a memory node. The others were first touches, pages that were still
   leaving, and pages already on their way.
   */
  uint64_t major_faults;
  /*
   Pages that were asked for and brought in before the program touched them.
   */
  uint64_t prefetched_pages;
  /*
   Of those, how many it asked for while they were on their way. Later touches cost nothing and are
   not counted.
   */
  uint64_t prefetch_hits;
  /*
   Pages that left local memory.
   */
  uint64_t evicted_pages;
  /*
   Of those, how many left without a write, because their remote copy was current.
   */
  uint64_t clean_pages;
  /*
   Pages that no memory node has any more. An access to one raises SIGBUS.
   */
  uint64_t lost_pages;
  /*
   Bytes read from memory nodes.
   */
  uint64_t bytes_read;
  /*
   Bytes written to memory nodes.
   */
  uint64_t bytes_written;
  /*
   Fault service, from the kernel's event to the wake-up: median, nanoseconds.
   */
  uint64_t fault_p50_ns;
  /*
   The same, 99th percentile.
   */
  uint64_t fault_p99_ns;
  /*
   The same, 99.9th percentile.
   */
  uint64_t fault_p999_ns;
} mycoram_stats;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 The version of the interface that the loaded library has. Compare with MYCORAM_ABI_VERSION.
 Cannot fail.
 */
uint32_t mycoram_abi_version(void);

/*
 The library's own version, such as "0.1.0". Never NULL; valid for ever. Cannot fail.
 */
const char *mycoram_version(void);

/*
 Opens far memory. `place` is a URI
 (`myco://HOST:PORT[,HOST:PORT...]?local=128MiB[&transport=tcp|verbs][&extent=16MiB][&workers=N][&seal_key=FILE][&metrics=IP:PORT]` or
 `myco+agent:///run/mycoram-agent.sock?local=128MiB`) or the path of a configuration file.
 Asks every memory node, or the daemon, whether it is there: may block for a few seconds.

 Returns a handle for mycoram_map and mycoram_close, or NULL: INVALID_ARGUMENT (NULL, not UTF-8),
 CONFIG, UNREACHABLE, REFUSED, LIMIT (1024 handles), FORKED, SYSTEM.

 # Safety
 `place` is NULL or a terminated string.
 */
struct mycoram *mycoram_open(const char *place);

/*
 Closes a handle. Mappings made with it stay until mycoram_unmap, as a file's do.

 OK, INVALID_ARGUMENT (NULL), INVALID_HANDLE (closed before, or never one), FORKED.
 */
enum mycoram_status mycoram_close(struct mycoram *handle);

/*
 Maps `bytes` bytes of far memory, rounded up to whole pages of 4096, all zero. Memory nodes set the
 room aside at once; local memory is taken as pages are touched, up to the handle's budget for
 each mapping. Any thread may use the memory, and so may system calls.

 A page that no memory node has any more raises SIGBUS where it is touched (EFAULT from a system call).
 After fork the child does not have the mapping. mremap may move it as a whole.

 Returns its address, a multiple of 4096, or NULL: INVALID_ARGUMENT (0 bytes, NULL, more than 16 TiB),
 INVALID_HANDLE, NO_SPACE, UNREACHABLE, PERMISSION (userfaultfd; the sentence says what to change),
 LIMIT (16 mappings), REFUSED, FORKED, SYSTEM.
 */
void *mycoram_map(struct mycoram *handle,
                  size_t bytes);

/*
 Unmaps a whole mapping and gives its remote memory back. `addr` is its start and `bytes` its size, as
 given to mycoram_map (or rounded up to whole pages). Waits for other calls on it to end.

 OK, INVALID_ARGUMENT (NULL, not the whole mapping: nothing is unmapped), NOT_MAPPED, FORKED. With SYSTEM
 it is unmapped, and something of it could not be given back.
 */
enum mycoram_status mycoram_unmap(void *addr,
                                  size_t bytes);

/*
 Says how `bytes` bytes at `addr` are going to be used; `advice` is one of mycoram_advice. Never
 changes what the memory holds. WILL_NEED takes every page that the range touches, as far as the free part
 of the budget goes; DONT_NEED those that lie wholly inside; NORMAL, SEQUENTIAL and RANDOM take the whole mapping.

 OK, INVALID_ARGUMENT (NULL, no such advice, range past the mapping's end), NOT_MAPPED, LOST, FORKED,
 SYSTEM.
 */
enum mycoram_status mycoram_advise(void *addr,
                                   size_t bytes,
                                   int advice);

/*
 Waits until all that was written to the mapping at `addr` before the call has a copy on its memory
 node. What other threads write meanwhile may or may not be in it.

 OK, INVALID_ARGUMENT (NULL), NOT_MAPPED, LOST (a memory node is gone), FORKED, SYSTEM.
 */
enum mycoram_status mycoram_flush(void *addr);

/*
 Writes figures of the mapping at `addr` to `stats`. `stats_bytes` is sizeof(mycoram_stats) as the program
 knows it: a library that knows more figures writes only these, one that knows fewer writes 0 for the rest.

 OK, INVALID_ARGUMENT (NULL), NOT_MAPPED, FORKED, SYSTEM.

 # Safety
 `stats` is NULL or points to `stats_bytes` writable bytes.
 */
enum mycoram_status mycoram_read_stats(const void *addr,
                                       struct mycoram_stats *stats,
                                       size_t stats_bytes);

/*
 Why the calling thread's last call of this library failed, in one English sentence without a line
 break; empty if it did not fail. Never NULL. Valid until the thread's next call. Cannot fail.
 */
const char *mycoram_last_error(void);

/*
 The status of the calling thread's last call of this library, for those that return a pointer.
 Cannot fail.
 */
enum mycoram_status mycoram_last_status(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MYCORAM_H */

/* Kill at every instruction: a child writes and reads under single step, and after each instruction successors of both
 * ends recover on a copy of the region, which is exactly the memory that a SIGKILL there would leave.
 *
 * The child notes what it is about to do and what it has done; the copy must agree with one of the two:
 *   first message left  = acknowledged   (none lost, none twice)
 *   first not seen      = handed out     (what may have been seen says `redelivered`)
 *   after the last one  = written        (a batch whole or not at all), and every message whole. */
#include "ring.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CAPACITY = 4096, POOL = 4096, BATCH = 3, MORE = 4 };
static const mc_shape shape = {CAPACITY, POOL};
static const mc_ways ways; /* nobody sleeps */

typedef struct { volatile uint64_t begun, done; } step;
typedef struct { step written, handed, acknowledged; } ledger;

static uint32_t length_of(uint64_t number) {
  static const uint32_t lengths[] = {8, 61, 1016, 1500, 24, 700, 1017, 9};
  return lengths[number % 8];
}

static void fill(uint8_t *message, uint64_t number) {
  memset(message, (int)(number * 31 + 7) & 0xff, length_of(number));
  memcpy(message, &number, sizeof number);
}

static bool whole(const uint8_t *message, int64_t length, uint64_t number) {
  static uint8_t expected[2000];
  fill(expected, number);
  return length == length_of(number) && memcmp(message, expected, (size_t)length) == 0;
}

static void child(void *region, ledger *l, uint64_t messages) {
  static mc_writer w;
  static mc_reader r;
  static uint8_t buffer[BATCH * 2000];
  if (mc_writer_join(&w, region, shape, 0, POOL, ways) || mc_reader_join(&r, region, shape, 0, POOL, ways)) abort();
  for (uint64_t written = 0, read = 0, round = 0; read < messages; round++) {
    uint64_t count = round % 3 ? 1 : BATCH;
    uint32_t lengths[BATCH];
    uint8_t *at = buffer;
    for (uint64_t i = 0; i < count; i++) {
      fill(at, written + i);
      at += lengths[i] = length_of(written + i);
    }
    l->written.begun = written + count;
    int64_t n = count == 1 ? mc_write(&w, buffer, lengths[0]) : mc_write_many(&w, buffer, lengths, count);
    if (count == 1) n = n == MC_OK;
    written += (uint64_t)n;
    l->written.begun = l->written.done = written;
    for (int reads = 0; reads < 2 && (round % 5 || (uint64_t)n < count); reads++) {
      l->acknowledged.begun = read;
      l->handed.begun = read + 1;
      n = mc_read(&r, buffer, sizeof buffer);
      l->acknowledged.done = read;
      if (n >= 0) read++;
      l->handed.begun = l->handed.done = read;
    }
  }
  _exit(0);
}

static bool within(uint64_t value, step s) { return value == s.done || value == s.begun; }

static const char *recover(const uint8_t *region, const ledger *l, uint64_t size) {
  static mc_writer w;
  static mc_reader r;
  static uint8_t buffer[2000], *copy;
  if (!copy) copy = aligned_alloc(MC_PAGE, size);
  memcpy(copy, region, size);
  if (mc_writer_join(&w, copy, shape, 0, POOL, ways)) return "the writer's successor cannot join";
  if (mc_reader_join(&r, copy, shape, 0, POOL, ways)) return "the reader's successor cannot join";
  uint64_t first = l->acknowledged.done, unseen, end, more = 0;
  int64_t n = mc_read(&r, buffer, sizeof buffer);
  if (n >= 0) memcpy(&first, buffer, sizeof first);
  else first = l->written.done; /* nothing left: all was acknowledged, or nothing was written */
  if (!within(first, l->acknowledged)) return "a message was lost, or comes twice";
  for (unseen = end = first; n >= 0; end++) {
    if (!whole(buffer, n, end)) return "a message is not whole";
    unseen += r.redelivered;
    while (end - first < 2 && more < MORE) { /* the writer's successor goes on between the reads */
      static uint8_t message[2000];
      uint64_t number = (l->written.done == l->written.begun || w.state) ? l->written.done + more : UINT64_MAX;
      if (number == UINT64_MAX) break;
      fill(message, number);
      if (mc_write(&w, message, length_of(number))) break;
      more++;
    }
    n = mc_read(&r, buffer, sizeof buffer);
  }
  if (n != MC_EMPTY) return "the reader's successor meets a violation";
  if (w.state) return "the writer's successor meets a violation";
  static uint64_t last_done, last_end; /* a batch is published at once, as far as there was room */
  end -= more;
  if (l->written.done == last_done && last_end > last_done && end != last_end) return "a batch was published in parts";
  last_done = l->written.done, last_end = end;
  if (end < l->written.done || end > l->written.begun) return "the writes that were published are not those that were made";
  if (!within(unseen, l->handed)) return "a message that was handed out does not say redelivered, or another one does";
  return NULL;
}

int main(int argc, char **argv) {
  uint64_t messages = argc > 1 ? strtoull(argv[1], NULL, 10) : 60, size = mc_region_size(CAPACITY, POOL);
  void *region = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ledger *l = mmap(NULL, MC_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (region == MAP_FAILED || l == MAP_FAILED) return perror("mmap"), 2;
  mc_region_init(region, CAPACITY, POOL);
  pid_t pid = fork();
  if (pid < 0) return perror("fork"), 2;
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
    raise(SIGSTOP);
    child(region, l, messages);
  }
  int status;
  long steps = 0;
  waitpid(pid, &status, 0);
  while (!WIFEXITED(status)) {
    if (WIFSIGNALED(status)) return printf("the child died of signal %d\n", WTERMSIG(status)), 2;
    if (ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL)) return perror("ptrace"), 2;
    waitpid(pid, &status, 0);
    const char *wrong = recover(region, l, size);
    if (wrong) {
      kill(pid, SIGKILL);
      return printf("killed at instruction %ld (write %lu, read %lu): %s\n", steps, (unsigned long)l->written.begun,
                    (unsigned long)l->handed.begun, wrong), 1;
    }
    steps++;
  }
  if (WEXITSTATUS(status)) return printf("the child failed\n"), 2;
  printf("%ld instructions, %lu messages\n", steps, (unsigned long)messages);
  return 0;
}

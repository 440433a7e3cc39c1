/* The ring without Python: ping-pong of 64 bytes between two pinned processes, awake and asleep. Prints one JSON object.
 *
 *   cc -std=c11 -O3 -D_GNU_SOURCE native/bench_ring.c native/ring.c -o bench_ring && ./bench_ring [rounds] [wake rounds]
 */
#include "ring.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 64 };
static const uint64_t CAPACITY = 1 << 18, POOL = 1 << 22;

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu % (int)sysconf(_SC_NPROCESSORS_ONLN), &set);
  sched_setaffinity(0, sizeof set, &set); /* where that is not allowed, the figures say so by their spread */
}

static void join(mc_writer *w, mc_reader *r, void *base, unsigned side, uint64_t spin_ns) {
  mc_ways ways = {.spin_ns = spin_ns, .kind = MC_FUTEX};
  ways.bell[MC_FUTEX] = mc_bell_futex();
  mc_shape shape = {CAPACITY, POOL};
  if (mc_writer_join(w, base, shape, side, POOL, ways) || mc_reader_join(r, base, shape, side ^ 1, POOL, ways)) abort();
}

static void receive(mc_reader *r, char *buffer) {
  int64_t n;
  while ((n = mc_read(r, buffer, SIZE)) == MC_EMPTY) mc_reader_wait(r, -1);
  if (n != SIZE) abort();
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Microseconds one way: the median of half a round trip. Whoever writes waits `idle_us` before, so that its reader falls
 * asleep; the peer says in its answer how long it waited. */
static double ping_pong(int rounds, uint64_t spin_ns, useconds_t idle_us) {
  uint64_t size = mc_region_size(CAPACITY, POOL);
  void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) abort();
  mc_region_init(base, CAPACITY, POOL);
  static mc_writer w;
  static mc_reader r;
  char buffer[SIZE] = {0};
  pid_t peer = fork();
  if (peer < 0) abort();
  if (peer == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pin(1);
    join(&w, &r, base, 1, spin_ns);
    for (;;) {
      receive(&r, buffer);
      if (idle_us) {
        double held = -now_us();
        usleep(idle_us);
        held += now_us();
        memcpy(buffer, &held, sizeof held);
      }
      mc_write(&w, buffer, SIZE);
    }
  }
  pin(0);
  join(&w, &r, base, 0, spin_ns);
  double *times = malloc(sizeof *times * (size_t)rounds);
  if (!times) abort();
  for (int i = -rounds / 10; i < rounds; i++) {
    if (idle_us) usleep(idle_us);
    double start = now_us();
    mc_write(&w, buffer, SIZE);
    receive(&r, buffer);
    double end = now_us(), held;
    memcpy(&held, buffer, sizeof held);
    if (i >= 0) times[i] = (end - start - held) / 2;
  }
  kill(peer, SIGKILL);
  waitpid(peer, NULL, 0);
  qsort(times, (size_t)rounds, sizeof *times, by_value);
  double median = times[rounds / 2];
  free(times);
  munmap(base, size);
  return median;
}

int main(int argc, char **argv) {
  int rounds = argc > 1 ? atoi(argv[1]) : 200000, wakes = argc > 2 ? atoi(argv[2]) : 2000;
  if (rounds < 10 || wakes < 10) return fprintf(stderr, "usage: %s [rounds >= 10] [wake rounds >= 10]\n", argv[0]), 2;
  double awake = ping_pong(rounds, 20000, 0), asleep = ping_pong(wakes, 0, 100);
  printf("{\"c_ring_64B_p50_us\": %.4f, \"c_ring_wake_64B_p50_us\": %.4f}\n", awake, asleep);
  return 0;
}

/* Cost of a sample: bench_match SERIES RULES_PER_SERIES SAMPLES [shuffle]
 *
 * Windows of 15; a quarter of the rules each on the newest value, mean, stddev and median; about 2 % of them fire. Build
 * as the wheel does (cc -O3 -ffp-contract=off native/bench_match.c native/match*.c -lm), count instructions with
 * valgrind --tool=callgrind where clocks lie. */
#define _GNU_SOURCE
#include "match.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

static uint64_t state = 88172645463325252u;

static double dice(void) { /* in [0, 1) */
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return (double)(state >> 11) * 0x1p-53;
}

static double bell(void) { return (dice() + dice() + dice() + dice() - 2) * sqrt(3); }

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int main(int argc, char **argv) {
  if (argc < 4) return fprintf(stderr, "usage: bench_match SERIES RULES_PER_SERIES SAMPLES [shuffle]\n"), 2;
  uint32_t series = (uint32_t)atoi(argv[1]), each = (uint32_t)atoi(argv[2]), batch = 8192;
  size_t samples = (size_t)atoll(argv[3]);
  static const uint32_t made[] = {MATCH_LAST, MATCH_MEAN, MATCH_STDDEV, MATCH_QUANTILE};
  static const double middle[] = {50, 50, 10, 50}, wide[] = {10, 2.6, 1.9, 3.2};
  match_engine *e = match_new(1 << 20, 0);
  for (uint32_t i = 0; i < series; i++) match_open_series(e, 30000);
  double start = now(), slowest = 0;
  for (uint32_t i = 0; i < series; i++)
    for (uint32_t k = 0; k < each; k++) {
      uint32_t type = k % 4;
      match_term t = {.threshold = middle[type] + wide[type] * (1.7 + 1.2 * dice()), .source = i, .compare = MATCH_ABOVE,
                      .view = {.function = made[type], .samples = type ? 15 : 0, .rank = type == 3 ? 500000 : 0}};
      match_rule r = {.terms = &t, .count = 1, .clears = MATCH_NEVER};
      double before = k % 16 ? 0 : now();
      if (match_add(e, &r) < 0) return 1;
      if (before && now() - before > slowest) slowest = now() - before;
    }
  printf("add: %.0f ns a rule, slowest of every 16th %.0f us\n", (now() - start) * 1e9 / ((double)series * each), slowest * 1e6);
  uint32_t *ids = malloc(batch * sizeof *ids);
  double *values = malloc(batch * sizeof *values), spent = 0, from = 0;
  int64_t *times = malloc(batch * sizeof *times), *clocks = calloc(series, sizeof *clocks);
  match_edge *edges = malloc(batch * sizeof *edges);
  size_t fired = 0, measured = 0, warm = (size_t)series * 16;
  match_counters c0 = {0};
  for (size_t done = 0; done < warm + samples; done += batch) {
    for (uint32_t i = 0; i < batch; i++) {
      ids[i] = argc > 4 ? (uint32_t)(dice() * series) : (uint32_t)((done + i) % series);
      values[i] = 50 + 10 * bell(), times[i] = clocks[ids[i]] += 1000;
    }
    if (done < warm) c0 = match_count(e), fired = 0, measured = 0, spent = 0;
    from = now();
    for (size_t taken = 0; taken < batch;) {
      taken += match_push(e, ids + taken, values + taken, times + taken, batch - taken, batch);
      fired += match_take(e, edges, batch);
    }
    match_settle(e);
    spent += now() - from, measured += batch;
  }
  match_counters c = match_count(e);
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  printf("%.1f ns a sample (%.1f M a second), %.3f edges a sample, %.3f crossings, %.4f exact\n", spent * 1e9 / (double)measured,
         (double)measured / spent / 1e6, (double)fired / (double)measured,
         (double)(c.crossings - c0.crossings) / (double)measured, (double)(c.exact - c0.exact) / (double)measured);
  from = now();
  int64_t size = match_save(e, NULL, 0);
  uint8_t *image = malloc((size_t)size);
  match_save(e, image, (size_t)size);
  double saved = now() - from;
  printf("%llu rules, %.1f bytes a rule, peak %ld MB, snapshot %.0f MB in %.0f ms", (unsigned long long)c.rules,
         (double)c.bytes / (double)c.rules, usage.ru_maxrss / 1024, (double)size / 1e6, saved * 1e3);
  match_free(e);
  from = now();
  e = match_load(image, (size_t)size);
  printf(", restore %.0f ms\n", (now() - from) * 1e3);
  return e ? 0 : 1;
}

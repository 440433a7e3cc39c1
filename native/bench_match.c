/* Cost of a sample, as JSON: bench_match SERIES RULES_PER_SERIES SAMPLES [LIKENESS], or bench_match group MEMBERS RULES
 * SAMPLES. LIKENESS: correlation of a sample with the one before of its series; else they are independent.
 *
 * The six types of rules of MAVIS in equal parts: mean, median, standard deviation and variance of 15 samples, maximum
 * and minimum of the newest; about 2 % of them hold. Series come in any order. Build as the wheel does (cc -O3
 * -ffp-contract=off native/bench_match.c native/match*.c -lm); where clocks lie, count instructions with valgrind
 * --tool=callgrind --toggle-collect=measured. */
#define _GNU_SOURCE
#include "match.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BATCH = 8192, TYPES = 6 };

static uint64_t state = 88172645463325252u;

static double dice(void) { /* in [0, 1) */
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return (double)(state >> 11) * 0x1p-53;
}

static double bell(void) { return (dice() + dice() + dice() + dice() - 2) * sqrt(3); }

static double now(void) { /* of this process alone */
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static match_term term(uint32_t series, uint32_t type) { /* true for about 2 % of the samples */
  static const uint32_t made[TYPES] = {MATCH_MEAN, MATCH_QUANTILE, MATCH_STDDEV, MATCH_VARIANCE, MATCH_LAST, MATCH_LAST};
  static const double middle[TYPES] = {50, 50, 10, 100, 50, 50}, wide[TYPES] = {2.6, 3.2, 1.9, 40, 10, -10};
  match_term t = {.threshold = middle[type] + wide[type] * (1.7 + 1.2 * dice()), .source = series,
                  .compare = type == 5 ? MATCH_BELOW : MATCH_ABOVE, .view = {.function = made[type]}};
  if (made[type] == MATCH_QUANTILE) t.view.rank = 500000;
  if (made[type] != MATCH_LAST) t.view.samples = 15;
  return t;
}

typedef struct load { /* samples to come */
  uint32_t series, ids[BATCH];
  double values[BATCH];
  int64_t times[BATCH], *clocks;
  double likeness, *last;
} load;

static void draw(load *l) {
  for (uint32_t i = 0; i < BATCH; i++) {
    l->ids[i] = (uint32_t)(dice() * l->series);
    double *last = l->last + l->ids[i];
    *last = l->likeness * *last + sqrt(1 - l->likeness * l->likeness) * bell();
    l->values[i] = 50 + 10 * *last;
    l->times[i] = l->clocks[l->ids[i]] += 1000;
  }
}

static double spent, edges, samples; /* since the last of them was set to 0 */

static inline void push(match_engine *e, const load *l) {
  for (size_t done = 0; done < BATCH;) {
    done += match_push(e, l->ids + done, l->values + done, l->times + done, BATCH - done, BATCH);
    edges += (double)match_take(e).count;
  }
  match_settle(e);
  samples += BATCH;
}

__attribute__((noinline)) static void measured(match_engine *e, const load *l) {
  double start = now();
  push(e, l);
  spent += now() - start;
}

static int local(uint32_t series, uint32_t each, double wanted, double likeness) {
  size_t rules = (size_t)series * each, kept = 0;
  double *inserts = malloc((rules / 64 + 1) * sizeof *inserts), start = now();
  load l = {.series = series, .clocks = calloc(series, sizeof(int64_t)), .likeness = likeness,
            .last = calloc(series, sizeof(double))};
  match_engine *e = match_new(1 << 20, 0);
  for (uint32_t i = 0; i < series; i++) match_open_series(e, 30000);
  for (size_t i = 0; i < rules; i++) {
    match_term t = term((uint32_t)(i / each), (uint32_t)(i % each) % TYPES);
    match_rule r = {.terms = &t, .count = 1, .clears = MATCH_NEVER};
    double before = i % 64 ? 0 : now();
    if (match_add(e, &r) < 0) return 1;
    if (before != 0) inserts[kept++] = now() - before;
  }
  double adding = now() - start;
  qsort(inserts, kept, sizeof *inserts, ascending);
  while (samples < 17.0 * series) draw(&l), push(e, &l); /* windows are full */
  match_counters before = match_count(e);
  for (samples = spent = edges = 0; samples < wanted;) draw(&l), measured(e, &l);
  match_counters c = match_count(e);
  start = now();
  int64_t size = match_save(e, NULL, 0);
  uint8_t *image = malloc((size_t)size);
  match_save(e, image, (size_t)size);
  double saving = now() - start;
  match_free(e);
  start = now();
  e = match_load(image, (size_t)size);
  printf("{\"samples_s\": %.0f, \"ns\": %.2f, \"edges\": %.4f, \"crossings\": %.4f, \"exact\": %.4f, \"rules\": %zu, "
         "\"bytes_per_rule\": %.2f, \"add_ns\": %.0f, \"insert_p99_us\": %.2f, \"save_s\": %.4f, \"load_s\": %.4f}\n",
         samples / spent, spent * 1e9 / samples, edges / samples, (double)(c.crossings - before.crossings) / samples,
         (double)(c.exact - before.exact) / samples, rules, (double)c.bytes / (double)rules, adding * 1e9 / (double)rules,
         inserts[kept * 99 / 100] * 1e6, saving, now() - start);
  return e ? 0 : 1;
}

static int group(uint32_t members, uint32_t rules, double wanted) { /* as many members at each instant as there are */
  load l = {.series = members, .clocks = calloc(members, sizeof(int64_t))};
  match_engine *e = match_new(1 << 20, 0);
  match_view newest = {.function = MATCH_LAST};
  uint32_t made = (uint32_t)match_open_group(e, &newest);
  for (uint32_t i = 0; i < members; i++)
    if (match_join(e, made, (uint32_t)match_open_series(e, 30000), INT64_MIN)) return 1;
  for (uint32_t i = 0; i < rules; i++) { /* members at least k of which are above 62 */
    match_term t = {.threshold = 62 + 4 * dice(), .source = made, .of_group = 1, .compare = MATCH_ABOVE, .quorum = 1,
                    .view = {.function = MATCH_LARGEST, .rank = 1 + members / 10}};
    match_rule r = {.terms = &t, .count = 1, .clears = MATCH_NEVER};
    if (match_add(e, &r) < 0) return 1;
  }
  uint32_t next = 0;
  for (int64_t instant = 0; samples < wanted + 2 * members;) {
    if (samples < 2 * members) spent = 0;
    for (uint32_t i = 0; i < BATCH; i++) {
      if (next == members) next = 0, instant += 1000;
      l.ids[i] = next++, l.values[i] = 50 + 10 * bell(), l.times[i] = instant;
    }
    measured(e, &l);
  }
  printf("{\"ns\": %.2f}\n", spent * 1e9 / (samples - 2 * members));
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 5 && !strcmp(argv[1], "group"))
    return group((uint32_t)atoi(argv[2]), (uint32_t)atoi(argv[3]), atof(argv[4]));
  if (argc == 4 || argc == 5)
    return local((uint32_t)atoi(argv[1]), (uint32_t)atoi(argv[2]), atof(argv[3]), argc == 5 ? atof(argv[4]) : 0);
  return fprintf(stderr, "usage: bench_match SERIES RULES SAMPLES [LIKENESS], or: bench_match group MEMBERS RULES SAMPLES\n"), 2;
}

/* What is known of a set of values: sums without rounding, a variance with a bound of its error, order statistics. */
#include "match_bag.h"

#include <stdlib.h>
#include <string.h>

/* ---- order statistics */

static uint32_t upper(const double *x, uint32_t n, double v) { /* how many are <= v */
  uint32_t low = 0;
  while (n) {
    uint32_t half = n >> 1;
    if (x[low + half] <= v) low += half + 1, n -= half + 1;
    else n = half;
  }
  return low;
}

static double nth(double *x, int64_t n, int64_t k) { /* Hoare's, in place */
  int64_t l = 0, r = n - 1;
  while (l < r) {
    double p = x[l + ((r - l) >> 1)];
    int64_t i = l, j = r;
    while (i <= j) {
      while (x[i] < p) i++;
      while (x[j] > p) j--;
      if (i <= j) {
        double t = x[i];
        x[i++] = x[j], x[j--] = t;
      }
    }
    if (k <= j) r = j;
    else if (k >= i) l = i;
    else break;
  }
  return x[k];
}

static uint32_t copy(double *to, values v) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < v.count; i++) to[n] = v.first[i], n += v.first[i] == v.first[i];
  for (uint32_t i = 0; i < v.rest; i++) to[n] = v.second[i], n += v.second[i] == v.second[i];
  return n;
}

/* The k-th if it is the neighbour of the guard: one value that came or went does not move it further. */
static bool neighbour(const stream *s, values v, int64_t k, double *value) {
  bool up = k == s->below_high, down = k + 1 == s->below_low;
  double low = s->low, high = s->high, most = -INFINITY, least = INFINITY;
  if (low > high || !(up | down)) return false; /* it has no guard, and did not count */
  for (int part = 0; part < 2; part++) {
    const double *x = part ? v.second : v.first;
    uint32_t n = part ? v.rest : v.count;
    for (uint32_t i = 0; i < n; i++) {
      double below = x[i] < low ? x[i] : -INFINITY, above = x[i] >= high ? x[i] : INFINITY;
      most = below > most ? below : most, least = above < least ? above : least;
    }
  }
  *value = up ? least : most;
  return true;
}

void stream_count(stream *s, values v) {
  uint32_t a = 0, b = 0;
  double low = s->low, high = s->high;
  for (uint32_t i = 0; i < v.count; i++) a += v.first[i] < low, b += v.first[i] < high;
  for (uint32_t i = 0; i < v.rest; i++) a += v.second[i] < low, b += v.second[i] < high;
  s->below_low = a, s->below_high = b;
}

static void order_move(bag *b, double x, uint32_t by) {
  for (uint32_t i = 0; i < b->orders; i++) {
    stream *s = b->streams + i;
    s->below_low += x < s->low ? by : 0;
    s->below_high += x < s->high ? by : 0;
  }
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

bool bag_reserve(bag *b, size_t count) {
  if (!b->sorted || count <= b->sorted->room) return true;
  if (count > UINT32_MAX / 2) return false;
  size_t room = count + count / 2;
  sorted *grown = realloc(b->sorted, sizeof *grown + room * sizeof *grown->values);
  if (!grown) return false;
  b->sorted = grown, grown->room = (uint32_t)room;
  return true;
}

bool bag_sort(match_engine *e, bag *b, values v) {
  if (b->sorted) return true;
  size_t room = (size_t)v.count + v.rest + 16;
  sorted *made = malloc(sizeof *made + room * sizeof *made->values);
  if (!made) return false;
  uint32_t n = copy(made->values, v);
  qsort(made->values, n, sizeof *made->values, ascending);
  b->sorted = made, made->room = (uint32_t)room;
  (void)e;
  return true;
}

/* ---- values come and go */

static void m2_move(bag *b, double x, double old_mean, double new_mean, double sign) {
  double term = (x - old_mean) * (x - new_mean), size = fabs(x) + fabs(old_mean) + fabs(new_mean);
  b->m2 += sign * term;
  if (b->doubt > 0) b->doubt += (8 * ULP * size) * (8 * ULP * size); /* of values that are all alike nothing is lost */
  b->doubt += 8 * ULP * (fabs(x - old_mean) * size + fabs(b->m2) + fabs(term)) + (x != old_mean ? FLOOR : 0);
}

void bag_enter(bag *b, double x) {
  if (b->sorted) {
    double *all = b->sorted->values;
    uint32_t at = upper(all, b->count, x);
    memmove(all + at + 1, all + at, (b->count - at) * sizeof x);
    all[at] = x;
  } else {
    order_move(b, x, 1);
  }
  b->count++;
  if (UNLIKELY(isinf(x))) {
    b->infinite++, b->reached = NONE;
    return;
  }
  if (!(b->needs & NEEDS_SUM)) return;
  uint32_t n = summed(b);
  double before = n > 1 ? b->sum / (n - 1) : 0;
  sum_add(b, x);
  if (b->needs & NEEDS_M2) m2_move(b, x, n > 1 ? before : x, b->sum / n, 1);
}

void bag_leave(bag *b, double x) {
  if (b->sorted) {
    double *all = b->sorted->values;
    uint32_t at = upper(all, b->count, x) - 1;
    memmove(all + at, all + at + 1, (b->count - at - 1) * sizeof x);
  } else {
    order_move(b, x, UINT32_MAX); /* one less */
  }
  b->count--;
  if (UNLIKELY(isinf(x))) {
    b->infinite--, b->reached = NONE;
    return;
  }
  if (!(b->needs & NEEDS_SUM)) return;
  uint32_t n = summed(b);
  if (!n) {
    b->sum = b->lost = b->m2 = b->doubt = 0;
    b->inexact = 0;
    return;
  }
  double before = b->sum / (n + 1);
  sum_add(b, -x);
  if (b->needs & NEEDS_M2) m2_move(b, x, before, b->sum / n, -1);
}

void bag_exchange(bag *b, double old, double x) {
  if (isinf(old) || isinf(x)) {
    bag_leave(b, old);
    bag_enter(b, x);
    return;
  }
  if (b->sorted) {
    double *all = b->sorted->values;
    uint32_t from = upper(all, b->count, old) - 1, to = upper(all, b->count, x);
    if (to > from) {
      to--;
      memmove(all + from, all + from + 1, (to - from) * sizeof x);
    } else {
      memmove(all + to + 1, all + to, (from - to) * sizeof x);
    }
    all[to] = x;
  } else {
    for (uint32_t i = 0; i < b->orders; i++) order_swap(b->streams + i, old, x);
  }
  if (b->needs & NEEDS_SUM) sums_swap(b, old, x);
}

void bag_clear(bag *b) {
  b->sum = b->lost = b->m2 = b->doubt = 0;
  b->count = b->infinite = 0;
  b->inexact = 0, b->reached = NONE;
  for (uint32_t i = 0; i < b->width; i++) b->streams[i].below_low = b->streams[i].below_high = 0;
}

static void sums_count(bag *b, values v) {
  b->sum = b->lost = 0;
  b->inexact = 0;
  for (int part = 0; part < 2; part++) {
    const double *x = part ? v.second : v.first;
    uint32_t n = part ? v.rest : v.count;
    for (uint32_t i = 0; i < n; i++)
      if (isfinite(x[i])) sum_add(b, x[i]);
  }
  if (!isfinite(b->sum)) b->inexact = 1;
  b->m2 = 0, b->doubt = INFINITY; /* computed when it is asked for */
}

void bag_count(bag *b, values v) {
  uint32_t count = 0, infinite = 0;
  for (int part = 0; part < 2; part++) {
    const double *x = part ? v.second : v.first;
    uint32_t n = part ? v.rest : v.count;
    for (uint32_t i = 0; i < n; i++) count += x[i] == x[i], infinite += (uint32_t)(isinf(x[i]) != 0);
  }
  b->count = count, b->infinite = infinite, b->reached = NONE;
  sums_count(b, v);
  if (count == infinite) b->doubt = 0;
  for (uint32_t i = 0; i < b->orders; i++) stream_count(b->streams + i, v);
}

uint8_t bag_needs(uint32_t function) {
  switch (function) {
  case MATCH_MEAN: case MATCH_SUM: return NEEDS_SUM;
  case MATCH_VARIANCE: case MATCH_STDDEV: return NEEDS_SUM | NEEDS_M2;
  case MATCH_RATE: return NEEDS_GAIN | NEEDS_ENDS;
  case MATCH_DELTA: return NEEDS_ENDS;
  default: return 0;
  }
}

/* Whether it is all the same to the stream which of the values from `least` to `most` it is. */
static inline bool same(const stream *s, double least, double most) {
  if (s->fed) return false; /* a group adds it up */
  return (least >= lowest(s) && most < highest(s)) || stream_rank(s, least) == stream_rank(s, most);
}

static bool ratio(match_engine *e, bag *b, stream *s, const values *v, double by, double *value) {
  if (UNLIKELY(b->inexact)) {
    e->counters.exact++;
    *value = exact_mean(*v, by);
    sums_count(b, *v); /* perhaps what was too large has left */
    return isfinite(*value);
  }
  *value = b->sum / by;
  double by_most = fabs(*value) * 4 * ULP + 0x1p-1070;
  if (LIKELY(b->lost == 0 || same(s, *value - by_most, *value + by_most))) return true;
  *value = exact_ratio(b->sum, b->lost, 1, by);
  return true;
}

static bool spread(match_engine *e, bag *b, stream *s, const values *v, uint32_t n, double *value) {
  bool root = s->function == MATCH_STDDEV;
  double over = n - 1, least = (b->m2 - b->doubt) / over * (1 - 8 * ULP), most = (b->m2 + b->doubt) / over * (1 + 8 * ULP);
  if (b->doubt == 0 && b->m2 == 0 && !b->inexact) return *value = 0, true; /* nothing in it ever differed */
  if (LIKELY(!b->inexact && least > 0x1p-900 && most < 0x1p900)) {
    *value = b->m2 / over;
    if (root) *value = sqrt(*value), least = sqrt(least) * (1 - 8 * ULP), most = sqrt(most) * (1 + 8 * ULP);
    if (same(s, least, most)) return true;
  }
  e->counters.exact++;
  if (b->inexact) sums_count(b, *v); /* or the means that m2 is updated with would be wrong */
  *value = exact_spread(*v, n, root);
  b->m2 = (root ? *value * *value : *value) * over;
  b->doubt = isfinite(b->m2) && b->m2 > 0x1p-900 ? 16 * ULP * b->m2 : b->m2 == 0 ? 0 : INFINITY;
  return isfinite(*value);
}

bool bag_value(match_engine *e, bag *b, stream *s, values v, double *value) {
  uint32_t n = summed(b);
  switch (s->function) {
  case MATCH_COUNT: return *value = b->count, true;
  case MATCH_MEAN: return n && ratio(e, b, s, &v, n, value);
  case MATCH_SUM: return n && ratio(e, b, s, &v, 1, value);
  case MATCH_VARIANCE: case MATCH_STDDEV: return n > 1 && spread(e, b, s, &v, n, value);
  default: break;
  }
  if (!b->count) return false;
  int64_t k = wanted(s, b->count);
  if (k < 0 || k >= b->count) return *value = k < 0 ? -INFINITY : INFINITY, true; /* there are not so many */
  if (b->sorted) return *value = b->sorted->values[k], true;
  e->counters.exact++;
  s->slow = (uint16_t)(s->slow + 8);
  if (!neighbour(s, v, k, value)) *value = nth(e->scratch, copy(e->scratch, v), k);
  if (s->slow > 400) bag_sort(e, b, v);
  return true;
}

/* ---- what sums may be */

static double above(double least) { /* a sum that is greater makes a value of at least that */
  if (isinf(least)) return least;
  return fabs(least) < FLOOR ? (least > 0 ? 2 * FLOOR : -0x1p-1074) : least + fabs(least) * 8 * ULP;
}

static double under(double most) { /* a sum that is less makes a value that is less */
  if (isinf(most)) return most;
  return fabs(most) < FLOOR ? (most > 0 ? 0x1p-1074 : -2 * FLOOR) : most - fabs(most) * 8 * ULP;
}

void bag_reach(const bag *b, stream *s) {
  double low = lowest(s), high = highest(s), n = summed(b), over = n - 1;
  s->below_low = b->infinite ? 0 : b->count; /* infinite values are left out of n */
  switch (s->function) {
  case MATCH_SUM: n = 1; /* fall through */
  case MATCH_MEAN: s->low = above(low * n), s->high = under(high * n); return;
  case MATCH_STDDEV:
    low = low <= 0 ? low : low > 0x1p-480 && low < 0x1p450 ? low * low : INFINITY;
    high = high <= 0 ? high : high < 0x1p-480 ? 0x1p-1074 : high < 0x1p450 ? high * high : isinf(high) ? high : 0; /* fall through */
  case MATCH_VARIANCE:
    s->low = low <= 0 ? -INFINITY : above(low * over), s->high = high <= 0 ? -INFINITY : under(high * over);
    return;
  default: return; /* a count is known as it is */
  }
}

void bag_unguard(bag *b) {
  b->reached = NONE;
  b->low = b->m2_low = INFINITY, b->high = b->m2_high = -INFINITY;
}

void bag_guard(bag *b) {
  bool holds = bag_is_plain(b) && !(b->needs & NEEDS_ENDS);
  b->low = b->m2_low = -INFINITY, b->high = b->m2_high = INFINITY;
  if (!(b->needs & NEEDS_M2)) b->m2 = b->doubt = 0;
  for (uint32_t i = b->orders; i < b->width; i++) {
    const stream *s = b->streams + i;
    bool squares = s->function == MATCH_VARIANCE || s->function == MATCH_STDDEV;
    double *low = squares ? &b->m2_low : &b->low, *high = squares ? &b->m2_high : &b->high;
    if (is_summed(s->function)) holds &= s->below_low == b->count;
    if (s->function == MATCH_COUNT) {
      holds &= b->count >= s->low && b->count < s->high;
    } else {
      if (s->low > *low) *low = s->low;
      if (s->high < *high) *high = s->high;
    }
  }
  b->reached = holds ? b->count : NONE;
}

/* What almost every sample needs of a bag: inline, and without a division where one can do without. */
#ifndef MCHANNEL_MATCH_BAG_H
#define MCHANNEL_MATCH_BAG_H

#include "match_core.h"

#define ULP 0x1p-53
#define FLOOR 0x1p-960 /* what squares of tiny differences lose to underflow is less than a millionth of it */

static inline uint32_t summed(const bag *b) { return b->count - b->infinite; } /* the finite ones */

static inline int64_t wanted(const stream *s, uint32_t n) { /* its index among n sorted values; outside: unknown */
  switch (s->function) {
  case MATCH_SMALLEST: return (int64_t)s->rank - 1;
  case MATCH_LARGEST: return (int64_t)n - s->rank;
  default: {
    int64_t k = (int64_t)(((uint64_t)s->rank * n + 999999) / 1000000) - 1;
    return k < 0 ? 0 : k;
  }
  }
}

static inline bool bag_is_plain(const bag *b) { return !(b->infinite | b->inexact); }

static inline bool order_stays(const bag *b, stream *s) {
  int64_t k = wanted(s, b->count);
  if (UNLIKELY(b->sorted != NULL))
    return k >= 0 && k < b->count && b->sorted->values[k] >= s->low && b->sorted->values[k] < s->high;
  if ((s->below_low > k) | (s->below_high <= k)) return false;
  s->slow -= s->slow > 0;
  return true;
}

/* Whether the value of the stream is certainly still inside its guard. */
static inline bool bag_stays(const bag *b, stream *s, bool plain) {
  if (is_summed(s->function)) { /* of a spread, the sum of squares */
    bool plainer = s->function <= MATCH_SUM;
    double sum = plainer ? b->sum : b->m2, doubt = plainer ? 0 : b->doubt;
    return (sum - doubt > s->low) & (sum + doubt < s->high) & (s->below_low == b->count) & plain;
  }
  if (is_order(s->function)) return order_stays(b, s);
  return s->function == MATCH_COUNT && b->count >= s->low && b->count < s->high;
}

/* The same of all streams of a window but order statistics. */
static inline bool bag_stays_all(const bag *b) {
  return b->reached == b->count && b->sum > b->low && b->sum < b->high && b->m2 - b->doubt > b->m2_low &&
         b->m2 + b->doubt < b->m2_high;
}

static inline void order_swap(stream *s, double old, double x) {
  s->below_low += (uint32_t)(x < s->low) - (uint32_t)(old < s->low);
  s->below_high += (uint32_t)(x < s->high) - (uint32_t)(old < s->high);
}

static inline void sum_add(bag *b, double x) {
  if (UNLIKELY(!exact_add(&b->sum, &b->lost, x))) b->inexact = 1, b->reached = NONE;
}

/* One finite value takes the place of another. */
static inline void sums_swap(bag *b, double old, double x) {
  if (x == old) return;
  double before = b->sum, rest, by = two_sum(x, -old, &rest);
  sum_add(b, by);
  if (rest != 0) sum_add(b, rest);
  if (!(b->needs & NEEDS_M2)) return;
  double share = 1.0 / summed(b), term = by * ((x + old) - (before + b->sum) * share);
  double size = fabs(x) + fabs(old) + (fabs(before) + fabs(b->sum)) * share;
  b->m2 += term;
  b->doubt += 8 * ULP * (fabs(by) * size + fabs(b->m2) + fabs(term)) + FLOOR;
}

#endif

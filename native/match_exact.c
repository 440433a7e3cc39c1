/* Numbers that are rounded once. A `partials` is a sum of doubles that do not overlap, smallest first, and is exact:
 * Shewchuk, Adaptive Precision Floating-Point Arithmetic and Fast Robust Geometric Predicates, 1997. */
#include "match_core.h"

#include <string.h>

enum { MOST = 128 };
typedef struct partials { double p[MOST]; int count; } partials;

static void compress(partials *s) { /* to at most 40: a double has 53 bits, and all of them range over 2100 */
  double q = s->p[s->count - 1], g[MOST];
  int bottom = s->count - 1, top = 0;
  for (int i = s->count - 2; i >= 0; i--) {
    double rest;
    q = two_sum(q, s->p[i], &rest);
    if (rest != 0) g[bottom--] = q, q = rest;
  }
  g[bottom] = q;
  for (int i = bottom + 1; i < s->count; i++) {
    double rest;
    q = two_sum(g[i], q, &rest);
    if (rest != 0) s->p[top++] = rest;
  }
  s->p[top++] = q;
  s->count = top;
}

static void partials_add(partials *s, double x) {
  int kept = 0;
  for (int i = 0; i < s->count; i++) {
    double rest, high = two_sum(s->p[i], x, &rest);
    if (rest != 0) s->p[kept++] = rest;
    x = high;
  }
  if (x != 0) s->p[kept++] = x;
  s->count = kept;
  if (s->count == MOST) compress(s);
}

static void add_product(partials *s, double a, double b, double times) {
  double high = a * b, low = fma(a, b, -high), one = high * times, two = low * times;
  partials_add(s, fma(low, times, -two)), partials_add(s, two);
  partials_add(s, fma(high, times, -one)), partials_add(s, one);
}

static double rounded(const partials *s) {
  int i = s->count;
  if (!i) return 0;
  double high = s->p[--i], rest = 0;
  while (i && rest == 0) high = two_sum(high, s->p[--i], &rest);
  if (i && ((rest < 0 && s->p[i - 1] < 0) || (rest > 0 && s->p[i - 1] > 0))) { /* half way, but for what is left */
    double twice = rest * 2, up = high + twice;
    if (twice == up - high) high = up;
  }
  return high;
}

static bool even(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return !(bits & 1);
}

/* s / by, by a whole number */
static double divided(const partials *s, double by) {
  double q = rounded(s) / by;
  if (!isfinite(q)) return q;
  for (int guard = 0; guard < 4; guard++) {
    partials r = *s;
    add_product(&r, q, by, -1);
    double sign = rounded(&r);
    if (sign == 0) return q;
    double next = nextafter(q, sign > 0 ? INFINITY : -INFINITY);
    r = *s;
    for (int i = 0; i < r.count; i++) r.p[i] *= 2;
    add_product(&r, q, by, -1), add_product(&r, next, by, -1); /* 2 * (s - by * the middle of both) */
    double beyond = rounded(&r) * (sign > 0 ? 1 : -1);
    if (beyond < 0) return q;
    if (beyond == 0) return even(q) ? q : next;
    q = next;
  }
  return q;
}

static double side(const partials *s, double by, double c, double h) { /* sign of s / by - (c + h)^2 */
  partials r = *s;
  add_product(&r, c, c, -by), add_product(&r, c, 2 * h, -by), add_product(&r, h, h, -by);
  return rounded(&r);
}

/* the root of s / by */
static double rooted(const partials *s, double by) {
  double c = sqrt(rounded(s) / by);
  if (!(c > 0)) return 0;
  for (int guard = 0; guard < 4; guard++) {
    double up = nextafter(c, INFINITY), down = nextafter(c, 0);
    double above = side(s, by, c, (up - c) / 2), below = side(s, by, c, (down - c) / 2);
    if (above > 0 || (above == 0 && !even(c))) c = up;
    else if (below < 0 || (below == 0 && !even(c))) c = down;
    else break;
  }
  return c;
}

static int largest(const values *v) { /* the exponent of the largest finite value */
  double most = 0;
  int exponent = 0;
  for (int part = 0; part < 2; part++) {
    const double *x = part ? v->second : v->first;
    uint32_t n = part ? v->rest : v->count;
    for (uint32_t i = 0; i < n; i++)
      if (fabs(x[i]) > most && isfinite(x[i])) most = fabs(x[i]);
  }
  frexp(most, &exponent);
  return exponent;
}

static double mean_of(const values *v, double by, int down) {
  partials s = {.count = 0};
  for (int part = 0; part < 2; part++) {
    const double *x = part ? v->second : v->first;
    uint32_t n = part ? v->rest : v->count;
    for (uint32_t i = 0; i < n; i++)
      if (isfinite(x[i])) partials_add(&s, ldexp(x[i], -down));
  }
  return ldexp(divided(&s, by), down);
}

double exact_mean(values v, double by) { /* a partial sum may overflow where the result does not */
  double mean = mean_of(&v, by, 0);
  return isfinite(mean) ? mean : mean_of(&v, by, 64);
}

double exact_spread(values v, uint32_t n, bool root) {
  int down = largest(&v);
  partials sum = {.count = 0}, s = {.count = 0};
  for (int part = 0; part < 2; part++) {
    const double *x = part ? v.second : v.first;
    uint32_t count = part ? v.rest : v.count;
    for (uint32_t i = 0; i < count; i++) {
      if (!isfinite(x[i])) continue;
      double y = ldexp(x[i], -down);
      partials_add(&sum, y);
      add_product(&s, y, y, n);
    }
  }
  for (int i = 0; i < sum.count; i++)
    for (int j = 0; j < sum.count; j++) add_product(&s, sum.p[i], sum.p[j], -1);
  double by = (double)n * (n - 1.0);
  return root ? ldexp(rooted(&s, by), down) : ldexp(divided(&s, by), 2 * down);
}

double exact_ratio(double sum, double lost, double times, double by) {
  partials s = {.count = 0};
  add_product(&s, lost, times, 1), add_product(&s, sum, times, 1);
  return divided(&s, by);
}

static double rate_of(const double *x, size_t count, double times, double by, int down) {
  partials s = {.count = 0};
  for (size_t i = 1; i < count; i++) {
    add_product(&s, ldexp(x[i], -down), times, 1);
    if (x[i] >= x[i - 1]) add_product(&s, ldexp(x[i - 1], -down), times, -1);
  }
  return ldexp(divided(&s, by), down);
}

double exact_rate(const double *x, size_t count, double times, double by) {
  double rate = rate_of(x, count, times, by, 0);
  return isfinite(rate) ? rate : rate_of(x, count, times, by, 128);
}

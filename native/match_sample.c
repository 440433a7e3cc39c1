/* What a sample does to the windows of its series: all that happens millions of times a second. */
#include "match_bag.h"

/* What is the value of one of its streams? */
static void look(match_engine *e, const series *s, window *w, stream *st, int64_t at) {
  double value = NAN;
  uint32_t from = st->at;
  bool fresh = st->fresh, known = window_value(e, s, w, st, &value);
  stream_see(e, st, known ? MATCH_TRUE : MATCH_UNKNOWN, value, at);
  stream_moved(&w->bag, st, window_values(s, w), known, fresh || from != st->at);
}

static void see_from(match_engine *e, const series *s, window *w, uint32_t first, int64_t at) {
  bool is_ready = window_ready(s, w), plain = bag_is_plain(&w->bag);
  for (uint32_t i = first; i < w->bag.width; i++)
    if (!is_ready || !bag_stays(&w->bag, w->bag.streams + i, plain)) look(e, s, w, w->bag.streams + i, at);
  bag_guard(&w->bag);
}

static void see(match_engine *e, const series *s, window *w, int64_t at) {
  bag *b = &w->bag;
  if (!window_ready(s, w) || !bag_stays_all(b)) {
    see_from(e, s, w, 0, at);
    return;
  }
  for (uint32_t i = 0; i < b->orders; i++)
    if (!order_stays(b, b->streams + i)) look(e, s, w, b->streams + i, at);
}

/* In a full window `x` takes the place of `old`: what nearly every sample does. */
static inline void slide(match_engine *e, const series *s, window *w, double old, double x, int64_t at) {
  bag *b = &w->bag;
  if (UNLIKELY(b->sorted || !isfinite(x - old))) {
    bag_exchange(b, old, x);
    see_from(e, s, w, 0, at);
    return;
  }
  if (b->needs & NEEDS_SUM) sums_swap(b, old, x);
  for (uint32_t i = 0; i < b->orders; i++) {
    order_swap(b->streams + i, old, x);
    if (UNLIKELY(!order_stays(b, b->streams + i))) look(e, s, w, b->streams + i, at);
  }
  if (UNLIKELY(!bag_stays_all(b))) see_from(e, s, w, b->orders, at);
}

static void leave(const series *s, window *w) { /* its oldest */
  uint64_t oldest = window_tail(s, w);
  double old = s->ring[oldest & MASK(s)];
  if (w->bag.needs & NEEDS_GAIN && w->bag.count > 1) gain_move(w, old, s->ring[(oldest + 1) & MASK(s)], -1);
  bag_leave(&w->bag, old);
}

static void expire(const series *s, window *w, int64_t now) { /* now - span may lie before the first millisecond */
  while (w->bag.count && (uint64_t)now - (uint64_t)TIMES(s)[window_tail(s, w) & MASK(s)] >= (uint64_t)w->span) leave(s, w);
}

static void smooth(window *w, double x, int64_t at) {
  change *c = w->change;
  if (isinf(x)) return;
  if (w->started) {
    int64_t passed = at - c->last;
    if (passed != c->passed) c->lost = -expm1(-(double)passed / (double)w->span), c->passed = passed;
    c->value += c->lost * (x - c->value);
  } else {
    c->value = x, w->started = 1;
  }
  c->last = at;
}

/* Room for one more sample: before it is written, for windows by time may have to grow. */
static __attribute__((noinline)) bool make_room(match_engine *e, series *s, int64_t now) {
  uint32_t most = 0; /* samples that a window has */
  for (uint32_t i = 0; i < s->width; i++) {
    window *w = s->windows + i;
    if (!w->span || w->smooths) continue;
    expire(s, w, now);
    if (w->blind && now >= w->until) w->blind = 0;
    if (w->bag.count >= e->longest || !bag_reserve(&w->bag, w->bag.count + 1)) {
      w->blind = 1, w->until = now + w->span;
      gain_clear(w);
      bag_clear(&w->bag);
      e->counters.overflows++;
    }
    if (w->bag.count > most) most = w->bag.count;
  }
  if (most < MASK(s)) return true;
  if (ring_grow(e, s, most + 1)) return true;
  e->broken = true;
  return false;
}

/* Of the window of the newest value: whether x may pass a bound. */
static inline bool leaves(const window *w, double x) { return (x < w->bag.low) | (x >= w->bag.high); }

static void see_newest(match_engine *e, window *w, double x, int64_t at) {
  stream *st = w->bag.streams; /* there is no other */
  stream_see(e, st, MATCH_TRUE, x, at);
  w->bag.low = st->low, w->bag.high = st->high;
}

/* It is not full, or not by count. Not inline: the others are faster for it. */
static __attribute__((noinline)) void enter(match_engine *e, const series *s, window *w, double newest, double x,
                                            int64_t at) {
  if (w->smooths) {
    smooth(w, x, at);
    see_from(e, s, w, 0, at);
    return;
  }
  if (w->bag.needs & NEEDS_GAIN && w->bag.count) gain_move(w, newest, x, 1);
  bag_enter(&w->bag, x);
  see(e, s, w, at);
}

static inline void take(match_engine *e, series *s, double x, int64_t at) {
  uint64_t head = s->head;
  double newest = s->newest;
  if (s->ring) {
    if (UNLIKELY(s->flags & SERIES_TIMED) && !make_room(e, s, at)) return;
    s->ring[head & MASK(s)] = x;
    TIMES(s)[head & MASK(s)] = at;
    s->head = head + 1;
  }
  s->newest = x, s->time = at;
  window *w = s->windows;
  uint32_t left = s->width;
  if (s->flags & SERIES_NEWEST) {
    if (UNLIKELY(leaves(w, x))) see_newest(e, w, x, at);
    left--, w++;
  }
  for (; left; left--, w++) {
    bag *b = &w->bag;
    if (UNLIKELY(!w->samples || b->count != w->samples)) {
      enter(e, s, w, newest, x, at);
      continue;
    }
    uint64_t oldest = head - b->count; /* it leaves */
    double old = s->ring[oldest & MASK(s)];
    if (UNLIKELY(b->needs & NEEDS_GAIN) && w->samples > 1) {
      gain_move(w, old, s->ring[(oldest + 1) & MASK(s)], -1);
      gain_move(w, newest, x, 1);
    }
    slide(e, s, w, old, x, at);
  }
}

/* The lines of the cache that the next samples will touch: first a series, then what it leads to, then what that does.
 * It does no harm that some of it is perhaps not there. Always inline: of a function that only does this, compilers
 * think that it does nothing. */
static inline __attribute__((always_inline)) void ahead(match_engine *e, const uint32_t *which, const double *values,
                                                        size_t left) {
  const series *all = SERIES(e);
  size_t used = e->series.used;
  if (UNLIKELY(left <= 20)) return;
  if (which[20] < used) __builtin_prefetch(all + which[20], 1);
  if (which[13] < used) {
    const series *s = all + which[13];
    uintptr_t windows = (uintptr_t)s->windows, slot = (uintptr_t)s->ring + (s->head & MASK(s)) * sizeof(double);
    __builtin_prefetch((void *)windows, 1);
    if (s->flags & SERIES_NEWEST) windows += sizeof(window) - LINE; /* of that one the first line is enough */
    __builtin_prefetch((void *)(windows + LINE), 1);
    __builtin_prefetch((void *)(windows + 2 * LINE), 1);
    __builtin_prefetch((void *)slot, 1);
    __builtin_prefetch((void *)(slot + (sizeof(double) << s->scale)), 1);
  }
  if (which[7] < used) {
    const series *s = all + which[7];
    const window *w = s->windows;
    uint32_t windows = s->width < 3 ? s->width : 3;
    if (s->flags & SERIES_NEWEST) {
      __builtin_prefetch((void *)either(leaves(w, values[7]), (uintptr_t)w->bag.streams, (uintptr_t)w), 1);
      windows--, w++;
    }
    for (; windows; windows--, w++) {
      __builtin_prefetch((void *)((uintptr_t)s->ring + (window_tail(s, w) & MASK(s)) * sizeof(double)));
      if (w->bag.orders) __builtin_prefetch(w->bag.streams, 1);
    }
  }
  if (which[3] < used) {
    const series *s = all + which[3];
    if (s->flags & SERIES_NEWEST) {
      static const stream none = {.bounds = (double *)ends};
      const window *w = s->windows;
      const stream *st = (void *)either(leaves(w, values[3]), (uintptr_t)w->bag.streams, (uintptr_t)&none);
      uintptr_t bounds = (uintptr_t)st->bounds, names = bounds + st->room * sizeof(double);
      __builtin_prefetch((void *)(bounds + st->at * sizeof(double)));
      __builtin_prefetch((void *)(names + st->at * sizeof(uint32_t)));
    }
  }
}

HOT size_t match_push(match_engine *e, const uint32_t *which, const double *values, const int64_t *times, size_t count,
                      size_t room) {
  size_t i = 0, refused = 0;
  for (; i < count && e->made < room && !e->broken; i++) {
    ahead(e, which + i, values + i, count - i);
    double x = values[i];
    int64_t at = times[i];
    if (UNLIKELY(!is_series(e, which[i]))) {
      e->counters.unknown++, refused++;
      continue;
    }
    series *s = SERIES(e) + which[i];
    if (UNLIKELY(x != x)) {
      e->counters.nans++, refused++;
      continue;
    }
    if (UNLIKELY(at <= s->time)) {
      e->counters.late++, refused++;
      continue;
    }
    s->seen = e->clock;
    if (UNLIKELY(isinf(x))) e->counters.infinite++;
    if (UNLIKELY(s->flags & (SERIES_ASKED | SERIES_EAGER))) {
      if (s->flags & SERIES_EAGER) rules_look(e, &EXTRAS(e)[which[i]].eager, at);
      if (s->flags & SERIES_ASKED) series_heard(e, which[i], at);
    }
    s->flags |= SERIES_ANY;
    take(e, s, x, at);
    if (UNLIKELY(at >= s->due)) watch_due(e, &EXTRAS(e)[which[i]].watch, at);
  }
  e->counters.samples += i - refused;
  return i;
}

/* Windows: which samples of a series count, and what a function makes of them. */
#include "match_bag.h"

#include <stdlib.h>
#include <string.h>

values window_values(const series *s, const window *w) {
  uint64_t count = s->head - w->tail, from = w->tail & MASK(s), whole = MASK(s) + 1;
  if (!s->ring || !count) return (values){0};
  if (from + count <= whole) return (values){.first = s->ring + from, .count = (uint32_t)count};
  return (values){.first = s->ring + from, .count = (uint32_t)(whole - from),
                  .second = s->ring, .rest = (uint32_t)(from + count - whole)};
}

static void gain_add(window *w, double from, double to, double sign) {
  if (to < from) { /* a counter that was reset rose from 0 */
    exact_add(&w->gain, &w->lost, &w->rough, sign * to);
    return;
  }
  double rest, by = two_sum(to, -from, &rest);
  exact_add(&w->gain, &w->lost, &w->rough, sign * by);
  if (rest != 0) exact_add(&w->gain, &w->lost, &w->rough, sign * rest);
}

static void gain_count(const series *s, window *w) {
  w->gain = w->lost = 0, w->rough = 0;
  for (uint64_t i = w->tail + 1; i < s->head; i++) gain_add(w, s->ring[(i - 1) & MASK(s)], s->ring[i & MASK(s)], 1);
}

static void gain_move(window *w, double from, double to, double sign) {
  if (w->bag.infinite || isinf(from) || isinf(to)) w->rough = 1;
  else gain_add(w, from, to, sign);
}

/* RATE and DELTA */
static bool change(match_engine *e, const series *s, window *w, uint32_t function, double *value) {
  uint64_t first = w->tail, last = s->head - 1, mask = MASK(s);
  if (w->bag.count - w->bag.infinite < 2) return false;
  while (isinf(s->ring[first & mask])) first++;
  while (isinf(s->ring[last & mask])) last--;
  if (function == MATCH_DELTA) {
    *value = s->ring[last & mask] - s->ring[first & mask];
    return isfinite(*value);
  }
  double milliseconds = (double)(TIMES(s)[last & mask] - TIMES(s)[first & mask]), thousand = w->gain * 1000;
  if (LIKELY(!w->rough && isfinite(thousand))) {
    if (LIKELY(w->lost == 0 && fma(w->gain, 1000, -thousand) == 0)) return *value = thousand / milliseconds, true;
    return *value = exact_ratio(w->gain, w->lost, 1000, milliseconds), isfinite(*value);
  }
  size_t count = 0;
  e->counters.exact++;
  for (uint64_t i = first; i <= last; i++)
    if (!isinf(s->ring[i & mask])) e->scratch[count++] = s->ring[i & mask];
  *value = exact_rate(e->scratch, count, 1000, milliseconds);
  if (!w->bag.infinite) gain_count(s, w);
  return isfinite(*value);
}

static bool ready(const series *s, const window *w) {
  if (w->smooths) return w->started;
  if (w->samples) return s->head - w->tail == w->samples;
  if (w->span) return !w->blind && s->head > w->tail;
  return (s->flags & SERIES_ANY) != 0;
}

bool window_value(match_engine *e, const series *s, window *w, stream *st, double *value) {
  if (!ready(s, w) || w->silent) return false;
  switch (st->function) {
  case MATCH_LAST: return *value = s->newest, true;
  case MATCH_EWMA: return *value = w->gain, isfinite(w->gain);
  case MATCH_RATE: case MATCH_DELTA: return change(e, s, w, st->function, value);
  default: return bag_value(e, &w->bag, st, window_values(s, w), value);
  }
}

/* What is the value of one of its streams? */
static void look(match_engine *e, const series *s, window *w, stream *st, int64_t at) {
  double value = NAN;
  uint32_t from = st->at;
  bool fresh = st->fresh, known = window_value(e, s, w, st, &value);
  stream_see(e, st, known ? MATCH_TRUE : MATCH_UNKNOWN, value, at);
  stream_moved(&w->bag, st, window_values(s, w), known, fresh || from != st->at);
}

static void see(match_engine *e, const series *s, window *w, int64_t at) {
  bool is_ready = ready(s, w), plain = bag_is_plain(&w->bag);
  for (uint32_t i = 0; i < w->bag.width; i++)
    if (!is_ready || !bag_stays(&w->bag, w->bag.streams + i, plain)) look(e, s, w, w->bag.streams + i, at);
}

/* In a full window `x` takes the place of `old`: what nearly every sample does. */
static inline void slide(match_engine *e, const series *s, window *w, double old, double x, int64_t at) {
  bag *b = &w->bag;
  if (UNLIKELY(b->sorted || !isfinite(x - old))) {
    bag_exchange(b, old, x);
    see(e, s, w, at);
    return;
  }
  if (b->needs & NEEDS_SUM) sums_swap(b, old, x);
  bool plain = bag_is_plain(b);
  for (uint32_t i = 0; i < b->width; i++) {
    stream *st = b->streams + i;
    if (is_order(st->function)) order_swap(st, old, x);
    if (UNLIKELY(!bag_stays(b, st, plain))) look(e, s, w, st, at);
  }
}

static void leave(const series *s, window *w) { /* its oldest */
  double old = s->ring[w->tail & MASK(s)];
  if (w->bag.needs & NEEDS_GAIN && s->head - w->tail > 1) gain_move(w, old, s->ring[(w->tail + 1) & MASK(s)], -1);
  bag_leave(&w->bag, old);
  w->tail++;
}

static void expire(const series *s, window *w, int64_t now) { /* now - span may lie before the first millisecond */
  while (w->tail < s->head && (uint64_t)now - (uint64_t)TIMES(s)[w->tail & MASK(s)] >= (uint64_t)w->span) leave(s, w);
}

static void smooth(window *w, double x, int64_t at) {
  if (isinf(x)) return;
  if (w->started) {
    int64_t passed = at - w->last;
    if (passed != w->until) w->lost = -expm1(-(double)passed / (double)w->span), w->until = passed;
    w->gain += w->lost * (x - w->gain);
  } else {
    w->gain = x, w->started = 1;
  }
  w->last = at;
}

/* Room for one more sample: before it is written, for windows by time may have to grow. */
HOT static bool make_room(match_engine *e, series *s, int64_t now) {
  uint64_t oldest = s->head;
  for (uint32_t i = 0; i < s->width; i++) {
    window *w = s->windows + i;
    if (!w->span || w->smooths) continue;
    expire(s, w, now);
    if (w->blind && now >= w->until) w->blind = 0;
    if (s->head - w->tail >= e->longest || !bag_reserve(&w->bag, s->head - w->tail + 1)) {
      w->blind = 1, w->until = now + w->span, w->tail = s->head;
      w->gain = w->lost = 0, w->rough = 0;
      bag_clear(&w->bag);
      e->counters.overflows++;
    }
    if (w->tail < oldest) oldest = w->tail;
  }
  if (s->head - oldest < MASK(s)) return true;
  if (ring_grow(e, s, s->head - oldest + 1)) return true;
  e->broken = true;
  return false;
}

HOT void series_take(match_engine *e, series *s, double x, int64_t at) {
  uint64_t head = s->head;
  double newest = s->newest;
  if (s->ring) {
    if (UNLIKELY(s->flags & SERIES_TIMED) && !make_room(e, s, at)) return;
    s->ring[head & MASK(s)] = x;
    TIMES(s)[head & MASK(s)] = at;
    s->head = head + 1;
  }
  s->newest = x, s->time = at;
  for (uint32_t i = 0; i < s->width; i++) {
    window *w = s->windows + i;
    if (w->smooths) {
      smooth(w, x, at);
    } else if (w->samples && head - w->tail == w->samples) { /* full: one leaves */
      double old = s->ring[w->tail & MASK(s)];
      if (UNLIKELY(w->bag.needs & NEEDS_GAIN) && w->samples > 1) {
        gain_move(w, old, s->ring[(w->tail + 1) & MASK(s)], -1);
        gain_move(w, newest, x, 1);
      }
      w->tail++;
      slide(e, s, w, old, x, at);
      continue;
    } else if (w->samples || w->span) {
      if (w->bag.needs & NEEDS_GAIN && head > w->tail) gain_move(w, newest, x, 1);
      bag_enter(&w->bag, x);
    } else { /* the newest value, and nothing else */
      for (uint32_t k = 0; k < w->bag.width; k++) {
        stream *st = w->bag.streams + k;
        if (UNLIKELY(x < st->low || x >= st->high)) stream_see(e, st, MATCH_TRUE, x, at);
      }
      continue;
    }
    see(e, s, w, at);
  }
}

/* ---- windows come and go */

bool ring_grow(match_engine *e, series *s, uint64_t count) { /* room for `count` samples besides the one being written */
  uint8_t scale = 1;
  while (((uint64_t)1 << scale) <= count) scale++;
  if (s->ring && scale <= s->scale) return true;
  size_t room = (size_t)1 << scale;
  double *scratch = e->scratch;
  if (e->scratch_room < room) {
    if (!(scratch = realloc(e->scratch, room * sizeof *scratch))) return false;
    e->scratch = scratch, e->scratch_room = room;
  }
  double *ring = block_take(e, room * SLOT);
  if (!ring) return false;
  int64_t *times = (int64_t *)(ring + room);
  if (s->ring)
    for (uint64_t i = s->head > MASK(s) ? s->head - MASK(s) - 1 : 0; i < s->head; i++)
      ring[i & (room - 1)] = s->ring[i & MASK(s)], times[i & (room - 1)] = TIMES(s)[i & MASK(s)];
  if (s->ring) block_give(e, s->ring, (MASK(s) + 1) * SLOT);
  s->ring = ring, s->scale = scale;
  return true;
}

window *window_find(match_engine *e, uint32_t which, const match_view *view) {
  series *s = SERIES(e) + which;
  bool smooths = view->function == MATCH_EWMA;
  for (uint32_t i = 0; i < s->width; i++) {
    window *w = s->windows + i;
    if (w->samples == view->samples && w->span == view->span && w->smooths == smooths) return w;
  }
  return NULL;
}

int window_need(match_engine *e, uint32_t which, const match_view *view, window **found) {
  series *s = SERIES(e) + which;
  if ((*found = window_find(e, which, view))) return 0;
  if (s->width == UINT16_MAX) return MATCH_TOO_MANY;
  if (view->samples > e->longest) return MATCH_TOO_LONG;
  bool smooths = view->function == MATCH_EWMA, kept = view->samples || (view->span && !smooths);
  if (kept && !ring_grow(e, s, view->samples)) return MATCH_NO_MEMORY;
  size_t size = s->width * sizeof(window);
  if (!block_fit(e, (void **)&s->windows, size, size + sizeof(window))) return MATCH_NO_MEMORY;
  window *windows = s->windows;
  windows[s->width] = (window){.tail = s->head, .span = view->span, .samples = view->samples, .smooths = smooths,
                                 .timer = NONE};
  if (view->span && kept) s->flags |= SERIES_TIMED;
  *found = windows + s->width++;
  return 0;
}

static int64_t patience(const match_engine *e, uint32_t which, const window *w) {
  return w->span && !w->smooths ? w->span : EXTRAS(e)[which].patience;
}

/* Somebody wants to know when the window falls silent. */
int window_guard(match_engine *e, uint32_t which, window *w) {
  if (w->timer != NONE) return 0;
  int timer = timer_open(e, TIMER_SILENCE, which, patience(e, which, w), NONE);
  if (timer < 0) return timer;
  w->timer = (uint32_t)timer;
  return 0;
}

int window_guard_anew(match_engine *e, uint32_t which, window *w) { /* the old timer may be due too late */
  uint32_t old = w->timer;
  if (old == NONE || e->timers[old].span == patience(e, which, w)) return 0;
  w->timer = NONE;
  int wrong = window_guard(e, which, w);
  if (wrong) return w->timer = old, wrong;
  timer_close(e, old);
  return 0;
}

void window_silence(match_engine *e, window *w) {
  w->silent = 1;
  for (uint32_t i = 0; i < w->bag.width; i++) stream_see(e, w->bag.streams + i, MATCH_SILENT, NAN, INT64_MIN);
}

/* Somebody who comes now finds it silent if it is, though nobody asked until now. */
void window_age(match_engine *e, uint32_t which, window *w) {
  series *s = SERIES(e) + which;
  if (w->silent || e->clock - s->seen < patience(e, which, w)) return;
  s->flags |= SERIES_ASKED;
  window_silence(e, w);
}

/* Stream `st` of the window is new: what its function needs, the window begins to keep. */
void window_learn(match_engine *e, uint32_t which, window *w, const stream *st) {
  series *s = SERIES(e) + which;
  uint8_t needs = bag_needs(st->function), news = needs & (uint8_t)~w->bag.needs;
  w->bag.needs |= needs;
  if (w->smooths || !(w->samples || w->span)) return;
  if (news) bag_count(&w->bag, window_values(s, w));
  if (news & NEEDS_GAIN) w->bag.infinite ? (void)(w->rough = 1) : gain_count(s, w);
}

void series_prune(match_engine *e, uint32_t which) {
  series *s = SERIES(e) + which;
  uint32_t kept = 0;
  bool rings = false;
  s->flags &= (uint8_t)~SERIES_TIMED;
  for (uint32_t i = 0; i < s->width; i++) {
    window *w = s->windows + i;
    bag_prune(e, &w->bag);
    if (!w->bag.width) {
      free(w->bag.sorted);
      if (w->timer != NONE) timer_close(e, w->timer);
      continue;
    }
    rings |= !w->smooths && (w->samples || w->span);
    if (w->span && !w->smooths) s->flags |= SERIES_TIMED;
    s->windows[kept++] = *w;
  }
  block_fit(e, (void **)&s->windows, s->width * sizeof *s->windows, kept * sizeof *s->windows);
  s->width = (uint16_t)kept;
  if (!rings && s->ring) {
    block_give(e, s->ring, (MASK(s) + 1) * SLOT);
    s->ring = NULL, s->scale = 0;
  }
}

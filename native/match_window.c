/* Windows: which samples of a series count, and what a function makes of them. */
#include "match_bag.h"

#include <stdlib.h>
#include <string.h>

values window_values(const series *s, const window *w) {
  uint64_t count = w->bag.count, from = window_tail(s, w) & MASK(s), whole = MASK(s) + 1;
  if (!s->ring || !count) return (values){0};
  if (from + count <= whole) return (values){.first = s->ring + from, .count = (uint32_t)count};
  return (values){.first = s->ring + from, .count = (uint32_t)(whole - from),
                  .second = s->ring, .rest = (uint32_t)(from + count - whole)};
}

static void gain_add(window *w, double from, double to, double sign) {
  double rest = 0, by = to < from ? to : two_sum(to, -from, &rest); /* a counter that was reset rose from 0 */
  bool exact = exact_add(&w->change->value, &w->change->lost, sign * by);
  if (rest != 0) exact &= exact_add(&w->change->value, &w->change->lost, sign * rest);
  if (!exact) w->rough = 1;
}

void gain_clear(window *w) {
  if (w->change) w->change->value = w->change->lost = 0;
  w->rough = 0;
}

static void gain_count(const series *s, window *w) {
  gain_clear(w);
  for (uint64_t i = window_tail(s, w) + 1; i < s->head; i++) gain_add(w, s->ring[(i - 1) & MASK(s)], s->ring[i & MASK(s)], 1);
}

void gain_move(window *w, double from, double to, double sign) {
  if (w->bag.infinite || isinf(from) || isinf(to)) w->rough = 1;
  else gain_add(w, from, to, sign);
}

/* RATE and DELTA */
static bool changed(match_engine *e, const series *s, window *w, uint32_t function, double *value) {
  uint64_t first = window_tail(s, w), last = s->head - 1, mask = MASK(s);
  if (w->bag.count - w->bag.infinite < 2) return false;
  while (isinf(s->ring[first & mask])) first++;
  while (isinf(s->ring[last & mask])) last--;
  if (function == MATCH_DELTA) {
    *value = s->ring[last & mask] - s->ring[first & mask];
    return isfinite(*value);
  }
  const change *c = w->change;
  double milliseconds = (double)(TIMES(s)[last & mask] - TIMES(s)[first & mask]), thousand = c->value * 1000;
  if (LIKELY(!w->rough && isfinite(thousand))) {
    if (LIKELY(c->lost == 0 && fma(c->value, 1000, -thousand) == 0)) return *value = thousand / milliseconds, true;
    return *value = exact_ratio(c->value, c->lost, 1000, milliseconds), isfinite(*value);
  }
  size_t count = 0;
  e->counters.exact++;
  for (uint64_t i = first; i <= last; i++)
    if (!isinf(s->ring[i & mask])) e->scratch[count++] = s->ring[i & mask];
  *value = exact_rate(e->scratch, count, 1000, milliseconds);
  if (!w->bag.infinite) gain_count(s, w);
  return isfinite(*value);
}

bool window_value(match_engine *e, const series *s, window *w, stream *st, double *value) {
  if (!window_ready(s, w) || w->silent) return false;
  switch (st->function) {
  case MATCH_LAST: return *value = s->newest, true;
  case MATCH_EWMA: return *value = w->change->value, isfinite(*value);
  case MATCH_RATE: case MATCH_DELTA: return changed(e, s, w, st->function, value);
  default: return bag_value(e, &w->bag, st, window_values(s, w), value);
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
  change *made = smooths ? block_take(e, sizeof *made) : NULL;
  if (smooths && !made) return MATCH_NO_MEMORY;
  if (made) *made = (change){0};
  *found = windows + s->width++;
  if (!kept && !smooths) { /* of the newest value */
    windows[s->width - 1] = windows[0];
    *found = windows;
    s->flags |= SERIES_NEWEST;
  }
  **found = (window){.span = view->span, .samples = view->samples, .smooths = smooths, .timer = NONE, .change = made};
  bag_unguard(&(*found)->bag);
  if (view->span && kept) s->flags |= SERIES_TIMED;
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
  bag_unguard(&w->bag);
}

/* Somebody who comes now finds it silent if it is, though nobody asked until now. */
void window_age(match_engine *e, uint32_t which, window *w) {
  series *s = SERIES(e) + which;
  if (w->silent || e->clock - s->seen < patience(e, which, w)) return;
  s->flags |= SERIES_ASKED;
  window_silence(e, w);
}

/* Stream `st` of the window is new: what its function needs, the window begins to keep. */
int window_learn(match_engine *e, uint32_t which, window *w, const stream *st) {
  series *s = SERIES(e) + which;
  uint32_t needs = bag_needs(st->function), news = needs & ~(uint32_t)w->bag.needs;
  if (news & NEEDS_GAIN && !w->change) {
    if (!(w->change = block_take(e, sizeof *w->change))) return MATCH_NO_MEMORY;
    *w->change = (change){0};
  }
  w->bag.needs |= needs;
  if (w->smooths || !(w->samples || w->span)) return 0;
  if (news) bag_count(&w->bag, window_values(s, w));
  if (news & NEEDS_GAIN) w->bag.infinite ? (void)(w->rough = 1) : gain_count(s, w);
  return 0;
}

void series_prune(match_engine *e, uint32_t which) {
  series *s = SERIES(e) + which;
  uint32_t kept = 0;
  bool rings = false;
  s->flags &= (uint8_t)~(SERIES_TIMED | SERIES_NEWEST);
  for (uint32_t i = 0; i < s->width; i++) {
    window *w = s->windows + i;
    bag_prune(e, &w->bag);
    if (!w->bag.width) {
      free(w->bag.sorted);
      block_give(e, w->change, sizeof *w->change);
      if (w->timer != NONE) timer_close(e, w->timer);
      continue;
    }
    bag_unguard(&w->bag);
    rings |= !w->smooths && (w->samples || w->span);
    if (w->span && !w->smooths) s->flags |= SERIES_TIMED;
    if (!w->span && !w->samples) s->flags |= SERIES_NEWEST; /* it remains the first */
    s->windows[kept++] = *w;
  }
  block_fit(e, (void **)&s->windows, s->width * sizeof *s->windows, kept * sizeof *s->windows);
  s->width = (uint16_t)kept;
  if (!rings && s->ring) {
    block_give(e, s->ring, (MASK(s) + 1) * SLOT);
    s->ring = NULL, s->scale = 0;
  }
}

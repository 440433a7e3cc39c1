/* What the clock alone brings about: absence, silence, and the end of a wait. */
#include "match_core.h"

static bool before(const match_engine *e, size_t a, size_t b) {
  return e->timers[e->heap.items[a]].due < e->timers[e->heap.items[b]].due;
}

static void exchange(match_engine *e, size_t a, size_t b) {
  uint32_t t = e->heap.items[a];
  e->heap.items[a] = e->heap.items[b], e->heap.items[b] = t;
}

static void sink(match_engine *e, size_t at) {
  for (;;) {
    size_t least = at;
    for (size_t child = 2 * at + 1; child <= 2 * at + 2 && child < e->heap.count; child++)
      if (before(e, child, least)) least = child;
    if (least == at) return;
    exchange(e, at, least);
    at = least;
  }
}

static void recycle(match_engine *e, uint32_t which) { list_push(&e->free_timers, which); /* room was reserved */ }

static void tidy(match_engine *e) { /* closed timers leave the heap when they are most of it */
  size_t kept = 0;
  for (size_t i = 0; i < e->heap.count; i++) {
    uint32_t which = e->heap.items[i];
    if (e->timers[which].open) e->heap.items[kept++] = which;
    else recycle(e, which);
  }
  e->heap.count = kept, e->dead = 0;
  for (size_t i = kept / 2; i-- > 0;) sink(e, i);
}

void timer_queue(match_engine *e, uint32_t which, int64_t due) { /* there is room for all timers */
  timer *t = e->timers + which;
  if (t->queued) return; /* it looks when it is due how long there is still to wait */
  t->due = due, t->queued = 1;
  size_t at = e->heap.count++;
  e->heap.items[at] = which;
  while (at && before(e, at, (at - 1) / 2)) exchange(e, at, (at - 1) / 2), at = (at - 1) / 2;
}

int timer_open(match_engine *e, uint8_t kind, uint32_t which, int64_t span, uint32_t subject) {
  uint32_t made;
  if (e->free_timers.count) {
    made = e->free_timers.items[--e->free_timers.count];
  } else {
    if (e->timer_count == INT32_MAX) return MATCH_TOO_MANY;
    timer *timers = grown(e->timers, &e->timer_room, e->timer_count + 1, sizeof *timers);
    if (!timers) return MATCH_NO_MEMORY;
    e->timers = timers;
    if (!list_reserve(&e->heap, e->timer_room) || !list_reserve(&e->free_timers, e->timer_room)) return MATCH_NO_MEMORY;
    made = (uint32_t)e->timer_count++;
  }
  e->timers[made] = (timer){.span = span, .series = which, .subject = subject, .kind = kind, .open = 1};
  if (kind != TIMER_HOLD) timer_queue(e, made, SERIES(e)[which].seen + span);
  return (int)made;
}

void timer_close(match_engine *e, uint32_t which) {
  timer *t = e->timers + which;
  t->open = 0;
  if (!t->queued) {
    recycle(e, which);
    return;
  }
  if (++e->dead > 64 && e->dead > e->heap.count / 2) tidy(e);
}

static void expired(match_engine *e, uint32_t which, timer *t) {
  if (t->kind == TIMER_HOLD) {
    if (e->rules[t->subject].waits) rule_touch(e, t->subject, INT64_MIN, NAN);
    return;
  }
  series *s = SERIES(e) + t->series;
  if (s->seen + t->span > e->clock) {
    timer_queue(e, which, s->seen + t->span);
    return;
  }
  s->flags |= SERIES_ASKED;
  if (t->kind == TIMER_ABSENT) {
    leaf_set(e, t->subject, MATCH_TRUE, RULE_OF(e, t->subject) == NONE ? e->clock : INT64_MIN, NAN);
    return;
  }
  for (uint32_t i = 0; i < s->width; i++)
    if (s->windows[i].timer == which) window_silence(e, s->windows + i);
}

static bool is_due(const match_engine *e, int64_t clock) {
  return e->heap.count && e->timers[e->heap.items[0]].due <= clock;
}

static void expire_first(match_engine *e) {
  uint32_t which = e->heap.items[0];
  e->heap.items[0] = e->heap.items[--e->heap.count];
  sink(e, 0);
  timer *t = e->timers + which;
  t->queued = 0;
  if (t->open) {
    expired(e, which, t);
  } else {
    e->dead--;
    recycle(e, which);
  }
}

void match_tick(match_engine *e, int64_t clock) {
  if (clock < e->clock) clock = e->clock;
  for (;;) { /* moment after moment: what it says does not depend on how often it is called */
    while (is_due(e, e->clock)) expire_first(e);
    match_settle(e);
    if (!is_due(e, clock)) break;
    if (e->timers[e->heap.items[0]].due > e->clock) e->clock = e->timers[e->heap.items[0]].due;
  }
  e->clock = clock;
}

void series_heard(match_engine *e, uint32_t which, int64_t at) { /* its first sample, or the first after a silence */
  series *s = SERIES(e) + which;
  s->flags &= (uint8_t)~SERIES_ASKED;
  for (uint32_t i = 0; i < s->width; i++) {
    window *w = s->windows + i;
    w->silent = 0;
    if (w->timer != NONE) timer_queue(e, w->timer, s->seen + e->timers[w->timer].span);
  }
  const list *absences = &EXTRAS(e)[which].timers;
  for (size_t i = 0; i < absences->count; i++) {
    const timer *t = e->timers + absences->items[i];
    leaf_set(e, t->subject, MATCH_FALSE, RULE_OF(e, t->subject) == NONE ? e->clock : at, NAN);
    timer_queue(e, absences->items[i], s->seen + t->span);
  }
}

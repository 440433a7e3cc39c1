/* Thresholds on one value: while it stays inside its guard, nothing happens. */
#include "match_bag.h"

#include <stdlib.h>
#include <string.h>

void leaf_set(match_engine *e, uint32_t which, uint8_t truth, int64_t at, double value) {
  uint8_t *now = TRUTHS(e) + which;
  if ((*now & LEAF_TRUTH) == truth) return;
  if (UNLIKELY(*now & LEAF_FREE)) return; /* of a damaged snapshot, where two streams had it */
  uint32_t rule = RULE_OF(e, which);
  if (rule == NONE) {
    if (truth > MATCH_TRUE) return; /* it stays as it is */
    emit(e, which, truth == MATCH_TRUE, at, value);
  } else {
    rule_touch(e, rule, at, value); /* before the leaf changes: an earlier instant may have to be seen */
  }
  *now = (uint8_t)((*now & ~LEAF_TRUTH) | truth);
}

/* `holds`: whether "value >= bound" does, of the bound with this name */
static void name_see(match_engine *e, uint32_t name, bool holds, int64_t at, double value) {
  uint32_t which = name & NAME_LEAF, kind = name & NAME_KIND;
  if (kind == NAME_BETWEEN) holds = (TRUTHS(e)[which] & LEAF_BETWEEN) != 0;
  if (name & NAME_NOT) holds = !holds;
  if (kind == NAME_FIRES ? !holds : kind == NAME_CLEARS ? holds : false) return;
  leaf_set(e, which, kind == NAME_CLEARS ? MATCH_FALSE : holds ? MATCH_TRUE : MATCH_FALSE, at, value);
}

void stream_guard(stream *s) {
  bool look = s->fresh || s->fed || is_summed(s->function); /* somebody waits to be told; or bag_reach */
  s->low = look ? INFINITY : lowest(s);
  s->high = look ? -INFINITY : highest(s);
  if (look && is_order(s->function)) s->below_low = UINT32_MAX / 2; /* as good as all, until they are counted */
}

enum { NEAR = 12 }; /* bounds next to where it was that are asked one by one: it seldom jumps further */

uint32_t stream_rank(const stream *s, double value) {
  const double *b = s->bounds;
  uint32_t at = s->at, n = at;
  if (at < s->count && value >= b[at]) {
    uint32_t end = s->count - at < NEAR ? s->count : at + NEAR, step = 1;
    do at++;
    while (at < end && b[at] <= value);
    if (LIKELY(at < end)) return at;
    while (at + step <= s->count && b[at + step - 1] <= value) at += step, step *= 2; /* galloping */
    n = at + step > s->count ? s->count - at : step - 1;
  } else {
    uint32_t end = at < NEAR ? 0 : at - NEAR;
    while (at > end && !(b[at - 1] <= value)) at--;
    if (LIKELY(at > end)) return at;
    n = at, at = 0;
  }
  while (n) {
    uint32_t half = n >> 1;
    if (b[at + half] <= value) at += half + 1, n -= half + 1;
    else n = half;
  }
  return at;
}

static HOT void cross(match_engine *e, stream *s, double value, int64_t at) {
  const uint32_t *names = NAMES(s);
  if (names) __builtin_prefetch(names + s->at);
  uint32_t old = s->at, new = stream_rank(s, value);
  uint32_t from = old < new ? old : new, to = old < new ? new : old;
  uint8_t *truths = TRUTHS(e);
  int64_t told = at == INT64_MIN ? e->clock : at;
  e->counters.crossings++;
  s->at = new;
  uint32_t first = from, passed = to - from;
  bool others = false;
  if (s->fresh) from = 0, to = s->count, s->fresh = 0;
  stream_guard(s);
  if (from == to || !edges_reserve(e, to - from)) return;
  match_edge *edge = e->edges + e->made;
  for (uint32_t k = from; k < to; k++) {
    uint32_t name = names[k], which = name & NAME_LEAF;
    if (UNLIKELY(name & (NAME_KIND | NAME_PART))) {
      others = true;
      if ((name & NAME_KIND) == NAME_BETWEEN && k - first < passed) truths[which] ^= LEAF_BETWEEN;
      continue;
    }
    uint8_t truth = (uint8_t)((k < new) ^ (name >> 31)); /* of a leaf that is all of its rule */
    if ((truths[which] & LEAF_TRUTH) == truth) continue;
    truths[which] = (uint8_t)((truths[which] & ~LEAF_TRUTH) | truth);
    *edge++ = (match_edge){.at = told, .value = value, .rule = which, .fires = truth};
  }
  e->made = (size_t)(edge - e->edges);
  for (uint32_t k = from; others && k < to; k++)
    if (names[k] & (NAME_KIND | NAME_PART)) name_see(e, names[k], k < new, at, value);
}

static void forget(match_engine *e, stream *s, uint8_t truth, int64_t at) {
  s->known = 0, s->fresh = 1;
  stream_guard(s);
  for (uint32_t k = 0; k < s->count; k++) leaf_set(e, NAMES(s)[k] & NAME_LEAF, truth, at, NAN);
  s->lacks = truth;
}

HOT void stream_see(match_engine *e, stream *s, uint8_t truth, double value, int64_t at) {
  if (UNLIKELY(s->fed))
    for (uint32_t i = 0; i < s->fed; i++) group_feed(e, s->feeds[i].group, s->feeds[i].slot, truth, value, at);
  if (UNLIKELY(truth != MATCH_TRUE)) {
    if (s->known || s->lacks != truth) forget(e, s, truth, at);
    return;
  }
  if (!s->fresh && value >= lowest(s) && (value < highest(s) || s->at == s->count)) return; /* or infinite, as it was */
  s->known = 1;
  cross(e, s, value, at);
}

/* Its value was looked at; its guard is another if it is `moved`. */
void stream_moved(const bag *b, stream *s, values v, bool known, bool moved) {
  if (is_summed(s->function) && known && !s->fed) bag_reach(b, s);
  else if (is_order(s->function) && moved) stream_count(s, v);
}

/* ---- thresholds come and go */

int stream_room(match_engine *e, stream *s, uint32_t more) {
  uint32_t needed = s->count + more;
  if (needed > MATCH_BOUNDS) return MATCH_TOO_MANY;
  if (needed <= s->room) return 0;
  uint32_t room = (uint32_t)(block_room((needed + needed / 16) * BOUND) / BOUND);
  double *bounds = block_take(e, room * BOUND);
  if (!bounds) return MATCH_NO_MEMORY;
  if (s->count) {
    memcpy(bounds, s->bounds, s->count * sizeof *bounds);
    memcpy(bounds + room, s->bounds + s->room, s->count * sizeof(uint32_t));
  }
  block_give(e, s->bounds, s->room * BOUND);
  s->bounds = bounds, s->room = room;
  return 0;
}

/* There is room. What the leaf is to begin with, its rule finds out afterwards. */
void stream_insert(match_engine *e, stream *s, double bound, uint32_t name) {
  uint32_t at = 0, n = s->count;
  while (n) {
    uint32_t half = n >> 1;
    if (s->bounds[at + half] <= bound) at += half + 1, n -= half + 1;
    else n = half;
  }
  uint32_t *names = NAMES(s);
  memmove(s->bounds + at + 1, s->bounds + at, (s->count - at) * sizeof *s->bounds);
  memmove(names + at + 1, names + at, (s->count - at) * sizeof *names);
  s->bounds[at] = bound, names[at] = name;
  s->count++;
  if (at < s->at || (s->at && bound == s->bounds[s->at - 1])) { /* below the value, or where it was */
    s->at++;
    if ((name & NAME_KIND) == NAME_BETWEEN) TRUTHS(e)[name & NAME_LEAF] ^= LEAF_BETWEEN;
  }
  stream_guard(s);
}

/* The bound was inserted, and `value` is what the stream has now. */
void stream_meet(match_engine *e, stream *s, double bound, uint32_t name, double value, int64_t at) {
  s->known = 1;
  if (s->fresh || value < lowest(s) || value >= highest(s)) cross(e, s, value, at);
  name_see(e, name, value >= bound, at, value);
}

bool stream_drop(match_engine *e, stream *s, uint32_t leaf) {
  uint32_t *names = NAMES(s), kept = 0, at = s->at, first = 0;
  while (first < s->count && (names[first] & NAME_LEAF) != leaf) first++;
  if (first == s->count) return false;
  kept = first;
  for (uint32_t k = first; k < s->count; k++) {
    if ((names[k] & NAME_LEAF) == leaf) {
      at -= k < s->at;
      continue;
    }
    s->bounds[kept] = s->bounds[k], names[kept++] = names[k];
  }
  s->count = kept, s->at = at;
  if (is_order(s->function)) s->fresh = 1; /* it counts anew */
  stream_guard(s);
  (void)e;
  return true;
}

stream *bag_stream(match_engine *e, bag *b, uint32_t function, uint32_t rank, uint8_t asks, bool make) {
  if (!is_order(function)) rank = 0;
  for (uint32_t i = 0; i < b->width; i++) {
    stream *s = b->streams + i;
    if (s->function == function && s->rank == rank && s->asks == asks) return s;
  }
  if (!make || b->width == UINT16_MAX) return NULL;
  size_t size = b->width * sizeof(stream);
  if (!block_fit(e, (void **)&b->streams, size, size + sizeof(stream))) return NULL;
  stream *streams = b->streams;
  stream *made = streams + b->width++;
  if (is_order(function)) {
    *made = streams[b->orders];
    made = streams + b->orders++;
  }
  *made = (stream){.rank = rank, .function = (uint8_t)function, .asks = asks & 3, .fresh = 1, .lacks = MATCH_UNKNOWN};
  stream_guard(made);
  bag_unguard(b);
  e->counters.streams++;
  return made;
}

void bag_prune(match_engine *e, bag *b) {
  uint32_t kept = 0, orders = 0;
  b->needs = 0;
  for (uint32_t i = 0; i < b->width; i++) {
    stream *s = b->streams + i;
    if (s->count || s->fed) {
      b->needs |= bag_needs(s->function);
      orders += is_order(s->function);
      b->streams[kept++] = *s;
      continue;
    }
    e->counters.streams--;
    block_give(e, s->bounds, s->room * BOUND);
    free(s->feeds);
  }
  block_fit(e, (void **)&b->streams, b->width * sizeof *b->streams, kept * sizeof *b->streams);
  b->width = (uint16_t)kept, b->orders = (uint16_t)orders;
  if (!orders) free(b->sorted), b->sorted = NULL;
}

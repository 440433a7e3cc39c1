/* Groups: one value of each of many series. */
#include "match_bag.h"

#include <stdlib.h>
#include <string.h>

bool is_group(const match_engine *e, uint32_t which) { return which < e->group_count && e->groups[which].open; }

values group_values(const group *g) { return (values){.first = g->values, .count = g->size}; }

/* MATCH_TRUE: there is a value; else why not */
static uint8_t group_truth(match_engine *e, group *g, stream *s, double *value) {
  uint32_t known = g->bag.count;
  if (s->function == MATCH_COUNT) { /* of the members that have a value, once all of them had their chance */
    *value = known;
    return g->registered && known + g->silent == g->registered ? MATCH_TRUE : MATCH_UNKNOWN;
  }
  if (known && (!(s->asks & ASKS_ALL) || known == g->registered))
    return bag_value(e, &g->bag, s, group_values(g), value) ? MATCH_TRUE : MATCH_UNKNOWN;
  return g->registered && g->silent == g->registered ? MATCH_SILENT : MATCH_UNKNOWN;
}

HOT void group_feed(match_engine *e, uint32_t which, uint32_t slot, uint8_t truth, double value, int64_t at) {
  group *g = e->groups + which;
  if (g->dirty && g->at < at && !g->joined) group_settle(e, g); /* of an earlier instant */
  uint8_t silent = truth == MATCH_SILENT;
  if (UNLIKELY(g->eager.count)) rules_look(e, &g->eager, silent ? INT64_MIN : at);
  g->joined = 0;
  double old = g->values[slot];
  if (truth != MATCH_TRUE) value = NAN;
  g->silent += (uint32_t)silent - g->silences[slot];
  g->silences[slot] = silent;
  g->values[slot] = value;
  if (!silent && at > g->at) g->at = at;
  g->dirty = DIRTY | DIRTY_EARLY;
  g->changes++;
  if (!g->listed) {
    g->listed = 1;
    if (!list_push(&e->dirty_groups, which)) e->broken = true;
  }
  if (old != old) {
    if (value == value) bag_enter(&g->bag, value);
  } else if (value != value) {
    bag_leave(&g->bag, old);
  } else if (value != old) {
    bag_exchange(&g->bag, old, value);
  }
}

static inline void settle(match_engine *e, group *g, stream *s) {
  bool some = g->bag.count, whole = g->registered && g->bag.count == g->registered; /* of none no value stays */
  if ((s->function == MATCH_COUNT || s->asks & ASKS_ALL ? whole : some) && bag_stays(&g->bag, s, bag_is_plain(&g->bag))) return;
  double value = NAN;
  uint32_t from = s->at;
  bool fresh = s->fresh;
  if (g->changes > 8) s->slow = 0; /* to search once for so many is cheaper than to keep them sorted */
  uint8_t truth = group_truth(e, g, s, &value);
  stream_see(e, s, truth, value, g->at);
  stream_moved(&g->bag, s, group_values(g), truth == MATCH_TRUE, fresh || from != s->at);
}

void group_peek(match_engine *e, group *g) {
  g->dirty &= (uint8_t)~DIRTY_EARLY;
  for (uint32_t k = 0; g->open && k < g->bag.width; k++)
    if (g->bag.streams[k].asks & ASKS_EARLY) settle(e, g, g->bag.streams + k);
}

void group_settle(match_engine *e, group *g) { /* it stays in the list */
  g->dirty = g->joined = 0;
  if (!g->open) return;
  for (uint32_t k = 0; k < g->bag.width; k++) settle(e, g, g->bag.streams + k);
  g->changes = 0;
  if (g->at >= g->due) watch_due(e, &g->watch, g->at);
}

void groups_settle(match_engine *e) {
  for (size_t i = 0; i < e->dirty_groups.count; i++) {
    group *g = e->groups + e->dirty_groups.items[i];
    if (g->dirty) group_settle(e, g);
    g->listed = 0;
  }
  e->dirty_groups.count = 0;
}

bool group_value(match_engine *e, group *g, stream *s, double *value) {
  return group_truth(e, g, s, value) == MATCH_TRUE;
}

void group_close(group *g) {
  free(g->values), free(g->members), free(g->silences), free(g->watch.items), free(g->eager.items);
  g->values = NULL, g->members = NULL, g->silences = NULL, g->watch = g->eager = (list){0};
}

int64_t match_open_group(match_engine *e, const match_view *member) {
  int wrong = view_check(e, member);
  if (wrong) return wrong;
  if (member->function == MATCH_ABSENT) return MATCH_BAD;
  uint32_t which;
  if (e->free_groups.count) {
    which = e->free_groups.items[--e->free_groups.count];
  } else {
    group *groups = grown(e->groups, &e->group_room, e->group_count + 1, sizeof *groups);
    if (!groups) return MATCH_NO_MEMORY;
    e->groups = groups, which = (uint32_t)e->group_count++;
  }
  e->groups[which] = (group){.view = *member, .due = NEVER, .at = INT64_MIN, .open = 1};
  return which;
}

static feed *feed_of(match_engine *e, uint32_t which, uint32_t member, stream **found) { /* what makes it a member */
  stream *s = *found = view_stream(e, member, false, &e->groups[which].view, 0);
  for (uint32_t i = 0; s && i < s->fed; i++)
    if (s->feeds[i].group == which) return s->feeds + i;
  return NULL;
}

static uint32_t vacancy(const group *g) {
  if (g->registered == g->size) return g->size;
  uint32_t slot = 0;
  while (slot < g->size && g->members[slot] != NONE) slot++;
  return slot;
}

static bool reserve(match_engine *e, group *g) {
  if (g->size < g->room) return bag_reserve(&g->bag, g->size + 1);
  uint32_t room = g->room + g->room / 2 + 4;
  double *values = realloc(g->values, room * sizeof *values);
  if (!values) return false;
  g->values = values;
  uint32_t *members = realloc(g->members, room * sizeof *members);
  if (!members) return false;
  g->members = members;
  uint8_t *silences = realloc(g->silences, room);
  if (!silences) return false;
  g->silences = silences;
  if (e->scratch_room < room) {
    double *scratch = realloc(e->scratch, room * sizeof *scratch);
    if (!scratch) return false;
    e->scratch = scratch, e->scratch_room = room;
  }
  e->counters.bytes += (room - g->room) * (sizeof *values + sizeof *members);
  g->room = room;
  return bag_reserve(&g->bag, g->size + 1);
}

int match_join(match_engine *e, uint32_t which, uint32_t member, int64_t at) {
  if (!is_group(e, which) || !is_series(e, member)) return MATCH_BAD;
  group *g = e->groups + which;
  window *w;
  stream *s;
  if (feed_of(e, which, member, &s)) return MATCH_BAD;
  if (!reserve(e, g)) return MATCH_NO_MEMORY;
  int wrong = window_need(e, member, &g->view, &w);
  if (wrong) return wrong;
  s = bag_stream(e, &w->bag, g->view.function, g->view.rank, 0, true);
  feed *feeds = s && s->fed < UINT16_MAX ? realloc(s->feeds, (s->fed + 1u) * sizeof *feeds) : NULL;
  if (feeds) s->feeds = feeds;
  if (!feeds || window_learn(e, member, w, s) || window_guard(e, member, w)) {
    series_prune(e, member);
    return MATCH_NO_MEMORY;
  }
  if (g->dirty && g->at < at) group_settle(e, g); /* still without it */
  uint32_t slot = vacancy(g);
  g->size += slot == g->size;
  g->members[slot] = member, g->values[slot] = NAN, g->silences[slot] = 0;
  g->registered++;
  feeds[s->fed++] = (feed){.group = which, .slot = slot};
  stream_guard(s);
  bag_unguard(&w->bag);
  window_age(e, member, w);
  double value = NAN;
  const series *from = SERIES(e) + member;
  uint8_t truth = w->silent ? MATCH_SILENT : window_value(e, from, w, s, &value) ? MATCH_TRUE : MATCH_UNKNOWN;
  group_feed(e, which, slot, truth, value, from->time);
  g->joined = truth != MATCH_TRUE;
  return 0;
}

int match_leave(match_engine *e, uint32_t which, uint32_t member) {
  stream *s;
  feed *from = is_group(e, which) && is_series(e, member) ? feed_of(e, which, member, &s) : NULL;
  if (!from) return MATCH_BAD;
  group *g = e->groups + which;
  uint32_t slot = from->slot;
  *from = s->feeds[--s->fed];
  s->fresh |= is_order(s->function); /* it counts anew */
  stream_guard(s);
  group_feed(e, which, slot, MATCH_UNKNOWN, NAN, g->at);
  g->members[slot] = NONE;
  g->registered--;
  while (g->size && g->members[g->size - 1] == NONE) g->size--;
  series_prune(e, member);
  return 0;
}

int match_close_group(match_engine *e, uint32_t which) {
  if (!is_group(e, which)) return MATCH_BAD;
  group *g = e->groups + which;
  if (g->bag.width) return MATCH_BAD;
  if (!list_reserve(&e->free_groups, e->free_groups.count + 1)) return MATCH_NO_MEMORY;
  while (g->size && !match_leave(e, which, g->members[g->size - 1])) {}
  e->counters.bytes -= g->room * (sizeof *g->values + sizeof *g->members);
  free(g->bag.sorted);
  group_close(g);
  g->open = 0;
  g->bag = (bag){0};
  list_push(&e->free_groups, which);
  return 0;
}

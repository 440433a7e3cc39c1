/* The engine: series, and batches of their samples. */
#include "match_core.h"

#include <stdlib.h>
#include <string.h>

#define MOST_SERIES ((size_t)1 << 26)
#define MOST_LEAVES ((size_t)1 << 28)

match_engine *match_new(uint32_t longest, int64_t clock) {
  match_engine *e = calloc(1, sizeof *e);
  if (!e) return NULL;
  e->longest = longest < 2 ? 2 : longest > (1u << 26) ? 1u << 26 : longest;
  e->clock = clock;
  e->scratch_room = 64;
  e->scratch = malloc(e->scratch_room * sizeof *e->scratch);
  if (e->scratch && arena_open(&e->series, sizeof(series), MOST_SERIES) &&
      arena_open(&e->extras, sizeof(extra), MOST_SERIES) && arena_open(&e->leaves, sizeof(leaf), MOST_LEAVES) &&
      arena_open(&e->truths, 1, MOST_LEAVES) && arena_open(&e->pool, LINE, MOST_POOL / LINE))
    return e;
  match_free(e);
  return NULL;
}

static void bag_close(match_engine *e, bag *b) {
  for (uint32_t i = 0; i < b->width; i++) {
    block_give(e, b->streams[i].bounds, b->streams[i].room * BOUND);
    free(b->streams[i].feeds);
  }
  block_give(e, b->streams, b->width * sizeof *b->streams);
  free(b->sorted);
}

void match_free(match_engine *e) {
  if (!e) return;
  for (size_t i = 0; i < e->series.used; i++) {
    series *s = SERIES(e) + i;
    for (uint32_t k = 0; k < s->width; k++) bag_close(e, &s->windows[k].bag);
    block_give(e, s->windows, s->width * sizeof *s->windows);
    if (s->ring) block_give(e, s->ring, (MASK(s) + 1) * SLOT);
    free(EXTRAS(e)[i].watch.items), free(EXTRAS(e)[i].timers.items), free(EXTRAS(e)[i].eager.items);
  }
  for (size_t i = 0; i < e->group_count; i++) {
    bag_close(e, &e->groups[i].bag);
    group_close(e->groups + i);
  }
  for (size_t i = 0; i < e->rule_count; i++) free(e->rules[i].program);
  arena_close(&e->series), arena_close(&e->extras), arena_close(&e->leaves), arena_close(&e->truths);
  arena_close(&e->pool);
  free(e->rules), free(e->groups), free(e->timers), free(e->scratch), free(e->edges);
  list *lists[] = {&e->dirty_rules, &e->dirty_groups, &e->free_series, &e->free_rules, &e->free_groups,
                   &e->free_timers, &e->heap};
  for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) free(lists[i]->items);
  for (size_t i = 0; i < MATCH_LEAVES + 2; i++) free(e->free_leaves[i].items);
  free(e);
}

bool match_broken(const match_engine *e) { return e->broken; }

match_counters match_count(const match_engine *e) {
  match_counters c = e->counters;
  c.bytes += e->series.used * (sizeof(series) + sizeof(extra)) + e->leaves.used * (sizeof(leaf) + 1) + e->pool.used * LINE +
             e->rule_room * sizeof(rule) + e->group_room * sizeof(group) + e->timer_room * sizeof(timer) +
             e->edge_room * sizeof(match_edge) + e->scratch_room * sizeof *e->scratch;
  return c;
}

int view_check(const match_engine *e, const match_view *view) {
  if (view->function >= MATCH_FUNCTIONS || view->span < 0 || view->span > INT64_MAX / 4) return MATCH_BAD;
  if (view->samples > e->longest) return MATCH_TOO_LONG;
  if (view->function == MATCH_QUANTILE ? view->rank > 1000000 : is_order(view->function) && !view->rank) return MATCH_BAD;
  switch (view->function) {
  case MATCH_LAST: return view->samples || view->span ? MATCH_BAD : 0;
  case MATCH_EWMA: case MATCH_ABSENT: return view->samples || !view->span ? MATCH_BAD : 0;
  default: return !view->samples == !view->span ? MATCH_BAD : 0;
  }
}

static bool is_patience(int64_t milliseconds) { return milliseconds > 0 && milliseconds <= INT64_MAX / 4; }

int64_t match_open_series(match_engine *e, int64_t patience) {
  uint32_t which;
  if (!is_patience(patience)) return MATCH_BAD;
  if (e->free_series.count) {
    which = e->free_series.items[--e->free_series.count];
  } else {
    if (e->series.used == MOST_SERIES) return MATCH_TOO_MANY;
    which = (uint32_t)e->series.used;
    if (!arena_grow(&e->series, which + 1u) || !arena_grow(&e->extras, which + 1u)) return MATCH_NO_MEMORY;
  }
  SERIES(e)[which] = (series){.time = INT64_MIN, .due = NEVER, .seen = e->clock, .flags = SERIES_OPEN};
  EXTRAS(e)[which].patience = patience;
  e->counters.series++;
  return which;
}

int match_patience(match_engine *e, uint32_t which, int64_t patience) {
  if (!is_series(e, which) || !is_patience(patience)) return MATCH_BAD;
  EXTRAS(e)[which].patience = patience;
  for (uint32_t i = 0; i < SERIES(e)[which].width; i++) {
    int wrong = window_guard_anew(e, which, SERIES(e)[which].windows + i);
    if (wrong) return e->broken = true, wrong;
  }
  return 0;
}

int64_t match_seen(const match_engine *e, uint32_t which) {
  return is_series(e, which) ? SERIES(e)[which].seen : MATCH_BAD;
}

int match_close_series(match_engine *e, uint32_t which) {
  if (!is_series(e, which)) return MATCH_BAD;
  extra *x = EXTRAS(e) + which;
  if (SERIES(e)[which].width || x->timers.count) return MATCH_BAD;
  if (!list_reserve(&e->free_series, e->free_series.count + 1)) return MATCH_NO_MEMORY;
  free(x->watch.items), free(x->timers.items), free(x->eager.items);
  *x = (extra){0};
  SERIES(e)[which].flags = 0;
  list_push(&e->free_series, which);
  e->counters.series--;
  return 0;
}

void match_settle(match_engine *e) {
  if (e->dirty_groups.count) groups_settle(e);
  if (e->dirty_rules.count) rules_settle(e);
}

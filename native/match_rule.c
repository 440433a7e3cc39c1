/* Rules: what their leaves together say, for how long, and what becomes of it. */
#include "match_core.h"

#include <stdlib.h>
#include <string.h>

static uint8_t worth(uint8_t truth, bool and) { /* what decides a conjunction, or a disjunction, most */
  static const uint8_t of_and[] = {3, 0, 1, 2}, of_or[] = {0, 3, 1, 2};
  return (and ? of_and : of_or)[truth];
}

static uint8_t truth_of(const match_engine *e, const rule *r) {
  const uint8_t *leaves = TRUTHS(e) + r->first;
  uint8_t stack[MATCH_DEPTH];
  uint32_t depth = 0;
  if (!r->length) return leaves[0] & LEAF_TRUTH;
  for (uint32_t i = 0; i < r->length; i++) {
    uint8_t step = r->program[i];
    if (step == MATCH_NOT) {
      if (stack[depth - 1] <= MATCH_TRUE) stack[depth - 1] ^= 1;
    } else if (step == MATCH_AND || step == MATCH_OR) {
      uint8_t b = stack[--depth], a = stack[depth - 1];
      stack[depth - 1] = worth(a, step == MATCH_AND) >= worth(b, step == MATCH_AND) ? a : b;
    } else {
      stack[depth++] = leaves[step] & LEAF_TRUTH;
    }
  }
  return stack[0];
}

static list *watch_of(match_engine *e, uint32_t source, int64_t **due) { /* NULL: of nothing */
  if (source == NONE) return NULL;
  if (source & GROUP) {
    group *g = e->groups + (source & ~GROUP);
    return *due = &g->due, &g->watch;
  }
  return *due = &SERIES(e)[source].due, &EXTRAS(e)[source].watch;
}

/* A sample that changes nothing ends an instant, too. Of series alone that is seen soon enough: their times say what
 * came since. Groups change when they are settled. */
static void eager_end(match_engine *e, rule *r, uint32_t which) {
  for (uint32_t i = 0; r->eager && i < r->count; i++) {
    uint32_t source = LEAVES(e)[r->first + i].source;
    list *l = source == NONE ? NULL : source & GROUP ? &e->groups[source & ~GROUP].eager : &EXTRAS(e)[source].eager;
    size_t kept = 0;
    for (size_t k = 0; l && k < l->count; k++)
      if (l->items[k] != which) l->items[kept++] = l->items[k];
    if (l) l->count = kept;
    if (l && !kept && !(source & GROUP)) SERIES(e)[source].flags &= (uint8_t)~SERIES_EAGER;
  }
  r->eager = 0;
}

static bool eager_join(match_engine *e, uint32_t which, uint32_t source) {
  if (source == NONE) return true;
  if (!list_push(source & GROUP ? &e->groups[source & ~GROUP].eager : &EXTRAS(e)[source].eager, which)) return false;
  if (!(source & GROUP)) SERIES(e)[source].flags |= SERIES_EAGER;
  return true;
}

static int eager_begin(match_engine *e, rule *r, uint32_t which) {
  r->eager = 1;
  for (uint32_t i = 0; i < r->count; i++)
    if (!eager_join(e, which, LEAVES(e)[r->first + i].source)) return MATCH_NO_MEMORY;
  return 0;
}

/* What the samples of its series must look at, though they change nothing: `for` may be over. */
static int64_t deadline(const rule *r) { return r->dirty ? INT64_MIN : r->waits ? r->since + r->hold : NEVER; }

static void watch_begin(match_engine *e, rule *r, uint32_t which) {
  r->watched = 1;
  for (uint32_t i = 0; i < r->count; i++) {
    int64_t *due;
    list *w = watch_of(e, LEAVES(e)[r->first + i].source, &due);
    if (!w) continue;
    if (!list_push(w, which)) e->broken = true; /* more than once for one series does no harm */
    if (deadline(r) < *due) *due = deadline(r);
  }
}

static void watch_again(match_engine *e, rule *r, uint32_t which) { /* it is settled */
  if (!r->watched) return;
  r->watched = r->waits;
  for (uint32_t i = 0; i < r->count; i++) {
    int64_t *due, soonest = NEVER;
    list *w = watch_of(e, LEAVES(e)[r->first + i].source, &due);
    size_t kept = 0;
    if (!w) continue;
    for (size_t k = 0; k < w->count; k++) {
      if (w->items[k] == which && !r->waits) continue;
      int64_t at = deadline(e->rules + w->items[k]);
      if (at < soonest) soonest = at;
      w->items[kept++] = w->items[k];
    }
    w->count = kept, *due = soonest;
  }
}

static int64_t newest_of(const match_engine *e, const rule *r) { /* sample of its series */
  int64_t at = INT64_MIN;
  for (uint32_t i = 0; i < r->count; i++) {
    uint32_t source = LEAVES(e)[r->first + i].source;
    if (source == NONE) continue;
    int64_t newest = source & GROUP ? e->groups[source & ~GROUP].at : SERIES(e)[source].time;
    if (newest > at) at = newest;
  }
  return at;
}

static void wake(match_engine *e, rule *r, uint32_t which) { /* when it has waited for long enough by the clock */
  const timer *t = e->timers + r->timer;
  if (t->queued && t->due > r->since + r->hold) { /* an earlier wait began later, by another clock */
    int made = timer_open(e, TIMER_HOLD, 0, r->hold, which);
    if (made < 0) {
      e->broken = true;
      return;
    }
    timer_close(e, r->timer);
    r->timer = (uint32_t)made;
  }
  timer_queue(e, r->timer, r->since + r->hold);
}

static void rule_settle(match_engine *e, uint32_t which) {
  rule *r = e->rules + which;
  r->dirty = r->born = 0;
  if (!r->open) return;
  uint8_t truth = truth_of(e, r), cleared = truth == MATCH_FALSE;
  bool by_clock = r->timed || truth == MATCH_SILENT;
  int64_t at = by_clock ? e->clock : r->at;
  if (r->clears) cleared = (TRUTHS(e)[r->first + r->count] & LEAF_TRUTH) == MATCH_TRUE;
  if (truth == MATCH_SILENT && r->nodata != MATCH_KEEP) {
    truth = r->nodata == MATCH_FIRE ? MATCH_TRUE : MATCH_FALSE;
    cleared = truth == MATCH_FALSE;
  }
  if (r->fires) {
    if (cleared) emit(e, r->first, false, at, r->value), r->fires = 0;
  } else if (truth != MATCH_TRUE) {
    r->waits = 0;
  } else {
    if (!r->waits) r->since = at;
    r->fires = at >= r->since && (uint64_t)at - (uint64_t)r->since >= (uint64_t)r->hold; /* since may be "ever" */
    r->waits = !r->fires;
    if (r->fires) emit(e, r->first, true, at, r->value);
    else if (by_clock) wake(e, r, which);
  }
  watch_again(e, r, which);
}

static void rule_mark(match_engine *e, rule *r, uint32_t which) {
  r->dirty = 1;
  if (r->hold && !r->watched && !r->fires) watch_begin(e, r, which);
  if (r->listed) return;
  r->listed = 1;
  if (!list_push(&e->dirty_rules, which)) e->broken = true;
}

void rule_touch(match_engine *e, uint32_t which, int64_t at, double value) {
  rule *r = e->rules + which;
  if (!r->eager) {
    int64_t newest = newest_of(e, r); /* one that changed nothing may have come since */
    if (newest > at) at = newest;
    if (r->dirty && r->at < at) rule_settle(e, which);
    if (at > r->at) r->at = at;
  }
  if (value == value) r->value = value;
  rule_mark(e, r, which);
}

void rules_look(match_engine *e, const list *eager, int64_t at) {
  for (size_t k = 0; k < eager->count; k++) {
    uint32_t which = eager->items[k];
    rule *r = e->rules + which;
    bool over = r->dirty && !r->born && r->at < at; /* an earlier instant */
    for (uint32_t i = 0; over && i < r->count; i++) {
      uint32_t source = LEAVES(e)[r->first + i].source;
      group *g = source != NONE && source & GROUP ? e->groups + (source & ~GROUP) : NULL;
      if (g && g->dirty & DIRTY_EARLY && !g->joined) group_peek(e, g);
    }
    if (over) rule_settle(e, which);
    if (at > INT64_MIN) r->born = 0;
    if (at > r->at) r->at = at;
    rule_mark(e, r, which);
  }
}

void rules_settle(match_engine *e) {
  for (size_t i = 0; i < e->dirty_rules.count; i++) {
    uint32_t which = e->dirty_rules.items[i];
    e->rules[which].listed = 0;
    if (e->rules[which].dirty) rule_settle(e, which);
  }
  e->dirty_rules.count = 0;
}

void watch_due(match_engine *e, const list *w, int64_t at) {
  for (size_t i = w->count; i-- > 0;) {
    if (i >= w->count) continue; /* some stopped waiting meanwhile */
    if (deadline(e->rules + w->items[i]) <= at) rule_touch(e, w->items[i], at, NAN);
  }
}

/* ---- rules come and go */

typedef struct limit { double bound; uint32_t name; } limit; /* one entry among a stream's bounds */

static uint32_t limits_of(uint8_t compare, double threshold, uint32_t leaf, uint32_t kind, limit *to) {
  double above = nextafter(threshold, INFINITY);
  switch (compare) {
  case MATCH_ABOVE: to[0] = (limit){above, leaf | kind}; return 1;
  case MATCH_AT_LEAST: to[0] = (limit){threshold, leaf | kind}; return 1;
  case MATCH_BELOW: to[0] = (limit){threshold, leaf | kind | NAME_NOT}; return 1;
  case MATCH_AT_MOST: to[0] = (limit){above, leaf | kind | NAME_NOT}; return 1;
  default: {
    uint32_t name = leaf | NAME_BETWEEN | (compare == MATCH_UNEQUAL ? NAME_NOT : 0);
    to[0] = (limit){threshold, name}, to[1] = (limit){above, name};
    return 2;
  }
  }
}

stream *view_stream(match_engine *e, uint32_t source, bool of_group, const match_view *view, uint8_t asks) {
  bag *b = &e->groups[of_group ? source : 0].bag;
  if (!of_group) {
    window *w = window_find(e, source, view);
    if (!w) return NULL;
    b = &w->bag;
  }
  return bag_stream(e, b, view->function, view->rank, asks, false);
}

static uint8_t asks_of(const match_term *t, bool eager) { /* if it is of a group */
  return t->of_group ? (uint8_t)((t->quorum ? ASKS_ALL : 0) | (eager ? ASKS_EARLY : 0)) : 0;
}

static int need(match_engine *e, const match_term *t, uint32_t which, uint32_t room, bool whole, bool eager) {
  stream *s;
  LEAVES(e)[which].source = t->source | (t->of_group ? GROUP : 0);
  if (t->source == MATCH_NOTHING) return 0;
  if (t->view.function == MATCH_ABSENT) {
    list *absences = &EXTRAS(e)[t->source].timers;
    if (!list_reserve(absences, absences->count + 1)) return MATCH_NO_MEMORY;
    int made = timer_open(e, TIMER_ABSENT, t->source, t->view.span, which);
    if (made < 0) return made;
    list_push(absences, (uint32_t)made);
    series *from = SERIES(e) + t->source;
    if (from->flags & SERIES_ANY) TRUTHS(e)[which] = (uint8_t)((TRUTHS(e)[which] & ~LEAF_TRUTH) | MATCH_FALSE);
    else from->flags |= SERIES_ASKED;
    return 0;
  }
  if (t->of_group) {
    group *g = e->groups + t->source;
    s = bag_stream(e, &g->bag, t->view.function, t->view.rank, asks_of(t, eager), true);
    if (!s) return MATCH_NO_MEMORY;
    uint8_t needs = bag_needs(s->function);
    if (needs & (uint8_t)~g->bag.needs) g->bag.needs |= needs, bag_count(&g->bag, group_values(g));
    return stream_room(e, s, room);
  }
  window *w;
  int wrong = window_need(e, t->source, &t->view, &w);
  if (wrong) return wrong;
  if (!(s = bag_stream(e, &w->bag, t->view.function, t->view.rank, 0, true))) return MATCH_NO_MEMORY;
  if ((wrong = window_learn(e, t->source, w, s))) return wrong;
  if (whole && (wrong = window_guard(e, t->source, w))) return wrong;
  return stream_room(e, s, room);
}

/* Insert, then find out what holds now. There is room. */
static void enter(match_engine *e, const match_term *t, const limit *limits, uint32_t count, uint32_t leaf, bool eager) {
  stream *s = view_stream(e, t->source, t->of_group, &t->view, asks_of(t, eager));
  for (uint32_t i = 0; i < count; i++) stream_insert(e, s, limits[i].bound, limits[i].name);
  double value = NAN;
  bool known;
  int64_t at;
  const series *from = SERIES(e) + (t->of_group ? 0 : t->source);
  window *w = t->of_group ? NULL : window_find(e, t->source, &t->view);
  values v = t->of_group ? group_values(e->groups + t->source) : window_values(from, w);
  uint8_t why = MATCH_UNKNOWN;
  if (is_order(s->function)) stream_count(s, v);
  if (t->of_group) {
    group *g = e->groups + t->source;
    known = group_value(e, g, s, &value), at = g->at;
    if (!known && g->registered && g->silent == g->registered) why = MATCH_SILENT;
  } else {
    bag_unguard(&w->bag);
    window_age(e, t->source, w);
    known = window_value(e, from, w, s, &value), at = from->time;
    if (w->silent) why = MATCH_SILENT;
  }
  if (known) {
    for (uint32_t i = 0; i < count; i++) stream_meet(e, s, limits[i].bound, limits[i].name, value, at);
  } else {
    if (t->of_group && s->known) s->fresh = 1, stream_guard(s); /* what made it unknown is yet to be settled */
    leaf_set(e, leaf, why, INT64_MIN, NAN);
  }
  if (is_order(s->function)) stream_count(s, v);
}

static void withdraw(match_engine *e, uint32_t which) {
  uint32_t source = LEAVES(e)[which].source;
  if (source == NONE) return;
  if (source & GROUP) {
    bag *b = &e->groups[source & ~GROUP].bag;
    for (uint32_t i = 0; i < b->width && !stream_drop(e, b->streams + i, which); i++) {}
    bag_prune(e, b);
    return;
  }
  list *absences = &EXTRAS(e)[source].timers;
  for (size_t i = 0; i < absences->count; i++)
    if (e->timers[absences->items[i]].subject == which) {
      timer_close(e, absences->items[i]);
      absences->items[i] = absences->items[--absences->count];
      return;
    }
  series *s = SERIES(e) + source;
  for (uint32_t i = 0; i < s->width; i++)
    for (uint32_t k = 0; k < s->windows[i].bag.width; k++)
      if (stream_drop(e, s->windows[i].bag.streams + k, which)) i = s->width - 1u, k = UINT16_MAX;
  series_prune(e, source);
}

int program_check(const uint8_t *program, uint32_t length, uint32_t count) {
  uint32_t depth = 0;
  if (!length) return count == 1 ? 0 : MATCH_BAD;
  for (uint32_t i = 0; i < length; i++) {
    uint8_t step = program[i];
    if (step == MATCH_NOT ? depth < 1 : step >= MATCH_AND && depth < 2) return MATCH_BAD;
    if (step < MATCH_NOT && (step >= count || ++depth > MATCH_DEPTH)) return MATCH_BAD;
    depth -= step >= MATCH_AND;
  }
  return depth == 1 ? 0 : MATCH_BAD;
}

static int term_check(const match_engine *e, const match_term *t) {
  uint32_t function = t->view.function;
  if (t->source != MATCH_NOTHING && (t->of_group ? !is_group(e, t->source) : !is_series(e, t->source))) return MATCH_BAD;
  if (function == MATCH_ABSENT ? t->of_group || t->compare != MATCH_NEVER : t->compare >= MATCH_NEVER || !isfinite(t->threshold))
    return MATCH_BAD;
  match_view view = t->view;
  if (t->of_group) {
    if (t->source == MATCH_NOTHING || view.samples || view.span || function == MATCH_LAST || function > MATCH_LARGEST)
      return MATCH_BAD;
    view.samples = 1; /* as a window must have something */
  }
  return view_check(e, &view);
}

static int rule_check(const match_engine *e, const match_rule *r) {
  if (!r->count || r->count > MATCH_LEAVES || r->length > UINT16_MAX || r->hold < 0 || r->hold > INT64_MAX / 4 ||
      r->nodata > MATCH_FIRE || r->clears > MATCH_NEVER || (r->clears != MATCH_NEVER && (r->count > 1 || r->length)))
    return MATCH_BAD;
  if (r->clears != MATCH_NEVER && !isfinite(r->clear)) return MATCH_BAD;
  for (uint32_t i = 0; i < r->count; i++) {
    const match_term *t = r->terms + i;
    if (r->count == 1 && t->source == MATCH_NOTHING) return MATCH_BAD;
    if (t->view.function == MATCH_ABSENT && r->clears != MATCH_NEVER) return MATCH_BAD;
    int wrong = term_check(e, t);
    if (wrong) return wrong;
  }
  return program_check(r->program, r->length, r->count);
}

static int64_t leaves_take(match_engine *e, uint32_t count) {
  list *l = e->free_leaves + count;
  if (l->count) return l->items[--l->count];
  size_t first = e->leaves.used;
  if (!arena_grow(&e->leaves, first + count) || !arena_grow(&e->truths, first + count)) return MATCH_NO_MEMORY;
  return (int64_t)first;
}

static void leaves_give(match_engine *e, uint32_t first, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) TRUTHS(e)[first + i] = LEAF_FREE;
  if (!list_push(e->free_leaves + count, first)) e->broken = true;
}

static int64_t rule_open(match_engine *e, const match_rule *r, uint32_t first) {
  uint32_t which;
  if (e->free_rules.count) {
    which = e->free_rules.items[--e->free_rules.count];
  } else {
    rule *rules = grown(e->rules, &e->rule_room, e->rule_count + 1, sizeof *rules);
    if (!rules) return MATCH_NO_MEMORY;
    e->rules = rules;
    if (!list_reserve(&e->free_rules, e->rule_room) || !list_reserve(&e->dirty_rules, e->rule_room))
      return MATCH_NO_MEMORY;
    which = (uint32_t)e->rule_count++;
  }
  rule *made = e->rules + which;
  *made = (rule){.first = first, .hold = r->hold, .at = INT64_MIN, .value = NAN, .length = (uint16_t)r->length,
                 .count = (uint8_t)r->count, .nodata = r->nodata, .clears = r->clears != MATCH_NEVER, .timer = NONE,
                 .owner = r->owner};
  for (uint32_t i = 0; i < r->count; i++)
    made->timed |= r->terms[i].view.function == MATCH_ABSENT, made->grouped |= r->terms[i].of_group != 0;
  int timer = timer_open(e, TIMER_HOLD, 0, r->hold, which);
  if (timer >= 0) made->timer = (uint32_t)timer;
  if (timer < 0 || (r->length && !(made->program = malloc(r->length)))) {
    if (timer >= 0) timer_close(e, made->timer);
    list_push(&e->free_rules, which);
    return MATCH_NO_MEMORY;
  }
  if (r->length) memcpy(made->program, r->program, r->length);
  made->open = 1;
  return which;
}

static void rule_close(match_engine *e, uint32_t which) {
  rule *r = e->rules + which;
  r->dirty = r->waits = 0;
  watch_again(e, r, which);
  eager_end(e, r, which);
  timer_close(e, r->timer);
  free(r->program);
  r->program = NULL, r->open = 0;
  list_push(&e->free_rules, which);
}

static bool is_between(uint8_t compare) { return compare == MATCH_EQUAL || compare == MATCH_UNEQUAL; }

int64_t match_add(match_engine *e, const match_rule *r) {
  int wrong = rule_check(e, r);
  if (wrong) return wrong;
  bool clears = r->clears != MATCH_NEVER;
  bool whole = r->count > 1 || r->length || r->hold || r->nodata != MATCH_KEEP || /* more than a leaf can know */
               (clears && (is_between(r->clears) || is_between(r->terms[0].compare)));
  uint32_t count = r->count + (whole && clears);
  int64_t first = leaves_take(e, count), which = NONE;
  if (first < 0) return first;
  for (uint32_t i = 0; i < count; i++) {
    LEAVES(e)[first + i] = (leaf){.source = NONE, .rule = r->owner};
    TRUTHS(e)[first + i] = whole ? MATCH_UNKNOWN : MATCH_FALSE | LEAF_WHOLE;
  }
  if (whole && (which = rule_open(e, r, (uint32_t)first)) < 0) {
    leaves_give(e, (uint32_t)first, count);
    return which;
  }
  uint32_t room = count > 1 || clears ? 4 * count : 1u + is_between(r->terms[0].compare);
  for (uint32_t i = 0; i < count && !wrong; i++)
    wrong = need(e, r->terms + (i < r->count ? i : 0), (uint32_t)first + i, room, whole, r->count > 1);
  if (!wrong && whole && r->count > 1 && e->rules[which].grouped)
    wrong = eager_begin(e, e->rules + which, (uint32_t)which);
  if (wrong) {
    if (whole) rule_close(e, (uint32_t)which);
    for (uint32_t i = 0; i < count; i++) withdraw(e, (uint32_t)first + i);
    leaves_give(e, (uint32_t)first, count);
    return wrong;
  }
  for (uint32_t i = 0; whole && i < count; i++) LEAVES(e)[first + i].rule = (uint32_t)which;
  for (uint32_t i = 0; i < count; i++) {
    const match_term *t = r->terms + (i < r->count ? i : 0);
    uint32_t leaf = (uint32_t)first + i, named = whole ? leaf | NAME_PART : leaf, made;
    limit limits[4];
    if (t->view.function == MATCH_ABSENT || t->source == MATCH_NOTHING) continue;
    if (i == r->count) {
      made = limits_of(r->clears, r->clear, named, NAME_PLAIN, limits);
    } else {
      made = limits_of(t->compare, t->threshold, named, clears && !whole ? NAME_FIRES : NAME_PLAIN, limits);
      if (clears && !whole) { /* it ends when "not clears" becomes false */
        made += limits_of(r->clears, r->clear, named, NAME_CLEARS, limits + made);
        limits[made - 1].name ^= NAME_NOT;
      }
    }
    enter(e, t, limits, made, leaf, r->count > 1);
  }
  if (whole) {
    e->rules[which].at = newest_of(e, e->rules + which);
    rule_touch(e, (uint32_t)which, INT64_MIN, NAN);
    e->rules[which].born = 1;
  }
  e->counters.rules++;
  return first;
}

static bool is_rule(const match_engine *e, uint32_t which) {
  if (which >= e->leaves.used || TRUTHS(e)[which] & LEAF_FREE) return false;
  uint32_t owner = RULE_OF(e, which);
  return owner == NONE || e->rules[owner].first == which;
}

int match_add_each(match_engine *e, const match_rule *r, const uint32_t *sources, size_t count, uint32_t *made) {
  match_term terms[MATCH_LEAVES];
  match_rule each = *r;
  if (!r->count || r->count > MATCH_LEAVES) return MATCH_BAD;
  memcpy(terms, r->terms, r->count * sizeof *terms);
  each.terms = terms;
  for (size_t done = 0; done < count; done++) {
    for (uint32_t i = 0; i < r->count; i++) terms[i].source = *sources++;
    int64_t one = match_add(e, &each);
    if (one < 0) {
      while (done--) match_remove(e, made[done]);
      return (int)one;
    }
    made[done] = (uint32_t)one;
  }
  return 0;
}

int match_bind(match_engine *e, uint32_t which, uint32_t index, const match_term *t) {
  uint32_t owner = is_rule(e, which) ? RULE_OF(e, which) : NONE, at = which + index;
  if (owner == NONE || index >= e->rules[owner].count || LEAVES(e)[at].source != NONE) return MATCH_BAD;
  rule *r = e->rules + owner;
  int wrong = t->source == MATCH_NOTHING || t->of_group ? MATCH_BAD : term_check(e, t);
  if (wrong) return wrong;
  wrong = need(e, t, at, 4u * r->count, true, false);
  if (wrong) {
    withdraw(e, at);
    LEAVES(e)[at].source = NONE;
    return wrong;
  }
  if (r->eager && !eager_join(e, owner, t->source)) e->broken = true;
  if (r->watched && !list_push(&EXTRAS(e)[t->source].watch, owner)) e->broken = true;
  if (r->watched && deadline(r) < SERIES(e)[t->source].due) SERIES(e)[t->source].due = deadline(r);
  if (t->view.function != MATCH_ABSENT) {
    limit limits[4];
    enter(e, t, limits, limits_of(t->compare, t->threshold, at | NAME_PART, NAME_PLAIN, limits), at, false);
  }
  rule_touch(e, owner, INT64_MIN, NAN);
  return 0;
}

int match_remove(match_engine *e, uint32_t which) {
  if (!is_rule(e, which)) return MATCH_BAD;
  uint32_t owner = RULE_OF(e, which), count = 1;
  if (owner != NONE) {
    count = e->rules[owner].count + (uint32_t)e->rules[owner].clears;
    rule_close(e, owner);
  }
  for (uint32_t i = 0; i < count; i++) withdraw(e, which + i);
  leaves_give(e, which, count);
  e->counters.rules--;
  return 0;
}

bool match_fires(const match_engine *e, uint32_t which) {
  if (!is_rule(e, which)) return false;
  uint32_t owner = RULE_OF(e, which);
  return owner == NONE ? (TRUTHS(e)[which] & LEAF_TRUTH) == MATCH_TRUE : e->rules[owner].fires;
}

uint32_t match_source(const match_engine *e, uint32_t which) {
  uint32_t source = is_rule(e, which) ? LEAVES(e)[which].source : NONE;
  return source & GROUP ? MATCH_NOTHING : source;
}

/* Snapshots: all that an engine knows as one run of bytes, and back. An image is trusted to be right, not to be safe:
 * every number in it that leads somewhere is checked, so that a damaged one is refused or matches nonsense. */
#include "match_core.h"

#include <stdlib.h>
#include <string.h>

#define MAGIC 0x315245484354414dull /* also says the byte order */
#define VERSION 5u

typedef struct head {
  uint64_t magic;
  uint32_t version, longest;
  uint32_t sizes[8]; /* of what is written as it lies in memory: a build that lays it out otherwise refuses it */
  uint64_t series, leaves, rules, groups, timers, edges;
  int64_t clock;
  match_counters counters;
} head;

static const uint32_t SIZES[8] = {sizeof(series), sizeof(window), sizeof(stream), sizeof(rule),
                                  sizeof(group), sizeof(timer), sizeof(match_edge), sizeof(head)};

/* ---- out */

typedef struct writer { uint8_t *to; size_t room, used; } writer;

static void put(writer *w, const void *from, size_t size) {
  if (size && w->used + size <= w->room) memcpy(w->to + w->used, from, size);
  w->used += size;
}

static void put_list(writer *w, const list *l) {
  uint64_t count = l->count;
  put(w, &count, sizeof count);
  put(w, l->items, l->count * sizeof *l->items);
}

static void put_bag(writer *w, const bag *b) {
  for (uint32_t i = 0; i < b->width; i++) {
    const stream *s = b->streams + i;
    put(w, s, sizeof *s);
    put(w, s->bounds, s->count * sizeof *s->bounds);
    if (s->count) put(w, NAMES(s), s->count * sizeof(uint32_t));
    put(w, s->feeds, s->fed * sizeof *s->feeds);
  }
}

int64_t match_save(const match_engine *e, uint8_t *image, size_t room) {
  if (e->dirty_groups.count || e->dirty_rules.count) return MATCH_BAD;
  writer w = {.to = image, .room = image ? room : 0};
  head h = {.magic = MAGIC, .version = VERSION, .longest = e->longest, .series = e->series.used,
            .leaves = e->leaves.used, .rules = e->rule_count, .groups = e->group_count, .timers = e->timer_count,
            .edges = e->made, .clock = e->clock, .counters = e->counters};
  memcpy(h.sizes, SIZES, sizeof SIZES);
  put(&w, &h, sizeof h);
  for (size_t i = 0; i < e->series.used; i++) {
    const series *s = SERIES(e) + i;
    const extra *x = EXTRAS(e) + i;
    put(&w, s, sizeof *s);
    if (s->ring) put(&w, s->ring, (MASK(s) + 1) * 2 * sizeof *s->ring);
    for (uint32_t k = 0; k < s->width; k++) {
      put(&w, s->windows + k, sizeof *s->windows);
      put_bag(&w, &s->windows[k].bag);
      if (s->windows[k].change) put(&w, s->windows[k].change, sizeof(change));
    }
    put(&w, &x->patience, sizeof x->patience);
    put_list(&w, &x->watch), put_list(&w, &x->timers), put_list(&w, &x->eager);
  }
  put(&w, e->leaves.base, e->leaves.used * sizeof(leaf));
  put(&w, e->truths.base, e->truths.used);
  for (size_t i = 0; i < e->rule_count; i++) {
    put(&w, e->rules + i, sizeof *e->rules);
    if (e->rules[i].open) put(&w, e->rules[i].program, e->rules[i].length);
  }
  for (size_t i = 0; i < e->group_count; i++) {
    const group *g = e->groups + i;
    put(&w, g, sizeof *g);
    put(&w, g->values, g->size * sizeof *g->values);
    put(&w, g->members, g->size * sizeof *g->members);
    put(&w, g->silences, g->size);
    put_bag(&w, &g->bag);
    put_list(&w, &g->watch), put_list(&w, &g->eager);
  }
  put(&w, e->timers, e->timer_count * sizeof *e->timers);
  put_list(&w, &e->heap); /* as it lies: of timers that are due together the order is told by nothing else */
  for (uint32_t i = 0; i < MATCH_LEAVES + 2; i++) put_list(&w, e->free_leaves + i);
  if (e->edges) put(&w, e->edges, e->made * sizeof *e->edges);
  return (int64_t)w.used;
}

/* ---- in */

typedef struct reader { const uint8_t *from; size_t left; bool wrong; match_engine *e; const head *head; } reader;

static bool get(reader *r, void *to, size_t size) {
  if (r->wrong || r->left < size) return r->wrong = true, false;
  if (size) memcpy(to, r->from, size);
  r->from += size, r->left -= size;
  return true;
}

static void *get_array(reader *r, size_t count, size_t size) { /* NULL: none, or wrong */
  if (!count) return NULL;
  if (r->wrong || count > r->left / size) return r->wrong = true, NULL;
  void *made = malloc(count * size);
  if (!made) return r->wrong = true, NULL;
  get(r, made, count * size);
  return made;
}

static void *get_block(reader *r, size_t count, size_t size) {
  if (!count) return NULL;
  if (r->wrong || count > r->left / size) return r->wrong = true, NULL;
  void *made = block_take(r->e, count * size);
  if (!made) return r->wrong = true, NULL;
  get(r, made, count * size);
  return made;
}

static void require(reader *r, bool right) {
  if (!right) r->wrong = true;
}

static void get_list(reader *r, list *l, uint64_t most) {
  uint64_t count = 0;
  *l = (list){0};
  get(r, &count, sizeof count);
  l->items = get_array(r, r->wrong ? 0 : count, sizeof *l->items);
  if (r->wrong || !l->items) return;
  l->count = l->room = count;
  for (uint64_t i = 0; i < count; i++) require(r, l->items[i] < most);
}

static void get_stream(reader *r, stream *s) {
  s->bounds = NULL, s->feeds = NULL, s->room = s->count;
  uint16_t fed = s->fed;
  s->fed = 0;
  require(r, s->at <= s->count && s->count <= MATCH_BOUNDS && s->function < MATCH_ABSENT && s->lacks <= MATCH_SILENT);
  s->bounds = get_block(r, r->wrong ? 0 : s->count, BOUND);
  if (r->wrong) {
    s->bounds = NULL, s->count = s->room = s->at = 0;
    return;
  }
  for (uint32_t i = 0; i < s->count; i++) {
    require(r, (NAMES(s)[i] & NAME_LEAF) < r->head->leaves);
    require(r, s->bounds[i] == s->bounds[i] && (!i || s->bounds[i - 1] <= s->bounds[i]));
  }
  s->feeds = get_array(r, fed, sizeof *s->feeds);
  if (s->feeds) s->fed = fed;
  stream_guard(s);
}

static void get_bag(reader *r, bag *b, bool of_group) {
  uint16_t width = b->width;
  b->streams = NULL, b->sorted = NULL, b->width = b->orders = 0, b->needs = 0;
  require(r, b->infinite <= b->count);
  if (r->e->scratch_room < b->count && !r->wrong && b->count <= r->left / sizeof(double)) {
    double *scratch = realloc(r->e->scratch, b->count * sizeof *scratch);
    if (scratch) r->e->scratch = scratch, r->e->scratch_room = b->count;
  }
  require(r, r->e->scratch_room >= b->count);
  if (r->wrong || !width) return;
  if (!(b->streams = block_take(r->e, width * sizeof *b->streams))) {
    r->wrong = true;
    return;
  }
  for (; b->width < width && !r->wrong; b->width++) {
    stream *s = b->streams + b->width;
    if (!get(r, s, sizeof *s)) *s = (stream){0};
    get_stream(r, s);
    b->needs |= bag_needs(s->function);
    require(r, !is_order(s->function) || b->orders++ == b->width);
    if (of_group) require(r, !s->fed && s->function != MATCH_LAST && s->function <= MATCH_LARGEST);
  }
}

/* What follows from the values is counted anew: a window that was sorted is sorted again when that pays. */
static void check_bag(reader *r, bag *b, values v) {
  uint32_t infinite = 0;
  for (uint32_t i = 0; i < v.count; i++) infinite += isinf(v.first[i]) != 0;
  for (uint32_t i = 0; i < v.rest; i++) infinite += isinf(v.second[i]) != 0;
  require(r, infinite == b->infinite);
  for (uint32_t i = 0; i < b->orders; i++) stream_count(b->streams + i, v);
  bag_unguard(b);
}

static void get_window(reader *r, const series *s, window *w) {
  bool kept = !w->smooths && (w->samples || w->span), changes = w->change != NULL;
  uint64_t count = w->bag.count;
  w->change = NULL;
  get_bag(r, &w->bag, false);
  if (changes) w->change = get_block(r, 1, sizeof *w->change);
  require(r, w->change || !(w->smooths || w->bag.needs & NEEDS_GAIN));
  require(r, w->timer == NONE || w->timer < r->head->timers);
  require(r, !kept || (s->ring && count <= MASK(s) && count <= s->head && count <= r->head->longest));
  require(r, w->samples <= r->head->longest && (!w->samples || (s->ring && count <= w->samples && w->samples <= MASK(s))));
  require(r, w->span >= 0 && (!w->smooths || w->span));
  require(r, kept || !w->bag.count);
  if (!r->wrong) check_bag(r, &w->bag, kept ? window_values(s, w) : (values){0});
  for (uint32_t i = 0; i < w->bag.width && !r->wrong; i++) {
    uint8_t function = w->bag.streams[i].function;
    require(r, (function == MATCH_EWMA) == (w->smooths != 0) && (function == MATCH_LAST) == (!kept && !w->smooths));
  }
}

static void get_series(reader *r, series *s, extra *x) {
  bool ring = s->ring != NULL;
  uint16_t width = s->width;
  s->ring = NULL, s->windows = NULL, s->width = 0;
  s->flags &= (uint8_t)~(SERIES_TIMED | SERIES_NEWEST);
  require(r, s->scale < 28);
  if (ring && !r->wrong) s->ring = get_block(r, MASK(s) + 1, SLOT);
  if (s->ring && r->e->scratch_room <= MASK(s)) {
    double *scratch = realloc(r->e->scratch, (MASK(s) + 1) * sizeof *scratch);
    if (scratch) r->e->scratch = scratch, r->e->scratch_room = MASK(s) + 1;
    require(r, scratch != NULL);
  }
  for (uint64_t i = 0; s->ring && i <= MASK(s); i++)
    if (!(s->ring[i] == s->ring[i])) s->ring[i] = 0; /* what was never written */
  if (width && !r->wrong && !(s->windows = block_take(r->e, width * sizeof *s->windows))) r->wrong = true;
  for (; s->width < width && !r->wrong; s->width++) {
    window *w = s->windows + s->width;
    if (get(r, w, sizeof *w)) get_window(r, s, w);
    else *w = (window){0};
    bool newest = !w->samples && !w->span;
    require(r, newest ? !s->width && w->bag.width == 1 : w->bag.width > 0);
    if (newest) s->flags |= SERIES_NEWEST;
    if (w->span && !w->smooths) s->flags |= SERIES_TIMED;
  }
  get(r, &x->patience, sizeof x->patience);
  get_list(r, &x->watch, r->head->rules), get_list(r, &x->timers, r->head->timers), get_list(r, &x->eager, r->head->rules);
}

static void get_group(reader *r, group *g) {
  g->values = NULL, g->members = NULL, g->silences = NULL, g->watch = g->eager = (list){0};
  g->dirty = g->listed = g->joined = 0;
  size_t size = g->size;
  g->values = get_array(r, size, sizeof *g->values);
  g->members = get_array(r, size, sizeof *g->members);
  g->silences = get_array(r, size, 1);
  if (r->wrong) {
    g->size = g->room = 0, g->bag = (bag){0};
    return;
  }
  g->room = g->size;
  uint32_t known = 0;
  for (size_t i = 0; i < size; i++) {
    known += g->values[i] == g->values[i];
    require(r, g->members[i] == NONE || g->members[i] < r->head->series);
  }
  require(r, known == g->bag.count);
  get_bag(r, &g->bag, true);
  if (!r->wrong) check_bag(r, &g->bag, group_values(g));
  get_list(r, &g->watch, r->head->rules), get_list(r, &g->eager, r->head->rules);
}

static void check_links(reader *r) { /* what is said of others, now that they are all there */
  const match_engine *e = r->e;
  for (size_t i = 0; i < e->series.used; i++)
    for (uint32_t k = 0; k < SERIES(e)[i].width; k++)
      for (uint32_t n = 0; n < SERIES(e)[i].windows[k].bag.width; n++) {
        const stream *s = SERIES(e)[i].windows[k].bag.streams + n;
        for (uint32_t f = 0; f < s->fed; f++)
          require(r, is_group(e, s->feeds[f].group) && s->feeds[f].slot < e->groups[s->feeds[f].group].size);
      }
  for (size_t i = 0; i < e->leaves.used; i++) {
    const leaf *l = LEAVES(e) + i;
    if (TRUTHS(e)[i] & LEAF_FREE) continue;
    require(r, TRUTHS(e)[i] & LEAF_WHOLE || (l->rule < e->rule_count && e->rules[l->rule].open));
    if (l->source == NONE) continue;
    require(r, l->source & GROUP ? is_group(e, l->source & ~GROUP) : is_series(e, l->source));
  }
  for (size_t i = 0; i < e->rule_count; i++) {
    const rule *m = e->rules + i;
    if (!m->open) continue;
    require(r, m->count && m->count <= MATCH_LEAVES && (uint64_t)m->first + m->count + m->clears <= e->leaves.used);
    require(r, m->timer < e->timer_count && m->nodata <= MATCH_FIRE && m->clears <= 1);
    require(r, !program_check(m->program, m->length, m->count));
    for (uint32_t k = 0; k < m->count && !r->wrong; k++)
      require(r, (m->count > 1 || LEAVES(e)[m->first].source != NONE) && !(TRUTHS(e)[m->first + k] & LEAF_FREE) &&
                     RULE_OF(e, m->first + k) == i);
  }
  for (size_t i = 0; i < e->timer_count; i++) {
    const timer *t = e->timers + i;
    if (!t->open) continue;
    require(r, t->kind <= TIMER_HOLD && t->span >= 0 && t->span <= INT64_MAX / 2 && t->series < e->series.used);
    require(r, t->kind != TIMER_ABSENT || t->subject < e->leaves.used);
    require(r, t->kind != TIMER_HOLD || (t->subject < e->rule_count && e->rules[t->subject].open));
  }
}

static void get_rest(reader *r, match_engine *e) {
  const head *h = r->head;
  get(r, e->leaves.base, h->leaves * sizeof(leaf));
  get(r, e->truths.base, h->leaves);
  e->rules = h->rules && h->rules <= r->left / sizeof(rule) ? calloc(h->rules, sizeof(rule)) : NULL;
  require(r, !h->rules || e->rules);
  for (e->rule_room = h->rules; e->rule_count < h->rules && !r->wrong; e->rule_count++) {
    rule *m = e->rules + e->rule_count;
    if (!get(r, m, sizeof *m)) *m = (rule){0};
    m->program = m->open ? get_array(r, m->length, 1) : NULL;
    m->dirty = m->listed = 0;
  }
  e->groups = h->groups && h->groups <= r->left / sizeof(group) ? calloc(h->groups, sizeof(group)) : NULL;
  require(r, !h->groups || e->groups);
  for (e->group_room = h->groups; e->group_count < h->groups && !r->wrong; e->group_count++) {
    group *g = e->groups + e->group_count;
    if (!get(r, g, sizeof *g)) *g = (group){0};
    get_group(r, g);
  }
  e->timers = get_array(r, h->timers, sizeof(timer));
  if (e->timers) e->timer_count = e->timer_room = h->timers;
  get_list(r, &e->heap, e->timer_count);
  for (uint32_t i = 0; i < MATCH_LEAVES + 2; i++) {
    get_list(r, e->free_leaves + i, h->leaves);
    for (size_t k = 0; k < e->free_leaves[i].count && !r->wrong; k++)
      require(r, e->free_leaves[i].items[k] + (uint64_t)i <= h->leaves);
  }
  e->edges = get_array(r, h->edges, sizeof(match_edge));
  if (e->edges) e->made = e->edge_room = h->edges;
  for (size_t i = 0; i < e->made; i++) require(r, e->edges[i].rule < h->leaves);
}

static void rebuild(reader *r, match_engine *e) { /* lists that follow from the rest */
  bool ok = list_reserve(&e->heap, e->timer_count + 1) && list_reserve(&e->free_timers, e->timer_count + 1) &&
            list_reserve(&e->free_rules, e->rule_count + 1);
  for (size_t i = 0; i < e->series.used; i++)
    if (ok && !(SERIES(e)[i].flags & SERIES_OPEN)) ok = list_push(&e->free_series, (uint32_t)i);
  for (size_t i = 0; i < e->rule_count; i++)
    if (ok && !e->rules[i].open) ok = list_push(&e->free_rules, (uint32_t)i);
  for (size_t i = 0; i < e->group_count; i++)
    if (ok && !e->groups[i].open) ok = list_push(&e->free_groups, (uint32_t)i);
  for (size_t i = 0; i < e->timer_count; i++) e->timers[i].queued = 0;
  for (size_t i = 0; i < e->heap.count; i++) {
    timer *t = e->timers + e->heap.items[i];
    require(r, !t->queued && e->timers[e->heap.items[i ? (i - 1) / 2 : 0]].due <= t->due);
    t->queued = 1, e->dead += !t->open;
  }
  for (size_t i = 0; ok && i < e->timer_count; i++)
    if (!e->timers[i].open && !e->timers[i].queued) list_push(&e->free_timers, (uint32_t)i);
  require(r, ok);
}

match_engine *match_load(const uint8_t *image, size_t size) {
  head h;
  reader r = {.from = image, .left = size, .head = &h};
  if (!get(&r, &h, sizeof h) || h.magic != MAGIC || h.version != VERSION || memcmp(h.sizes, SIZES, sizeof SIZES))
    return NULL;
  if (h.series > r.left / sizeof(series) || h.leaves > r.left / sizeof(leaf) || h.timers > r.left) return NULL;
  match_engine *e = match_new(h.longest, h.clock);
  if (!e) return NULL;
  r.e = e;
  require(&r, e->longest == h.longest && arena_grow(&e->leaves, h.leaves) && arena_grow(&e->truths, h.leaves));
  for (size_t i = 0; i < h.series && !r.wrong; i++) {
    if (!arena_grow(&e->series, i + 1) || !arena_grow(&e->extras, i + 1)) r.wrong = true;
    else if (!get(&r, SERIES(e) + i, sizeof(series))) SERIES(e)[i] = (series){0};
    else get_series(&r, SERIES(e) + i, EXTRAS(e) + i);
  }
  if (!r.wrong) get_rest(&r, e);
  e->counters = h.counters;
  if (!r.wrong) check_links(&r);
  if (!r.wrong) rebuild(&r, e);
  if (!r.wrong && !r.left) return e;
  match_free(e);
  return NULL;
}

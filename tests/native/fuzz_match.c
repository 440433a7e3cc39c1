/* Any sequence of calls on the matcher, under libFuzzer with ASan and UBSan.
 *
 * Two engines are driven alike, and one of them is saved and loaded again and again: both must say the same. Edges of a
 * rule must alternate. At the end a damaged snapshot must be refused or be harmless. */
#include "match.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SERIES = 6, GROUPS = 3, RULES = 64, BATCH = 16 };
#define CHECK(truth) do { if (!(truth)) abort(); } while (0)

static const uint8_t *input;
static size_t left;

static uint32_t take(uint32_t below) {
  if (!left) return 0;
  left--;
  return *input++ % below;
}

static double number(void) {
  static const double odd[] = {0, -0.0, 1e308, -1e308, 5e-324, INFINITY, -INFINITY, NAN, 0.1, 1e16, 1, -1e-200};
  uint32_t which = take(64);
  return which < 12 ? odd[which] : (double)which / 4 - 8;
}

typedef struct model { int64_t rules[RULES]; uint8_t fires[RULES]; uint32_t count; } model;

static match_engine *reload(match_engine *e, bool damage) {
  int64_t size = match_save(e, NULL, 0);
  CHECK(size > 0);
  uint8_t *image = malloc((size_t)size);
  CHECK(image && match_save(e, image, (size_t)size) == size);
  size_t length = (size_t)size;
  if (damage) {
    for (uint32_t i = 0; i < 4 && left; i++) {
      size_t at = (take(256) << 16 | take(256) << 8 | take(256)) % length;
      image[at] = (uint8_t)(image[at] ^ (1u << take(8)));
    }
    if (take(4) == 0) length -= take(64) % length;
  }
  match_engine *made = match_load(image, length);
  free(image);
  CHECK(made || damage);
  if (made) match_free(e);
  return made ? made : e;
}

static void edges(match_engine *a, match_engine *b, model *m) {
  match_edges one = match_take(a), two = match_take(b);
  CHECK(one.count == two.count);
  for (size_t i = 0; i < one.count; i++) {
    const match_edge *edge = one.first + i, *same = two.first + i;
    CHECK(edge->rule == same->rule && edge->fires == same->fires && edge->at == same->at);
    for (uint32_t k = 0; k < m->count; k++)
      if (m->rules[k] == edge->rule) {
        CHECK(m->fires[k] != edge->fires);
        m->fires[k] = (uint8_t)edge->fires;
      }
  }
  for (uint32_t k = 0; k < m->count; k++) CHECK(match_fires(a, (uint32_t)m->rules[k]) == m->fires[k]);
}

static match_view view(void) {
  static const uint32_t ranks[] = {0, 1, 2, 500000, 950000, 1000000};
  match_view v = {.function = take(MATCH_FUNCTIONS), .rank = ranks[take(6)]};
  if (v.function == MATCH_LAST) return v;
  if (v.function >= MATCH_EWMA || take(2)) v.span = 1 + take(40);
  else v.samples = 1 + take(9);
  return v;
}

static void add(match_engine *a, match_engine *b, model *m) {
  match_term terms[3];
  uint8_t program[8];
  uint32_t count = 1 + take(3), length = 0;
  for (uint32_t i = 0; i < count; i++) {
    match_term *t = terms + i;
    *t = (match_term){.view = view(), .of_group = take(4) == 0, .compare = (uint8_t)take(6), .quorum = (uint8_t)take(2)};
    t->source = take(t->of_group ? GROUPS : SERIES + 1u);
    if (!t->of_group && t->source == SERIES) t->source = MATCH_NOTHING;
    t->threshold = number();
    if (t->of_group) t->view.samples = 0, t->view.span = 0;
    if (t->view.function == MATCH_ABSENT) t->compare = MATCH_NEVER;
    program[length++] = (uint8_t)i;
    if (take(4) == 0) program[length++] = MATCH_NOT;
    if (i) program[length++] = take(2) ? MATCH_AND : MATCH_OR;
  }
  match_rule r = {.terms = terms, .program = program, .count = count, .length = count > 1 ? length : 0,
                  .hold = take(3) ? 0 : take(20), .clear = number(), .clears = MATCH_NEVER, .nodata = (uint8_t)take(3)};
  if (count == 1 && take(3) == 0) r.clears = (uint8_t)take(7);
  int64_t made = match_add(a, &r);
  CHECK(match_add(b, &r) == made);
  if (made < 0) return;
  m->rules[m->count] = made, m->fires[m->count++] = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  input = data, left = size;
  uint32_t longest = 4 + take(40);
  match_engine *e[2] = {match_new(longest, 0), match_new(longest, 0)};
  model m = {.count = 0};
  int64_t clock = 0, times[SERIES] = {0};
  for (int i = 0; i < SERIES; i++) CHECK(match_open_series(e[0], 30) == i && match_open_series(e[1], 30) == i);
  for (int i = 0; i < GROUPS; i++) {
    match_view v = {.function = i ? view().function : MATCH_LAST, .samples = i ? 3 : 0};
    if (v.function == MATCH_LAST || v.function > MATCH_LARGEST || (v.function > MATCH_COUNT && !v.rank))
      v = (match_view){.function = MATCH_LAST};
    CHECK(match_open_group(e[0], &v) == i && match_open_group(e[1], &v) == i);
  }
  while (left) {
    switch (take(8)) {
    case 0: case 1:
      if (m.count < RULES) add(e[0], e[1], &m);
      edges(e[0], e[1], &m); /* a batch may not have ended: what fires at once is told */
      break;
    case 2:
      if (!m.count) break;
      uint32_t which = take(m.count);
      CHECK(!match_remove(e[0], (uint32_t)m.rules[which]) && !match_remove(e[1], (uint32_t)m.rules[which]));
      m.rules[which] = m.rules[--m.count], m.fires[which] = m.fires[m.count];
      break;
    case 3: {
      uint32_t group = take(GROUPS), series = take(SERIES);
      if (take(4) == 0) {
        int64_t patience = take(60);
        CHECK(match_patience(e[0], series, patience) == match_patience(e[1], series, patience));
        break;
      }
      bool leaves = take(3) == 0;
      int done = leaves ? match_leave(e[0], group, series) : match_join(e[0], group, series, clock);
      CHECK((leaves ? match_leave(e[1], group, series) : match_join(e[1], group, series, clock)) == done);
      break;
    }
    case 4:
      if (m.count && take(3) == 0) { /* what was missing appears */
        uint32_t rule = (uint32_t)m.rules[take(m.count)], index = take(3);
        match_term t = {.view = view(), .source = take(SERIES), .compare = (uint8_t)take(6), .threshold = number()};
        if (t.view.function == MATCH_ABSENT) t.compare = MATCH_NEVER;
        int done = match_bind(e[0], rule, index, &t);
        CHECK(match_bind(e[1], rule, index, &t) == done);
      }
      clock += take(50);
      match_tick(e[0], clock), match_tick(e[1], clock);
      break;
    case 5:
      match_settle(e[0]), match_settle(e[1]);
      e[1] = reload(e[1], false);
      break;
    default: {
      uint32_t ids[BATCH], count = 1 + take(BATCH);
      double values[BATCH];
      int64_t at[BATCH];
      for (uint32_t i = 0; i < count; i++) {
        ids[i] = take(SERIES + 1), values[i] = number(); /* one that does not exist, too */
        if (ids[i] < SERIES) at[i] = times[ids[i]] += (int64_t)take(12) - 1;
        else at[i] = 0;
      }
      for (uint32_t done = 0; done < count;) {
        size_t taken = match_push(e[0], ids + done, values + done, at + done, count - done, 1);
        CHECK(match_push(e[1], ids + done, values + done, at + done, count - done, 1) == taken);
        done += (uint32_t)taken;
        edges(e[0], e[1], &m);
      }
      if (take(4)) match_settle(e[0]), match_settle(e[1]);
    }
    }
    edges(e[0], e[1], &m);
    CHECK(!match_broken(e[0]) && !match_broken(e[1]));
  }
  match_settle(e[0]), match_settle(e[1]);
  edges(e[0], e[1], &m);
  for (uint32_t i = 0; i < 3; i++) {
    input = data, left = size; /* where to damage it */
    for (uint32_t skip = take(256) + i * 16; skip && left; skip--) take(256);
    match_settle(e[1]);
    e[1] = reload(e[1], true);
    for (uint32_t k = 0; k < 24; k++) {
      uint32_t id = k % SERIES;
      double value = k;
      int64_t at = (clock += 7) + 1000;
      match_tick(e[1], clock);
      match_push(e[1], &id, &value, &at, 1, 1u << 20);
    }
    match_settle(e[1]);
    match_take(e[1]);
    for (uint32_t k = 0; k < m.count; k++) match_remove(e[1], (uint32_t)m.rules[k]);
    match_settle(e[1]);
  }
  match_free(e[0]), match_free(e[1]);
  return 0;
}

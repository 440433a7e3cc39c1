/* Memory of the matcher: arrays that grow in place, lists, and the edges that wait to be taken. */
#define _DEFAULT_SOURCE
#include "match_core.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer) /* so that it sees what lies outside of a block */
#include <sanitizer/asan_interface.h>
#define POISON(at, size) __asan_poison_memory_region(at, size)
#define UNPOISON(at, size) __asan_unpoison_memory_region(at, size)
#else
#define POISON(at, size) ((void)(at), (void)(size))
#define UNPOISON(at, size) ((void)(at), (void)(size))
#endif

#define STEP ((size_t)1 << 18)
#define HUGE ((size_t)1 << 21) /* a page of those that save a walk through tables for every sample */

bool arena_open(arena *a, size_t size, size_t most) {
  *a = (arena){.size = size, .most = most};
  void *base = mmap(NULL, size * most, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return false;
  madvise(base, size * most, MADV_HUGEPAGE); /* where there are none it works, too */
  a->base = base;
  return true;
}

void arena_close(arena *a) {
  if (!a->base) return;
  UNPOISON(a->base, a->ready * a->size);
  munmap(a->base, a->size * a->most);
  a->base = NULL;
}

bool arena_grow(arena *a, size_t used) { /* new items are zero */
  if (used > a->most) return false;
  if (used > a->ready) {
    size_t from = a->ready * a->size / STEP * STEP, needed = used * a->size, step = needed < 2 * HUGE ? STEP : HUGE;
    size_t to = (needed + needed / 16 + step - 1) / step * step;
    if (to > a->size * a->most) to = a->size * a->most;
    if (mprotect(a->base + from, to - from, PROT_READ | PROT_WRITE)) return false;
    a->ready = to / a->size;
  }
  a->used = used;
  return true;
}

/* ---- blocks: whole lines of the cache, up to 1 KB as many as it takes, then in steps of a quarter */

static uint32_t class_of(size_t size, size_t *room) {
  size_t lines = (size + LINE - 1) / LINE;
  if (lines <= 16) return *room = lines * LINE, (uint32_t)lines;
  uint32_t scale = 0;
  while (lines > (size_t)32 << scale) scale++;
  size_t quarter = (size_t)4 << scale, steps = (lines + quarter - 1) / quarter; /* 5 to 8 */
  return *room = steps * quarter * LINE, 12 + scale * 4 + (uint32_t)steps;
}

size_t block_room(size_t size) {
  size_t room;
  class_of(size, &room);
  return room;
}

void *block_take(match_engine *e, size_t size) {
  size_t room;
  uint32_t class = class_of(size, &room);
  if (class >= sizeof e->blocks / sizeof *e->blocks) return aligned_alloc(LINE, room);
  block *taken = e->blocks[class];
  if (taken) {
    UNPOISON(taken, sizeof *taken);
    e->blocks[class] = taken->next;
  } else {
    size_t from = e->pool.used;
    if (!arena_grow(&e->pool, from + room / LINE)) return NULL;
    taken = (block *)(e->pool.base + from * LINE);
  }
  UNPOISON(taken, size);
  POISON((uint8_t *)taken + size, room - size);
  return taken;
}

void block_give(match_engine *e, void *old, size_t size) {
  if (!old) return;
  if ((uint8_t *)old < e->pool.base || (uint8_t *)old >= e->pool.base + MOST_POOL) {
    free(old);
    return;
  }
  size_t room;
  uint32_t class = class_of(size, &room);
  block *given = old;
  UNPOISON(given, sizeof *given);
  given->next = e->blocks[class];
  e->blocks[class] = given;
  POISON(given, room);
}

bool block_fit(match_engine *e, void **block, size_t size, size_t wanted) {
  if (size == wanted) return true;
  void *new = wanted ? block_take(e, wanted) : NULL;
  if (wanted && !new) {
    if (wanted < size) e->broken = true; /* the rest of it would be lost */
    return false;
  }
  if (*block && new) memcpy(new, *block, size < wanted ? size : wanted);
  block_give(e, *block, size);
  *block = new;
  return true;
}

void *grown(void *old, size_t *room, size_t needed, size_t size) {
  if (needed <= *room) return old;
  size_t wanted = *room + *room / 2 + 8;
  if (wanted < needed) wanted = needed;
  void *new = realloc(old, wanted * size);
  if (!new) return NULL;
  memset((char *)new + *room * size, 0, (wanted - *room) * size);
  *room = wanted;
  return new;
}

bool list_reserve(list *l, size_t count) {
  void *items = grown(l->items, &l->room, count, sizeof *l->items);
  if (!items) return false;
  l->items = items;
  return true;
}

bool list_push(list *l, uint32_t item) {
  if (!list_reserve(l, l->count + 1)) return false;
  l->items[l->count++] = item;
  return true;
}

bool edges_grow(match_engine *e, size_t count) {
  void *edges = grown(e->edges, &e->edge_room, e->made + count, sizeof *e->edges);
  if (edges) e->edges = edges;
  else e->broken = true;
  return edges != NULL;
}

void emit(match_engine *e, uint32_t which, bool fires, int64_t at, double value) {
  if (!edges_reserve(e, 1)) return;
  if (at == INT64_MIN) at = e->clock; /* no sample had a part in it */
  e->edges[e->made++] = (match_edge){.at = at, .value = value, .rule = which, .fires = fires};
}

match_edges match_take(match_engine *e) {
  match_edges taken = {.first = e->edges, .count = e->made};
  for (size_t i = 0; i < e->made; i++) {
    if (i + 32 < e->made) __builtin_prefetch(LEAVES(e) + e->edges[i + 32].rule);
    match_edge *edge = e->edges + i;
    leaf of = LEAVES(e)[edge->rule];
    uint8_t truth = TRUTHS(e)[edge->rule];
    edge->owner = truth & (LEAF_FREE | LEAF_WHOLE) ? of.rule : e->rules[of.rule].owner;
    edge->source = truth & LEAF_FREE || of.source & GROUP ? MATCH_NOTHING : of.source;
  }
  e->made = 0;
  return taken;
}

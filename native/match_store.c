/* Memory of the matcher: arrays that grow in place, lists, and the edges that wait to be taken. */
#define _DEFAULT_SOURCE
#include "match_core.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define STEP ((size_t)1 << 18)

bool arena_open(arena *a, size_t size, size_t most) {
  *a = (arena){.size = size, .most = most};
  void *base = mmap(NULL, size * most, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return false;
  a->base = base;
  return true;
}

void arena_close(arena *a) {
  if (a->base) munmap(a->base, a->size * a->most);
  a->base = NULL;
}

bool arena_grow(arena *a, size_t used) { /* new items are zero */
  if (used > a->most) return false;
  if (used > a->ready) {
    size_t from = a->ready * a->size / STEP * STEP, to = (used * a->size + STEP - 1) / STEP * STEP;
    if (to > a->size * a->most) to = a->size * a->most;
    if (mprotect(a->base + from, to - from, PROT_READ | PROT_WRITE)) return false;
    a->ready = to / a->size;
  }
  a->used = used;
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

void emit(match_engine *e, uint32_t which, bool fires, int64_t at, double value) {
  void *edges = grown(e->edges, &e->edge_room, e->made + 1, sizeof *e->edges);
  if (!edges) {
    e->broken = true;
    return;
  }
  e->edges = edges;
  if (at == INT64_MIN) at = e->clock; /* no sample had a part in it */
  e->edges[e->made++] = (match_edge){.at = at, .value = value, .rule = which, .fires = fires};
}

size_t match_take(match_engine *e, match_edge *edges, size_t room) {
  size_t count = e->made - e->taken;
  if (count > room) count = room;
  if (count) memcpy(edges, e->edges + e->taken, count * sizeof *edges);
  e->taken += count;
  if (e->taken == e->made) e->taken = e->made = 0;
  return count;
}

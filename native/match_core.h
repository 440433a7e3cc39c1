/* What the parts of the matcher share; see match.h. Not for others. */
#ifndef MCHANNEL_MATCH_CORE_H
#define MCHANNEL_MATCH_CORE_H

#include "match.h"

#include <math.h>

#define HOT __attribute__((hot))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define NONE UINT32_MAX
#define NEVER INT64_MAX
#define LINE ((size_t)64)       /* of the cache */
#define MOST_POOL ((size_t)1 << 34) /* bytes of blocks */
#define GROUP 0x80000000u /* a leaf's source: not a series */

/* A bound's name: the leaf that it belongs to, and what "value >= bound" says of it. */
enum {
  NAME_LEAF = 0x0fffffff,
  NAME_PART = 0x10000000, /* the leaf is not all of its rule */
  NAME_KIND = 0x60000000,
  NAME_PLAIN = 0x00000000,  /* the leaf is true as long as it is */
  NAME_FIRES = 0x20000000,  /* the leaf becomes true with it, and ends otherwise */
  NAME_CLEARS = 0x40000000, /* the leaf becomes false when it does */
  NAME_BETWEEN = 0x60000000, /* the leaf has two such bounds, and is true between them */
};
#define NAME_NOT 0x80000000u /* the opposite is meant */

typedef struct feed { uint32_t group, slot; } feed; /* the stream's value is the group's member */

typedef struct stream { /* one line of the cache; of order statistics a sample touches it */
  double low, high;     /* while what is cheap to know lies in [low, high), no bound is passed; else inf and -inf */
  double *bounds;       /* sorted; the names follow after `room` of them */
  feed *feeds;
  uint32_t count, room, at; /* bounds, room for them, how many are <= value */
  uint32_t below_low, below_high; /* order statistics: values of the bag that are. Sums: below_low values are in it */
  uint32_t rank;
  uint8_t function, known : 1, fresh : 1, asks : 2; /* fresh: the leaves wait for a known value */
  uint8_t lacks;        /* if not known: why */
  uint16_t fed;         /* feeds */
  uint16_t slow;        /* how often lately an order statistic was searched for */
} stream;

enum { ASKS_ALL = 1, ASKS_EARLY = 2 };
/* Streams of groups: unknown unless all members are present; for eager rules. Those may have to know of the group
 * before other rules see the instant, so they share no stream with them. */

typedef struct sorted { uint32_t room; double values[]; } sorted;

typedef struct bag { /* values, and what running sums know of them */
  stream *streams;      /* order statistics first */
  sorted *sorted;       /* all values, when order statistics are cheaper so */
  double low, high;     /* of a window: the guards in one of all streams but order statistics. Of sums, */
  double sum, lost;     /* of the finite ones, exactly sum + lost unless `inexact` */
  double m2, doubt;     /* sum of squared differences from their mean, and a bound of its error */
  double m2_low, m2_high; /* and of these */
  uint32_t count, reached; /* the guards are of so many values; NONE: they do not hold */
  uint32_t infinite : 27, needs : 4, inexact : 1;
  uint16_t width, orders; /* streams, and how many of them are order statistics */
} bag;

enum { NEEDS_SUM = 1, NEEDS_M2 = 2, NEEDS_GAIN = 4, NEEDS_ENDS = 8 };

typedef struct change { /* what two functions know beside the values */
  double value, lost;   /* RATE: increase since the oldest, as sum and lost of the bag. EWMA: it, and its last weight */
  int64_t passed, last; /* EWMA: milliseconds that the last weight is for; when its last value was */
} change;

typedef struct window { /* two lines of the cache; of a series' newest value a sample touches the first alone */
  bag bag;              /* its samples are the series' newest */
  int64_t span;
  uint32_t samples : 27, smooths : 1, started : 1; /* EWMA; it has a value */
  uint32_t rough : 1, blind : 1, silent : 1; /* the increase is not exact; it outgrew its limit: unknown until `until` */
  uint32_t timer;       /* for its silence; NONE: nobody asks */
  change *change;       /* NULL: neither RATE nor EWMA */
  int64_t until;
} window;

typedef struct list { uint32_t *items; size_t count, room; } list;

typedef struct series { /* one line of the cache */
  double newest;
  int64_t time;
  uint64_t head;        /* samples written */
  double *ring;         /* values; the times follow after them */
  window *windows;
  int64_t due;          /* earliest time that a waiting rule asks for */
  int64_t seen;         /* by the clock */
  uint8_t scale;        /* the ring holds 2^scale samples */
  uint8_t flags;
  uint16_t width;       /* windows */
} series;

enum { SERIES_OPEN = 1, SERIES_ANY = 2, SERIES_TIMED = 4, SERIES_ASKED = 8, SERIES_EAGER = 16, SERIES_NEWEST = 32 };
/* has a value; has windows by time; the next sample ends a silence; has rules that are eager; the first of its windows
 * is that of the newest value */

typedef struct extra { /* what no sample touches */
  int64_t patience;
  list watch, timers;   /* rules that wait for `for`; of its ABSENT leaves */
  list eager;           /* rules that look at every sample: of groups and something else */

} extra;

typedef struct group {
  bag bag;
  double *values;       /* of the members; NaN: not present */
  uint32_t *members;    /* their series; NONE: the slot is free */
  uint8_t *silences;    /* whether they fell silent */
  uint32_t size, room, registered, silent, changes; /* since it was settled */
  match_view view;
  list watch, eager;    /* as of a series */
  int64_t due, at;
  uint8_t open, dirty, listed;
  uint8_t joined;       /* by a member that had no sample yet */
} group;

enum { DIRTY = 1, DIRTY_EARLY = 2 }; /* for the streams that ask early, too */

typedef struct leaf { uint32_t source, rule; } leaf; /* of a leaf that is all of its rule: the owner */

enum { LEAF_TRUTH = 3, LEAF_BETWEEN = 4, LEAF_FREE = 8, LEAF_WHOLE = 16 };

typedef struct rule {
  uint8_t *program;
  int64_t hold, since, at; /* true since, if it waits; newest sample of its series when it was last touched */
  double value;         /* of the stream that touched it last */
  uint32_t first, owner; /* its first leaf; who made it */
  uint16_t length;
  uint8_t count, nodata;
  uint32_t timer;       /* waits by the clock: one of its leaves is ABSENT; NONE: without */
  uint8_t grouped, timed; /* one of its leaves is of a group; one of its leaves is ABSENT: its time is the clock's */
  uint8_t eager, fires, dirty, listed, waits, watched, clears; /* clears: the leaf after the last says when it ends */
  uint8_t open, born;   /* born: because of a sample that is yet to come; there is no instant before it */
} rule;

typedef struct timer { /* one thing that the clock alone brings about */
  int64_t due, span;
  uint32_t series, subject; /* an ABSENT leaf, or a rule */
  uint8_t kind, queued, open;
} timer;

enum { TIMER_ABSENT, TIMER_SILENCE, TIMER_HOLD };

typedef struct block { struct block *next; } block; /* one that is free */

typedef struct arena { /* grows in place: nothing that points into it ever moves, and nothing is ever copied */
  uint8_t *base;
  size_t size, used, ready, most; /* of an item; items in use, with memory, at most */
} arena;

struct match_engine {
  arena series, extras, leaves, truths, pool;
  block *blocks[64];   /* of the pool, by their size */
  rule *rules;
  group *groups;
  timer *timers;
  size_t rule_count, rule_room, group_count, group_room, timer_count, timer_room;
  list dirty_rules, dirty_groups, free_series, free_rules, free_groups, free_timers, heap;
  list free_leaves[MATCH_LEAVES + 2]; /* runs of so many */
  double *scratch;     /* room for the largest bag */
  size_t scratch_room, dead; /* closed timers in the heap */
  match_edge *edges;   /* not yet taken */
  size_t made, edge_room;
  int64_t clock;
  uint32_t longest;
  bool broken;
  match_counters counters;
};

typedef struct values { const double *first, *second; uint32_t count, rest; } values; /* NaN: not one of them */

#define SERIES(e) ((series *)(e)->series.base)
#define EXTRAS(e) ((extra *)(e)->extras.base)
#define LEAVES(e) ((leaf *)(e)->leaves.base)
#define TRUTHS(e) ((e)->truths.base)
#define RULE_OF(e, which) (TRUTHS(e)[which] & LEAF_WHOLE ? NONE : LEAVES(e)[which].rule) /* NONE: itself */
#define BOUND (sizeof(double) + sizeof(uint32_t))    /* of a stream, and its name */
#define SLOT (sizeof(double) + sizeof(int64_t))      /* of a ring */
#define MASK(s) (((uint64_t)1 << (s)->scale) - 1)
#define TIMES(s) ((int64_t *)((s)->ring + ((size_t)1 << (s)->scale)))
#define NAMES(s) ((s)->bounds ? (uint32_t *)((s)->bounds + (s)->room) : NULL)

static inline bool is_series(const match_engine *e, uint32_t which) {
  return which < e->series.used && SERIES(e)[which].flags & SERIES_OPEN;
}

static inline bool is_order(uint32_t function) { return function >= MATCH_QUANTILE && function <= MATCH_LARGEST; }
static inline bool is_summed(uint32_t function) { return function >= MATCH_MEAN && function <= MATCH_STDDEV; }

/* One of two addresses, without a branch: for what is as good as random, so that no processor foresees it. */
static inline uintptr_t either(bool first, uintptr_t one, uintptr_t other) {
  return other ^ ((one ^ other) & -(uintptr_t)first);
}

static const double ends[] = {-INFINITY, INFINITY};

/* The guard of its value: no bound in (lowest, highest), lowest <= value < highest. */
static inline double lowest(const stream *s) {
  uintptr_t bound = (uintptr_t)s->bounds + (s->at - 1) * sizeof(double);
  return *(const double *)either(s->at > 0, bound, (uintptr_t)ends);
}
static inline double highest(const stream *s) {
  uintptr_t bound = (uintptr_t)s->bounds + s->at * sizeof(double);
  return *(const double *)either(s->at < s->count, bound, (uintptr_t)(ends + 1));
}

/* a + b = the result + *rest, exactly */
static inline double two_sum(double a, double b, double *rest) {
  double s = a + b, t = s - a;
  *rest = (a - (s - t)) + (b - t);
  return s;
}

/* *sum + *lost += x; what even two doubles do not hold is lost, and said so by false */
static inline bool exact_add(double *sum, double *lost, double x) {
  double rest, more;
  double s = two_sum(*sum, x, &rest);
  if ((rest == 0) & (*lost == 0)) return *sum = s, true;
  double l = two_sum(*lost, rest, &more);
  *sum = two_sum(s, l, lost);
  return more == 0; /* nor has it overflowed */
}

/* Its oldest sample is so manieth of the series. */
static inline uint64_t window_tail(const series *s, const window *w) { return s->head - w->bag.count; }

static inline bool window_ready(const series *s, const window *w) { /* it has the samples that its functions need */
  if (w->smooths) return w->started;
  if (w->samples) return w->bag.count == w->samples;
  if (w->span) return !w->blind && w->bag.count;
  return (s->flags & SERIES_ANY) != 0;
}

/* match_bag.c: what is known of a set of values */
void bag_enter(bag *b, double x);
void bag_leave(bag *b, double x);
void bag_exchange(bag *b, double old, double x);  /* one takes the place of another */
void bag_count(bag *b, values v);                 /* everything anew */
void bag_clear(bag *b);
void stream_count(stream *s, values v);           /* what lies below its guard */
bool bag_reserve(bag *b, size_t count);           /* room in `sorted`, if there is one */
bool bag_sort(match_engine *e, bag *b, values v); /* keep the values sorted from now on */
bool bag_value(match_engine *e, bag *b, stream *s, values v, double *value); /* exactly; false: unknown */
uint8_t bag_needs(uint32_t function);
void bag_reach(const bag *b, stream *s);          /* what its sums may be before its value can leave its guard */
void bag_guard(bag *b);                           /* its streams' guards in one */
void bag_unguard(bag *b);                         /* one of them changed */

/* match_exact.c: rounded once; of the finite values */
double exact_mean(values v, double by);                      /* their sum / by */
double exact_spread(values v, uint32_t n, bool root);        /* variance, or its root, of n of them */
double exact_ratio(double sum, double lost, double times, double by); /* (sum + lost) * times / by */
double exact_rate(const double *x, size_t count, double times, double by); /* what x rose in all * times / by */

/* match_stream.c: thresholds on a value */
/* `truth`: MATCH_TRUE, there is a value; else why not */
void stream_see(match_engine *e, stream *s, uint8_t truth, double value, int64_t at);
void stream_moved(const bag *b, stream *s, values v, bool known, bool moved);
int stream_room(match_engine *e, stream *s, uint32_t more);
void stream_insert(match_engine *e, stream *s, double bound, uint32_t name);
void stream_guard(stream *s);                        /* its bounds, or where it is among them, changed */
uint32_t stream_rank(const stream *s, double value); /* bounds <= value */
void stream_meet(match_engine *e, stream *s, double bound, uint32_t name, double value, int64_t at);
bool stream_drop(match_engine *e, stream *s, uint32_t leaf);
stream *bag_stream(match_engine *e, bag *b, uint32_t function, uint32_t rank, uint8_t asks, bool make);
void bag_prune(match_engine *e, bag *b);          /* streams that nobody needs */
void leaf_set(match_engine *e, uint32_t which, uint8_t truth, int64_t at, double value);

/* match_window.c */
int window_need(match_engine *e, uint32_t which, const match_view *view, window **found);
window *window_find(match_engine *e, uint32_t which, const match_view *view);
int window_learn(match_engine *e, uint32_t which, window *w, const stream *st);
bool window_value(match_engine *e, const series *s, window *w, stream *st, double *value);
values window_values(const series *s, const window *w);
void gain_move(window *w, double from, double to, double sign); /* a step between two samples counts, or does not */
void gain_clear(window *w);
int window_guard(match_engine *e, uint32_t which, window *w);
int window_guard_anew(match_engine *e, uint32_t which, window *w); /* its patience changed */
void window_silence(match_engine *e, window *w);
void window_age(match_engine *e, uint32_t which, window *w);
bool ring_grow(match_engine *e, series *s, uint64_t count);
void series_prune(match_engine *e, uint32_t which);

/* match.c */
bool is_group(const match_engine *e, uint32_t which);
int view_check(const match_engine *e, const match_view *view);

/* match_group.c */
void group_feed(match_engine *e, uint32_t which, uint32_t slot, uint8_t truth, double value, int64_t at);
void group_settle(match_engine *e, group *g);
void group_peek(match_engine *e, group *g);       /* what eager rules ask of it; the others see it when it is settled */
values group_values(const group *g);
bool group_value(match_engine *e, group *g, stream *s, double *value);
void groups_settle(match_engine *e);
void group_close(group *g);

/* match_rule.c */
void rule_touch(match_engine *e, uint32_t which, int64_t at, double value);
int program_check(const uint8_t *program, uint32_t length, uint32_t count);
void rules_settle(match_engine *e);
void rules_look(match_engine *e, const list *eager, int64_t at); /* a sample that concerns them is coming */
void watch_due(match_engine *e, const list *w, int64_t at);
stream *view_stream(match_engine *e, uint32_t source, bool of_group, const match_view *view, uint8_t asks);

/* match_timer.c */
int timer_open(match_engine *e, uint8_t kind, uint32_t which, int64_t span, uint32_t subject);
void timer_close(match_engine *e, uint32_t which);
void timer_queue(match_engine *e, uint32_t which, int64_t due);
void series_heard(match_engine *e, uint32_t which, int64_t at); /* it had been silent or missed */

/* match_store.c: memory */
bool arena_open(arena *a, size_t size, size_t most);
void arena_close(arena *a);
bool arena_grow(arena *a, size_t used);
bool list_reserve(list *l, size_t count);
bool list_push(list *l, uint32_t item);
void *block_take(match_engine *e, size_t size); /* begins with a line of the cache */
void block_give(match_engine *e, void *old, size_t size);
bool block_fit(match_engine *e, void **block, size_t size, size_t wanted); /* move what is in it to another */
size_t block_room(size_t size);                 /* bytes that are taken for `size` of them */
void *grown(void *old, size_t *room, size_t needed, size_t size);
bool edges_grow(match_engine *e, size_t count);
static inline bool edges_reserve(match_engine *e, size_t count) { /* room for so many more */
  return LIKELY(e->made + count <= e->edge_room) || edges_grow(e, count);
}
void emit(match_engine *e, uint32_t which, bool fires, int64_t at, double value);

#endif

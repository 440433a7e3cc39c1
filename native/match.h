/* Matches samples of metrics against very many rules, and says what began and what ended to hold.
 *
 * A *series* is a metric of an endpoint; samples of it arrive with the time at their source. A *window* holds its last
 * n samples or those of the last d milliseconds; a *group* holds one value of each of many series. A *stream* is a
 * function of a window or of a group. All thresholds on a stream lie sorted in one array, each as "value >= bound",
 * and beside the stream stand the two bounds next to its value, the *guard*. While the value stays inside, no rule on
 * the stream changed: a sample costs the update of the function and two comparisons, however many rules there are.
 *
 * A value is the double next to the true one: a mean or a variance is computed as if in fractions and rounded once.
 * Running sums are kept with what rounding took away, a running variance with a bound of its error; where the error
 * could matter to a comparison the value is computed anew. So results never depend on what was in a window before.
 *
 * Rules come and go between batches. No thread safety: one engine, one thread at a time. */
#ifndef MCHANNEL_MATCH_H
#define MCHANNEL_MATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MATCH_LEAVES 64u         /* most comparisons in one rule */
#define MATCH_DEPTH 64u          /* most operands waiting in one rule's program */
#define MATCH_BOUNDS (1u << 20)  /* most thresholds on one stream */
#define MATCH_NOTHING 0xffffffffu /* a source that does not exist yet */

enum { /* what the calls that return a number return instead of it */
  MATCH_NO_MEMORY = -1, /* nothing changed, unless match_broken says so */
  MATCH_BAD = -2,       /* an argument is out of its range or names what is not there; nothing changed */
  MATCH_TOO_MANY = -3,  /* a limit; nothing changed */
  MATCH_TOO_LONG = -4,  /* a window of more samples than the engine may keep; nothing changed */
};

enum match_function {
  MATCH_LAST,     /* the newest value; on a series only */
  MATCH_MEAN,
  MATCH_SUM,
  MATCH_VARIANCE, /* divided by n - 1; of at least two */
  MATCH_STDDEV,
  MATCH_COUNT,
  MATCH_QUANTILE, /* nearest rank: the ceil(rank / 10^6 * n)-th smallest, at least the first */
  MATCH_SMALLEST, /* the rank-th smallest */
  MATCH_LARGEST,  /* the rank-th largest */
  MATCH_RATE,     /* increase a second; a value below the one before it counts whole. On a window only, as: */
  MATCH_DELTA,    /* newest - oldest */
  MATCH_EWMA,     /* y += (1 - exp(-dt / span)) * (x - y) */
  MATCH_ABSENT,   /* not compared: true when no sample was accepted for `span` by the clock */
  MATCH_FUNCTIONS,
};

enum match_compare { MATCH_ABOVE, MATCH_AT_LEAST, MATCH_BELOW, MATCH_AT_MOST, MATCH_EQUAL, MATCH_UNEQUAL, MATCH_NEVER };
enum match_truth { MATCH_FALSE, MATCH_TRUE, MATCH_UNKNOWN, MATCH_SILENT }; /* too few samples; they stopped coming */
enum match_step { MATCH_NOT = 0xfd, MATCH_AND = 0xfe, MATCH_OR = 0xff }; /* less: the truth of that leaf */
enum match_nodata { MATCH_KEEP, MATCH_CLEAR, MATCH_FIRE };

/* A function of a window of a series: the last `samples`, or the last `span` milliseconds; neither: the newest. */
typedef struct match_view {
  int64_t span;
  uint32_t samples;
  uint32_t rank;     /* of QUANTILE, in millionths; of SMALLEST and LARGEST, from 1 */
  uint32_t function;
} match_view;

/* One comparison of a rule. */
typedef struct match_term {
  double threshold;  /* not NaN */
  match_view view;   /* of a group: its function, and rank; no window */
  uint32_t source;   /* the series, or the group; of a rule of several terms perhaps MATCH_NOTHING: unknown */
  uint8_t of_group;
  uint8_t compare;
  uint8_t quorum;    /* of a group: unknown unless all of its members are present */
} match_term;

typedef struct match_rule {
  const match_term *terms;
  const uint8_t *program; /* in reverse Polish; may be NULL with one term */
  uint32_t count, length;
  uint32_t owner;         /* told with its edges, and nothing else */
  int64_t hold;           /* milliseconds that it must be true before it fires */
  double clear;           /* with one term: clears when `value clears clear`, not when the comparison fails */
  uint8_t clears;         /* enum match_compare; MATCH_NEVER: no such clause */
  uint8_t nodata;         /* enum match_nodata: what silence of its series means */
} match_rule;

typedef struct match_edge {
  int64_t at;    /* of the sample, or of the clock */
  double value;  /* of the stream that made it; NaN when none did */
  uint32_t rule, owner;
  uint32_t source; /* the series of its first comparison; MATCH_NOTHING if that is of a group */
  uint32_t fires;  /* 1: began, 0: ended */
} match_edge;

typedef struct match_edges { /* in the order in which they came about */
  const match_edge *first;
  size_t count;
} match_edges;

typedef struct match_counters {
  uint64_t samples;   /* accepted */
  uint64_t nans, late, infinite; /* not a number; not newer than the newest of its series; both dropped. Kept, counted */
  uint64_t unknown;   /* samples of series that do not exist: dropped */
  uint64_t crossings; /* values that left their guard */
  uint64_t exact;     /* values computed anew */
  uint64_t overflows; /* windows emptied because they would have outgrown the engine's limit */
  uint64_t rules, streams, series, bytes; /* now: `bytes` of all that they need */
} match_counters;

typedef struct match_engine match_engine;

/* `longest`: samples that one series may keep. `clock`: milliseconds; ABSENT waits its span from then on, at least.
 * NULL: no memory. */
match_engine *match_new(uint32_t longest, int64_t clock);
void match_free(match_engine *e);
bool match_broken(const match_engine *e); /* memory ran out halfway: only match_free and a snapshot of before help */
match_counters match_count(const match_engine *e);

/* Return a series' number. It is silent after `patience` milliseconds without a sample, a window by time after its
 * span: then what is known of it stays, and says nothing. */
int64_t match_open_series(match_engine *e, int64_t patience);
/* Another patience, from its newest sample on. What is silent already stays so until the next sample. */
int match_patience(match_engine *e, uint32_t series, int64_t patience);
int64_t match_seen(const match_engine *e, uint32_t series);  /* the clock at its newest sample, or when it was opened */
int match_close_series(match_engine *e, uint32_t series);    /* MATCH_BAD while a rule or a group needs it */

int64_t match_open_group(match_engine *e, const match_view *member); /* members contribute this */
int match_close_group(match_engine *e, uint32_t group);      /* MATCH_BAD while a rule needs it */
int match_join(match_engine *e, uint32_t group, uint32_t series, int64_t at); /* because of a sample of that time */
int match_leave(match_engine *e, uint32_t group, uint32_t series);

/* Add a rule and return its number. Windows that others keep already it knows as they are; new ones begin empty. */
int64_t match_add(match_engine *e, const match_rule *rule);
/* Add it `count` times; the next rule->count of `sources` are those of each one's terms. All of them, or none. */
int match_add_each(match_engine *e, const match_rule *rule, const uint32_t *sources, size_t count, uint32_t *made);
int match_bind(match_engine *e, uint32_t rule, uint32_t index, const match_term *term); /* instead of MATCH_NOTHING */
int match_remove(match_engine *e, uint32_t rule);
bool match_fires(const match_engine *e, uint32_t rule);
uint32_t match_source(const match_engine *e, uint32_t rule); /* as an edge of it says */

/* Match samples; return how many were taken. Fewer than `count`: `room` edges wait; take them, push the rest.
 * Rules of one comparison of one series change with the sample. All others see the samples of one instant together:
 * they are matched before a later sample that concerns them, and by match_settle, which ends a batch. */
size_t match_push(match_engine *e, const uint32_t *series, const double *values, const int64_t *times, size_t count,
                  size_t room);
void match_settle(match_engine *e); /* after the last sample of a batch; what was added or joined is matched, too */
/* What the clock alone makes true until then, each at its own moment; it does not go back. */
void match_tick(match_engine *e, int64_t clock);
match_edges match_take(match_engine *e); /* all that wait; the memory is the engine's, until the next call of it */

/* All that an engine knows, edges not yet taken included, for this build on this kind of machine. Between batches:
 * MATCH_BAD before match_settle. Return the bytes it needs; they are written if there is room for them. */
int64_t match_save(const match_engine *e, uint8_t *image, size_t room);
match_engine *match_load(const uint8_t *image, size_t size); /* NULL: not such an image, damaged, or no memory */

#endif

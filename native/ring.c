#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "ring.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAGIC UINT64_C(0x31676e697263686d) /* "mhcring1" */
#define VERSION 1u
#define ORDER 0x01020304u
#define WORD 8u
#define AHEAD 768u   /* bytes: lines of the other core's cache are asked for in good time; a hint, it never faults */
#define COPIED_PER_NS 8u        /* bytes, roughly */
#define LONGEST_SPIN_NS 200000u /* beyond what the caller asked for */
#define SPURIOUS 16 /* wake-ups without cause before the caller gets its thread back */

enum { DATA = 0, PAD = 1, CHUNK = 2 };

_Static_assert(sizeof(mc_header) <= 128 && sizeof(mc_page) <= MC_PAGE, "the header and both lanes share one page");
_Static_assert(sizeof(mc_lane) == 4 * 128, "one line for each party that writes");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "indices must be lock-free between processes");

#define RELAXED memory_order_relaxed
#define load(p, order) atomic_load_explicit((p), (order))
#define store(p, value, order) atomic_store_explicit((p), (value), (order))

static inline uint64_t record_size(uint64_t length) { return (WORD + length + 7u) & ~UINT64_C(7); }

static inline _Atomic uint64_t *word_at(const uint8_t *at) { return (_Atomic uint64_t *)(uintptr_t)at; }

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- region ------------------------------------------------------------------------------------------------- */

static bool size_allowed(uint64_t n) { return n >= MC_PAGE && n <= (UINT64_C(1) << 30) && (n & (n - 1)) == 0; }

uint64_t mc_region_size(uint64_t capacity, uint64_t pool) {
  return size_allowed(capacity) && size_allowed(pool) ? MC_PAGE + 2 * (capacity + pool) : 0;
}

void mc_region_init(void *base, uint64_t capacity, uint64_t pool) {
  mc_header *h = base;
  store(&h->version, VERSION, RELAXED);
  store(&h->order, ORDER, RELAXED);
  store(&h->capacity, capacity, RELAXED);
  store(&h->pool, pool, RELAXED);
  store(&h->magic, MAGIC, memory_order_release);
}

int mc_region_check(void *base, uint64_t size, mc_shape *shape) {
  mc_header *h = base;
  if (size < MC_PAGE || load(&h->magic, memory_order_acquire) != MAGIC) return MC_BROKEN;
  if (load(&h->version, RELAXED) != VERSION || load(&h->order, RELAXED) != ORDER) return MC_BROKEN;
  if (load(&h->features, RELAXED) != 0) return MC_BROKEN;
  shape->capacity = load(&h->capacity, RELAXED);
  shape->pool = load(&h->pool, RELAXED);
  return mc_region_size(shape->capacity, shape->pool) == size ? MC_OK : MC_BROKEN;
}

uint64_t mc_region_epoch(void *base) { return atomic_load(&((mc_header *)base)->epoch); }
uint64_t mc_region_advance(void *base) { return atomic_fetch_add(&((mc_header *)base)->epoch, 1) + 1; }

static uint64_t inline_max(mc_shape shape) { /* a record and a pad before it always fit into half of the ring */
  uint64_t quarter = shape.capacity / 4 - WORD;
  return quarter < MC_LONG ? quarter : MC_LONG - 1;
}

/* ---- wake-up ------------------------------------------------------------------------------------------------ */

/* The sleeper sets its flag, fences, looks once more, sleeps. The other end publishes, fences, looks at the flag.
 * Whatever the order, one of the two sees the other: no wake-up is lost (tests/models/wake.pml). */
static inline void wake(mc_ways *ways, _Atomic uint32_t *flag) {
  atomic_thread_fence(memory_order_seq_cst);
  if (load(flag, RELAXED) == MC_POLL) return;
  uint32_t kind = atomic_exchange_explicit(flag, MC_POLL, RELAXED);
  if (kind >= MC_KINDS || !ways->bell[kind].ring) return;
  ways->rung++;
  ways->bell[kind].ring(&ways->bell[kind], flag);
}

typedef bool ready_fn(void *half);

/* This end was closed: its own sleepers find that out at once. */
static void leave(mc_ways *ways, _Atomic uint32_t *flag, _Atomic int *state) {
  atomic_store(state, MC_CLOSED);
  wake(ways, flag);
}

static bool arm(ready_fn *ready, void *half, _Atomic uint32_t *flag, uint32_t kind) {
  store(flag, kind, RELAXED);
  atomic_thread_fence(memory_order_seq_cst);
  if (!ready(half)) return false;
  store(flag, MC_POLL, RELAXED);
  return true;
}

static int wait_for(ready_fn *ready, void *half, const mc_ways *ways, uint64_t spin_ns, _Atomic uint32_t *flag,
                    int64_t nanoseconds) {
  if (ready(half)) return MC_OK;
  if (nanoseconds == 0) return MC_TIMEOUT;
  uint64_t start = now_ns(), now = start;
  do {
    for (int i = 0; i < 32; i++) {
      if (ready(half)) return MC_OK;
      mc_pause();
    }
    now = now_ns();
  } while (now - start < spin_ns);
  const mc_bell *bell = &ways->bell[ways->kind];
  for (int i = 0; i < SPURIOUS; i++, now = now_ns()) {
    int64_t left = nanoseconds < 0 ? -1 : nanoseconds - (int64_t)(now - start);
    if (nanoseconds > 0 && left <= 0) return MC_TIMEOUT;
    if (arm(ready, half, flag, ways->kind)) return MC_OK;
    int slept = bell->sleep(bell, flag, left);
    store(flag, MC_POLL, RELAXED);
    if (ready(half)) return MC_OK;
    if (slept == MC_INTERRUPTED) return slept;
  }
  return MC_INTERRUPTED;
}

static int poll_sleep(const mc_bell *bell, _Atomic uint32_t *flag, int64_t ns) {
  (void)bell, (void)flag;
  struct timespec t = {0, ns < 0 || ns > 500000 ? 500000 : (long)ns};
  return nanosleep(&t, NULL) && errno == EINTR ? MC_INTERRUPTED : MC_OK;
}

static void futex_ring(const mc_bell *bell, _Atomic uint32_t *flag) {
  (void)bell;
  syscall(SYS_futex, flag, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

static int futex_sleep(const mc_bell *bell, _Atomic uint32_t *flag, int64_t ns) {
  (void)bell;
  struct timespec t = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
  long rc = syscall(SYS_futex, flag, FUTEX_WAIT, MC_FUTEX, ns < 0 ? NULL : &t, NULL, 0);
  return rc && errno == EINTR ? MC_INTERRUPTED : MC_OK;
}

static void fd_ring(const mc_bell *bell, _Atomic uint32_t *flag) {
  (void)flag;
  const uint64_t one = 1;
  if (send(bell->peer, &one, sizeof one, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno == ENOTSOCK)
    (void)!write(bell->peer, &one, sizeof one); /* a full counter is a bell that rings already */
}

void mc_bell_drain(int own) {
  uint64_t rings[64]; /* bounded: what is left wakes the sleeper once more */
  if (recv(own, rings, sizeof rings, MSG_DONTWAIT) < 0 && errno == ENOTSOCK) (void)!read(own, rings, sizeof *rings);
}

static int fd_sleep(const mc_bell *bell, _Atomic uint32_t *flag, int64_t ns) {
  (void)flag;
  struct pollfd p = {.fd = bell->own, .events = POLLIN};
  struct timespec t = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
  int n = ppoll(&p, 1, ns < 0 ? NULL : &t, NULL);
  if (n > 0) mc_bell_drain(bell->own);
  return n < 0 && errno == EINTR ? MC_INTERRUPTED : MC_OK;
}

mc_bell mc_bell_poll(void) { return (mc_bell){.sleep = poll_sleep, .own = -1, .peer = -1}; }
mc_bell mc_bell_futex(void) { return (mc_bell){.ring = futex_ring, .sleep = futex_sleep, .own = -1, .peer = -1}; }
mc_bell mc_bell_fd(int own, int peer) {
  return (mc_bell){.ring = peer < 0 ? NULL : fd_ring, .sleep = own < 0 ? NULL : fd_sleep, .own = own, .peer = peer};
}

/* ---- writer ------------------------------------------------------------------------------------------------- */

static int writer_broken(mc_writer *w, mc_violation why) {
  w->violation = why;
  w->state = MC_BROKEN;
  return MC_BROKEN;
}

/* Learn what the reader acknowledged, and free its chunks. */
static int look_at_head(mc_writer *w) {
  uint64_t head = load(&w->lane->head, memory_order_acquire);
  if (head - w->peer > w->published - w->peer || head & 7) return writer_broken(w, MC_BAD_HEAD);
  w->peer = head;
  while (w->first_chunk != w->last_chunk) {
    uint64_t i = w->first_chunk & (MC_CHUNKS - 1);
    if (w->mine - w->chunk[i].record < w->mine - head) break; /* its record lies behind head */
    w->pool_free = w->chunk[i].pool;
    w->first_chunk++;
  }
  return MC_OK;
}

static int no_room(mc_writer *w) {
  w->full = true;
  return MC_FULL;
}

/* Bytes of ring that `length` more bytes take, with the pad before them. */
static inline uint64_t ring_need(const mc_writer *w, uint64_t size) {
  uint64_t room = w->shape.capacity - (w->mine & (w->shape.capacity - 1));
  return size > room ? size + room : size;
}

static inline bool ring_fits(const mc_writer *w, uint64_t size) {
  return w->shape.capacity - (w->mine - w->peer) >= ring_need(w, size);
}

/* Where in the pool the next chunk would start: at once, or behind the bytes that are too few. */
static inline uint64_t pool_start(const mc_writer *w, uint64_t length) {
  uint64_t room = w->shape.pool - (w->pool_mine & (w->shape.pool - 1));
  return length > room ? w->pool_mine + room : w->pool_mine;
}

static inline bool pool_fits(const mc_writer *w, uint64_t length) {
  if (w->first_chunk == w->last_chunk) return true; /* nothing in flight: all of it is free */
  return w->last_chunk - w->first_chunk < MC_CHUNKS
         && w->shape.pool - (w->pool_mine - w->pool_free) >= pool_start(w, length) + length - w->pool_mine;
}

/* Room was checked. */
static inline uint8_t *append(mc_writer *w, uint64_t length, uint64_t type) {
  uint64_t size = record_size(length), offset = w->mine & (w->shape.capacity - 1);
  uint64_t room = w->shape.capacity - offset;
  if (size > room) {
    store(word_at(w->data + offset), (room - WORD) | (uint64_t)PAD << 32, RELAXED);
    w->mine += room;
    offset = 0;
  }
  store(word_at(w->data + offset), length | type << 32, RELAXED);
  __builtin_prefetch(w->data + offset + AHEAD, 1);
  w->mine += size;
  return w->data + offset + WORD;
}

static inline int append_long(mc_writer *w, const void *message, uint64_t length) {
  const uint64_t size = record_size(2 * WORD);
  if (look_at_head(w)) return MC_BROKEN;
  if (!ring_fits(w, size) || !pool_fits(w, length)) return no_room(w);
  if (w->first_chunk == w->last_chunk) /* from the start again: those bytes are still in the caches */
    w->pool_mine = (w->pool_mine + w->shape.pool - 1) & ~(w->shape.pool - 1);
  uint64_t at = pool_start(w, length);
  if (w->first_chunk == w->last_chunk) w->pool_free = at;
  memcpy(w->pool + (at & (w->shape.pool - 1)), message, length);
  uint8_t *descriptor = append(w, 2 * WORD, CHUNK);
  store(word_at(descriptor), at, RELAXED);
  store(word_at(descriptor + WORD), length, RELAXED);
  w->pool_mine = at + length;
  w->chunk[w->last_chunk & (MC_CHUNKS - 1)].record = w->mine;
  w->chunk[w->last_chunk++ & (MC_CHUNKS - 1)].pool = w->pool_mine;
  return MC_OK;
}

static inline int append_message(mc_writer *w, const void *message, uint64_t length) {
  if (length > w->limit) return MC_TOO_BIG;
  if (length > w->inline_max) return append_long(w, message, length);
  uint64_t size = record_size(length);
  if (!ring_fits(w, size)) {
    if (look_at_head(w)) return MC_BROKEN;
    if (!ring_fits(w, size)) return no_room(w);
  }
  memcpy(append(w, length, DATA), message, length);
  return MC_OK;
}

static inline void publish_tail(mc_writer *w) {
  w->full = false;
  w->published = w->mine;
  store(&w->lane->tail, w->mine, memory_order_release);
  wake(&w->ways, &w->lane->reader_flag);
}

int mc_write(mc_writer *w, const void *message, uint64_t length) {
  if (w->state) return w->state;
  int rc = append_message(w, message, length);
  if (!rc) publish_tail(w);
  return rc;
}

static inline int64_t published(mc_writer *w, uint64_t written, int rc) {
  if (rc == MC_BROKEN) return rc;
  if (written) {
    bool full = w->full;
    publish_tail(w);
    w->full = full;
  }
  return written || rc == MC_FULL ? (int64_t)written : rc;
}

int64_t mc_write_many(mc_writer *w, const void *messages, const uint32_t *lengths, uint64_t count) {
  if (w->state) return w->state;
  const uint8_t *at = messages;
  uint64_t i = 0;
  int rc = MC_OK;
  for (; i < count && !(rc = append_message(w, at, lengths[i])); i++) at += lengths[i];
  return published(w, i, rc);
}

int64_t mc_write_fixed(mc_writer *w, const void *messages, uint32_t length, uint64_t count) {
  if (w->state) return w->state;
  const uint8_t *at = messages;
  uint64_t i = 0;
  int rc = MC_OK;
  for (; i < count && !(rc = append_message(w, at, length)); i++) at += length;
  return published(w, i, rc);
}

uint64_t mc_writer_acknowledged(mc_writer *w) {
  if (!w->state) look_at_head(w);
  return w->peer;
}

uint64_t mc_writer_taken(mc_writer *w) {
  uint64_t head = mc_writer_acknowledged(w), taken = load(&w->lane->taken, memory_order_acquire);
  if (!w->state && taken - head > w->published - head) writer_broken(w, MC_BAD_TAKEN);
  return w->state ? head : taken;
}

static bool writer_ready(void *half) {
  mc_writer *w = half;
  return w->state || !w->full || load(&w->lane->head, memory_order_acquire) != w->peer;
}

void mc_writer_close(mc_writer *w) { leave(&w->ways, &w->lane->writer_flag, &w->state); }
bool mc_writable(mc_writer *w) { return writer_ready(w); }
bool mc_writer_arm(mc_writer *w, uint32_t kind) { return arm(writer_ready, w, &w->lane->writer_flag, kind); }
int mc_writer_wait(mc_writer *w, int64_t nanoseconds) {
  return wait_for(writer_ready, w, &w->ways, w->ways.spin_ns, &w->lane->writer_flag, nanoseconds);
}

/* ---- records ------------------------------------------------------------------------------------------------ */

typedef struct span {
  uint64_t offset, length, end; /* where in data or pool; the index after the record */
  uint64_t chunk;               /* free-running pool index */
  uint64_t type;
} span;

/* Parse the record at `index`, of which the writer published all up to `tail`. Every word is loaded once. */
static inline mc_violation parse(const uint8_t *data, mc_shape shape, uint64_t index, uint64_t tail, span *s) {
  uint64_t offset = index & (shape.capacity - 1), room = shape.capacity - offset;
  uint64_t word = load(word_at(data + offset), RELAXED);
  uint64_t length = (uint32_t)word, size = record_size(length);
  s->type = word >> 32; /* flags stand above the type and must be 0 */
  if (size > tail - index || size > room) return MC_BAD_RECORD;
  s->end = index + size;
  s->offset = offset + WORD;
  s->length = length;
  if (s->type == DATA) return MC_NONE;
  if (s->type == PAD) /* at the end of the area only, and a record follows: no run of pads can hold the reader */
    return size == room && offset && s->end != tail ? MC_NONE : MC_BAD_RECORD;
  if (s->type != CHUNK || length != 2 * WORD) return MC_BAD_RECORD;
  s->chunk = load(word_at(data + offset + WORD), RELAXED);
  s->length = load(word_at(data + offset + 2 * WORD), RELAXED);
  s->offset = s->chunk & (shape.pool - 1);
  return s->length <= shape.pool - s->offset ? MC_NONE : MC_BAD_CHUNK;
}

/* ---- reader ------------------------------------------------------------------------------------------------- */

static int reader_broken(mc_reader *r, mc_violation why) {
  r->violation = why;
  r->state = MC_BROKEN;
  return MC_BROKEN;
}

void mc_done(mc_reader *r) {
  if (r->state || r->published == r->mine) return;
  r->published = r->mine;
  store(&r->lane->head, r->mine, memory_order_release);
  wake(&r->ways, &r->lane->writer_flag);
}

/* Learn what the writer published. */
static inline int look_at_tail(mc_reader *r) {
  uint64_t tail = load(&r->lane->tail, memory_order_acquire);
  if (tail - r->peer > r->shape.capacity - (r->peer - r->published) || tail & 7)
    return reader_broken(r, MC_BAD_TAIL);
  r->peer = tail;
  return MC_OK;
}

/* The next message, checked: MC_OK, MC_EMPTY or MC_BROKEN. Does not move. */
static inline int next(mc_reader *r, const uint8_t **at, span *s) {
  if (r->peer == r->mine) {
    if (look_at_tail(r)) return MC_BROKEN;
    if (r->peer == r->mine) return MC_EMPTY;
  }
  mc_violation wrong = parse(r->data, r->shape, r->mine, r->peer, s);
  if (!wrong && s->type == PAD) wrong = parse(r->data, r->shape, s->end, r->peer, s);
  if (!wrong && s->length > (s->type == DATA ? r->inline_max : r->limit)) wrong = MC_BAD_RECORD;
  if (wrong) return reader_broken(r, wrong);
  *at = (s->type == CHUNK ? r->pool : r->data) + s->offset;
  __builtin_prefetch(*at + AHEAD);
  __builtin_prefetch(*at + AHEAD + 64);
  return MC_OK;
}

static inline void consume(mc_reader *r, const span *s) {
  r->last = s->length;
  r->redelivered += (int64_t)(r->seen - r->mine) > 0;
  r->mine = s->end;
}

/* Before the caller sees anything: from here on a successor must say `redelivered`. */
static inline void publish_taken(mc_reader *r, uint64_t index) { store(&r->lane->taken, index, memory_order_release); }

int64_t mc_peek(mc_reader *r, const uint8_t **at) {
  span s;
  if (r->state) return r->state;
  mc_done(r);
  r->redelivered = 0;
  int rc = next(r, at, &s);
  if (rc) return rc;
  r->redelivered = (int64_t)(r->seen - r->mine) > 0;
  r->last = s.length;
  r->peeked = s.end;
  publish_taken(r, s.end);
  return (int64_t)s.length;
}

int64_t mc_peek_newest(mc_reader *r, const uint8_t **at) {
  if (r->state || look_at_tail(r)) return r->state;
  uint64_t newest = r->peer; /* what comes meanwhile waits: a fast writer must not hold its reader here */
  int64_t n;
  while ((n = mc_peek(r, at)) >= 0 && (int64_t)(newest - r->peeked) > 0) mc_take(r);
  return n;
}

void mc_take(mc_reader *r) {
  if ((int64_t)(r->peeked - r->mine) > 0) r->mine = r->peeked; /* else another call has read it meanwhile */
}

void mc_release(mc_reader *r) {
  mc_take(r);
  mc_done(r);
}

int64_t mc_read(mc_reader *r, void *buffer, uint64_t room) {
  const uint8_t *at;
  span s;
  if (r->state) return r->state;
  mc_done(r);
  r->redelivered = 0;
  int rc = next(r, &at, &s);
  if (rc) return rc;
  if (s.length > room) return MC_NO_ROOM;
  memcpy(buffer, at, s.length);
  consume(r, &s);
  publish_taken(r, r->mine);
  return (int64_t)s.length;
}

static inline int64_t taken_of(mc_reader *r, uint64_t count, int rc) {
  if (rc == MC_BROKEN || !count) return rc;
  publish_taken(r, r->mine);
  return (int64_t)count;
}

int64_t mc_read_many(mc_reader *r, void *buffer, uint64_t room, uint32_t *lengths, uint64_t *ends, uint64_t count,
                     uint64_t *used) {
  const uint8_t *at;
  span s;
  if (r->state) return r->state;
  mc_done(r);
  r->redelivered = *used = 0;
  uint64_t i = 0;
  int rc = MC_OK;
  for (; i < count && !(rc = next(r, &at, &s)); i++) {
    if (s.length > room - *used) {
      rc = MC_NO_ROOM;
      break;
    }
    memcpy((uint8_t *)buffer + *used, at, s.length);
    *used += s.length;
    lengths[i] = (uint32_t)s.length;
    ends[i] = s.end;
    consume(r, &s);
  }
  return taken_of(r, i, rc);
}

int64_t mc_read_fixed(mc_reader *r, void *buffer, uint32_t length, uint64_t count) {
  const uint8_t *at;
  span s;
  if (r->state) return r->state;
  mc_done(r);
  r->redelivered = 0;
  uint64_t i = 0;
  int rc = MC_OK;
  for (; i < count && !(rc = next(r, &at, &s)); i++) {
    if (s.length != length) {
      rc = MC_MISMATCH;
      break;
    }
    memcpy((uint8_t *)buffer + i * length, at, length);
    consume(r, &s);
  }
  return taken_of(r, i, rc);
}

static bool reader_ready(void *half) {
  mc_reader *r = half;
  return r->state || r->peer != r->mine || load(&r->lane->tail, memory_order_acquire) != r->mine;
}

void mc_reader_close(mc_reader *r) { leave(&r->ways, &r->lane->reader_flag, &r->state); }
bool mc_readable(mc_reader *r) { return reader_ready(r); }
bool mc_reader_arm(mc_reader *r, uint32_t kind) { return arm(reader_ready, r, &r->lane->reader_flag, kind); }
int mc_reader_wait(mc_reader *r, int64_t nanoseconds) {
  uint64_t copying = r->last / COPIED_PER_NS; /* who sent a long message needs as long to copy the next */
  if (copying > LONGEST_SPIN_NS) copying = LONGEST_SPIN_NS;
  uint64_t spin_ns = r->ways.spin_ns ? r->ways.spin_ns + copying : 0;
  return wait_for(reader_ready, r, &r->ways, spin_ns, &r->lane->reader_flag, nanoseconds);
}

/* ---- join --------------------------------------------------------------------------------------------------- */

int mc_reader_join(mc_reader *r, void *base, mc_shape shape, unsigned lane, uint64_t limit, mc_ways ways) {
  mc_lane *l = &((mc_page *)base)->lane[lane & 1];
  const uint8_t *areas = (const uint8_t *)base + MC_PAGE;
  *r = (mc_reader){.lane = l, .shape = shape, .limit = limit, .inline_max = inline_max(shape), .ways = ways};
  if (limit < r->inline_max) r->inline_max = limit;
  r->data = areas + (lane & 1) * shape.capacity;
  r->pool = areas + 2 * shape.capacity + (lane & 1) * shape.pool;
  uint64_t head = load(&l->head, memory_order_acquire), taken = load(&l->taken, memory_order_acquire);
  uint64_t tail = load(&l->tail, memory_order_acquire);
  r->mine = r->published = r->peeked = head;
  r->peer = tail;
  r->seen = taken;
  if (tail - head > shape.capacity || tail & 7) return reader_broken(r, MC_BAD_TAIL);
  if (head & 7) return reader_broken(r, MC_BAD_HEAD);
  if (taken - head > tail - head) return reader_broken(r, MC_BAD_TAKEN);
  return MC_OK;
}

/* The chunks in flight are those of the records that the reader has not acknowledged. */
static mc_violation find_chunks(mc_writer *w) {
  span s = {0};
  for (uint64_t index = w->peer; index != w->mine; index = s.end) {
    mc_violation wrong = parse(w->data, w->shape, index, w->mine, &s);
    if (wrong) return wrong;
    if (s.type != CHUNK) continue;
    if (w->first_chunk == w->last_chunk) w->pool_free = w->pool_mine = s.chunk;
    if (s.chunk - w->pool_mine > w->shape.pool || s.chunk + s.length - w->pool_free > w->shape.pool
        || w->last_chunk - w->first_chunk == MC_CHUNKS)
      return MC_BAD_CHUNK;
    w->pool_mine = s.chunk + s.length;
    w->chunk[w->last_chunk & (MC_CHUNKS - 1)].record = s.end;
    w->chunk[w->last_chunk++ & (MC_CHUNKS - 1)].pool = w->pool_mine;
  }
  return MC_NONE;
}

int mc_writer_join(mc_writer *w, void *base, mc_shape shape, unsigned lane, uint64_t limit, mc_ways ways) {
  mc_lane *l = &((mc_page *)base)->lane[lane & 1];
  uint8_t *areas = (uint8_t *)base + MC_PAGE;
  memset(w, 0, sizeof *w);
  w->lane = l;
  w->shape = shape;
  w->limit = limit < shape.pool ? limit : shape.pool;
  w->inline_max = inline_max(shape);
  w->ways = ways;
  w->data = areas + (lane & 1) * shape.capacity;
  w->pool = areas + 2 * shape.capacity + (lane & 1) * shape.pool;
  w->mine = w->published = load(&l->tail, memory_order_acquire);
  w->peer = load(&l->head, memory_order_acquire);
  if (w->mine - w->peer > shape.capacity || w->peer & 7) return writer_broken(w, MC_BAD_HEAD);
  if (w->mine & 7) return writer_broken(w, MC_BAD_TAIL);
  mc_violation wrong = find_chunks(w);
  return wrong ? writer_broken(w, wrong) : MC_OK;
}

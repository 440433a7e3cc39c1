#include <Python.h>

#include "end.h"

#include <time.h>

#define LOOKS 32 /* about a microsecond */

int mcp_region_check(void *base, uint64_t size, uint64_t *shape) {
  mc_shape found = {0, 0};
  int rc = mc_region_check(base, size, &found);
  shape[0] = found.capacity;
  shape[1] = found.pool;
  return rc;
}

int mcp_join(mcp_end *e, void *base, uint64_t capacity, uint64_t pool, int side, uint64_t limit,
             int bell, int peer_bell, int futex, double spin) {
  mc_ways ways = {.spin_ns = (uint64_t)(spin * 1e9), .kind = futex ? MC_FUTEX : bell < 0 ? MC_POLL : MC_FD};
  ways.bell[MC_POLL] = mc_bell_poll();
  if (futex) ways.bell[MC_FUTEX] = mc_bell_futex();
  ways.bell[MC_FD] = mc_bell_fd(bell, peer_bell);
  mc_shape shape = {capacity, pool};
  e->base = (const char *)base;
  int rc = mc_writer_join(&e->out, base, shape, (unsigned)side, limit, ways);
  return rc ? rc : mc_reader_join(&e->in, base, shape, (unsigned)side ^ 1u, limit, ways);
}

void mcp_close(mcp_end *e) {
  mc_writer_close(&e->out);
  mc_reader_close(&e->in);
}

/* A violation in one direction ends both. */
int mcp_broken(mcp_end *e) {
  mc_violation why = e->out.violation ? e->out.violation : e->in.violation;
  if (why) e->out.state = e->in.state = MC_BROKEN;
  return (int)why;
}

/* A coarse clock: a caller in a tight loop looks at its control socket now and then, without a system call each time. */
static inline int due(mcp_end *e) {
  if (e->period == 0) return 0;
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
  uint64_t now = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
  if (now < e->due) return 0;
  e->due = now + (uint64_t)(e->period * 1e9);
  return 1;
}

#define ATTEND(e) do { if (due(e)) return MCP_ATTENTION; } while (0)

int mcp_write(mcp_end *e, const char *message, size_t length) {
  ATTEND(e);
  return mc_write(&e->out, message, length);
}

int64_t mcp_write_many(mcp_end *e, const char *messages, const uint32_t *lengths, size_t count) {
  ATTEND(e);
  return mc_write_many(&e->out, messages, lengths, count);
}

int64_t mcp_write_fixed(mcp_end *e, const char *messages, uint32_t length, size_t count) {
  ATTEND(e);
  return mc_write_fixed(&e->out, messages, length, count);
}

int64_t mcp_peek(mcp_end *e) {
  ATTEND(e);
  const uint8_t *at;
  int64_t n = mc_peek(&e->in, &at);
  if (n < 0) return n;
  e->view = (uint64_t)((const char *)at - e->base);
  e->view_end = e->view + (uint64_t)n;
  return n;
}

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* An answer that is on its way already is not worth giving up the lock for. */
static inline bool comes_soon(mcp_end *e) {
  if (e->in.ways.spin_ns)
    for (int i = 0; i < LOOKS; i++) {
      if (mc_readable(&e->in)) return true;
      mc_pause();
    }
  return false;
}

/* Wait without the lock: 0, MC_TIMEOUT, MC_INTERRUPTED, or MCP_ATTENTION with `left` to go. Negative: no limit. */
static int wait(mcp_end *e, double timeout, bool writable) {
  if (!writable && comes_soon(e)) return MC_OK;
  double slice = e->period != 0 && (timeout < 0 || timeout > e->period) ? e->period : timeout;
  int64_t ns = slice < 0 ? -1 : slice > 1e9 ? INT64_C(1000000000000000000) : (int64_t)(slice * 1e9);
  PyThreadState *thread = PyEval_SaveThread();
  double start = seconds();
  int rc = writable ? mc_writer_wait(&e->out, ns) : mc_reader_wait(&e->in, ns);
  double left = rc == MC_OK ? 0 : timeout - (seconds() - start);
  PyEval_RestoreThread(thread);
  if (rc == MC_OK) return rc;
  e->left = timeout < 0 ? timeout : left > 0 ? left : 0;
  if (rc == MC_TIMEOUT && e->left != 0) return due(e) ? MCP_ATTENTION : MC_INTERRUPTED;
  return rc;
}

int64_t mcp_next(mcp_end *e, double timeout, const uint8_t **at) {
  e->left = timeout;
  ATTEND(e);
  int64_t n = mc_peek(&e->in, at);
  if (n != MC_EMPTY || timeout == 0) return n;
  int rc = wait(e, timeout, false);
  return rc ? rc : mc_peek(&e->in, at);
}

int64_t mcp_newest(mcp_end *e, const uint8_t **at) {
  ATTEND(e);
  return mc_peek_newest(&e->in, at);
}

int64_t mcp_read_many(mcp_end *e, size_t room, size_t count) {
  ATTEND(e);
  int64_t n = e->count = mc_read_many(&e->in, e->scratch, room, e->lengths, e->ends, count, &e->used);
  uint32_t other = 0;
  for (int64_t i = 1; i < n; i++) other |= e->lengths[i] ^ e->lengths[0];
  e->alike = !other;
  return n;
}

int64_t mcp_read_fixed(mcp_end *e, uint32_t length, size_t count) {
  ATTEND(e);
  return mc_read_fixed(&e->in, e->scratch, length, count);
}

int mcp_wait_readable(mcp_end *e, double timeout) {
  e->left = timeout;
  ATTEND(e);
  return mc_readable(&e->in) ? MC_OK : timeout == 0 ? MC_TIMEOUT : wait(e, timeout, false);
}

int mcp_wait_writable(mcp_end *e, double timeout) {
  e->left = timeout;
  ATTEND(e);
  return mc_writable(&e->out) ? MC_OK : timeout == 0 ? MC_TIMEOUT : wait(e, timeout, true);
}

void mcp_release(mcp_end *e) { mc_release(&e->in); }
void mcp_done(mcp_end *e) { mc_done(&e->in); }
int mcp_arm_readable(mcp_end *e, int kind) { return mc_reader_arm(&e->in, (uint32_t)kind); }
int mcp_arm_writable(mcp_end *e, int kind) { return mc_writer_arm(&e->out, (uint32_t)kind); }

uint64_t mcp_written(mcp_end *e) { return e->out.published; }
uint64_t mcp_peer_taken(mcp_end *e) { return mc_writer_taken(&e->out); }
uint64_t mcp_peer_acknowledged(mcp_end *e) { return mc_writer_acknowledged(&e->out); }
uint64_t mcp_received(mcp_end *e) { return e->in.mine; }
uint64_t mcp_settled(mcp_end *e) { return e->in.published; }
uint64_t mcp_redelivered(mcp_end *e) { return e->in.redelivered; }
uint64_t mcp_rung(mcp_end *e) { return e->out.ways.rung + e->in.ways.rung; }

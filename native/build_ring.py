"""Bind the C ring to Python: ``ffi`` builds ``mchannel._ring`` (cffi API mode, stable ABI).

The glue below adds what only Python needs: one call that reads or waits, and a coarse clock so that a caller in a
tight loop still looks at its control socket now and then without a system call for each message.
"""

from cffi import FFI

ffi = FFI()

ffi.cdef("""
#define MC_OK ...
#define MC_EMPTY ...
#define MC_FULL ...
#define MC_TOO_BIG ...
#define MC_BROKEN ...
#define MC_CLOSED ...
#define MC_TIMEOUT ...
#define MC_INTERRUPTED ...
#define MC_NO_ROOM ...
#define MC_MISMATCH ...
#define MCP_ATTENTION ...
#define MCP_VIEW ...
#define MC_POLL ...
#define MC_FD ...

uint64_t mc_region_size(uint64_t capacity, uint64_t pool);
void mc_region_init(void *base, uint64_t capacity, uint64_t pool);
int mcp_region_check(void *base, uint64_t size, uint64_t *shape);
uint64_t mc_region_epoch(void *base);
uint64_t mc_region_advance(void *base);
void mc_bell_drain(int own);

typedef struct {
    char *scratch;          /* what mcp_read* filled */
    uint32_t *lengths;
    uint64_t *ends;         /* the index after each message of the last batch */
    int64_t count;          /* how many it had, or a code */
    uint64_t used;          /* bytes of scratch that it took */
    int alike;              /* all messages of the last batch have one length */
    uint64_t view, view_end; /* a message that was left where it lies: offsets in the region */
    double left;            /* seconds of the last call's timeout that are left */
    double period;          /* seconds between two MCP_ATTENTION; 0: never */
    ...;
} mcp_end;

int mcp_join(mcp_end *e, void *base, uint64_t capacity, uint64_t pool, int side, uint64_t limit,
             int bell, int peer_bell, int futex, double spin);
void mcp_close(mcp_end *e);
int mcp_broken(mcp_end *e);

int64_t mcp_write(mcp_end *e, const char *message, size_t length);
int64_t mcp_write_many(mcp_end *e, const char *messages, const uint32_t *lengths, size_t count);
int64_t mcp_write_fixed(mcp_end *e, const char *messages, uint32_t length, size_t count);
int64_t mcp_read(mcp_end *e, double timeout);
int64_t mcp_read_newest(mcp_end *e);
int64_t mcp_read_many(mcp_end *e, size_t room, size_t count);
int64_t mcp_read_fixed(mcp_end *e, uint32_t length, size_t count);
int64_t mcp_peek(mcp_end *e);
void mcp_release(mcp_end *e);
void mcp_done(mcp_end *e);
int mcp_wait_readable(mcp_end *e, double timeout);
int mcp_wait_writable(mcp_end *e, double timeout);
int mcp_arm_readable(mcp_end *e, int kind);
int mcp_arm_writable(mcp_end *e, int kind);

uint64_t mcp_written(mcp_end *e);
uint64_t mcp_peer_taken(mcp_end *e);
uint64_t mcp_peer_acknowledged(mcp_end *e);
uint64_t mcp_received(mcp_end *e);
uint64_t mcp_settled(mcp_end *e);
uint64_t mcp_redelivered(mcp_end *e);
uint64_t mcp_rung(mcp_end *e);
""")

GLUE = r"""
#include "ring.h"
#include <string.h>
#include <time.h>

/* cffi gives up the interpreter's lock around every call. A call here takes about 50 ns, and a busy second thread
 * would keep the lock for its whole switch interval (5 ms) each time. So only the waits give it up, below. */
#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define Py_BEGIN_ALLOW_THREADS {
#define Py_END_ALLOW_THREADS }

enum { MCP_ATTENTION = -100, MCP_VIEW = -101 };

typedef struct {
    char *scratch;
    uint32_t *lengths;
    uint64_t *ends;
    int64_t count;
    uint64_t used;
    int alike;
    uint64_t view, view_end;
    double left, period;
    uint64_t due;
    const char *base;
    mc_writer out;
    mc_reader in;
} mcp_end;

static int mcp_region_check(void *base, uint64_t size, uint64_t *shape) {
    mc_shape found = {0, 0};
    int rc = mc_region_check(base, size, &found);
    shape[0] = found.capacity;
    shape[1] = found.pool;
    return rc;
}

static int mcp_join(mcp_end *e, void *base, uint64_t capacity, uint64_t pool, int side, uint64_t limit,
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

static void mcp_close(mcp_end *e) {
    mc_writer_close(&e->out);
    mc_reader_close(&e->in);
}

/* A violation in one direction ends both. */
static int mcp_broken(mcp_end *e) {
    mc_violation why = e->out.violation ? e->out.violation : e->in.violation;
    if (why) e->out.state = e->in.state = MC_BROKEN;
    return (int)why;
}

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

static int64_t mcp_write(mcp_end *e, const char *message, size_t length) {
    ATTEND(e);
    return mc_write(&e->out, message, length);
}

static int64_t mcp_write_many(mcp_end *e, const char *messages, const uint32_t *lengths, size_t count) {
    ATTEND(e);
    return mc_write_many(&e->out, messages, lengths, count);
}

static int64_t mcp_write_fixed(mcp_end *e, const char *messages, uint32_t length, size_t count) {
    ATTEND(e);
    return mc_write_fixed(&e->out, messages, length, count);
}

static inline void show(mcp_end *e, const uint8_t *at, int64_t length) {
    e->view = (uint64_t)((const char *)at - e->base);
    e->view_end = e->view + (uint64_t)length;
}

static int64_t mcp_peek(mcp_end *e) {
    ATTEND(e);
    const uint8_t *at;
    int64_t n = mc_peek(&e->in, &at);
    if (n >= 0) show(e, at, n);
    return n;
}

/* Short messages into scratch; a long one stays where it lies until the next call, so that it is copied once. */
static inline int64_t hand_out(mcp_end *e, const uint8_t *at, int64_t n) {
    if (n < 0) return n;
    mc_take(&e->in);
    if ((uint64_t)n > e->out.inline_max) {
        show(e, at, n);
        return MCP_VIEW;
    }
    memcpy(e->scratch, at, (size_t)n);
    return n;
}

static inline int64_t read_one(mcp_end *e) {
    const uint8_t *at;
    int64_t n = mc_peek(&e->in, &at);
    return hand_out(e, at, n);
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Wait without the lock: 0, MC_TIMEOUT, MC_INTERRUPTED, or MCP_ATTENTION with `left` to go. Negative: no limit. */
static int wait(mcp_end *e, double timeout, int writable) {
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

static int64_t mcp_read(mcp_end *e, double timeout) {
    e->left = timeout;
    ATTEND(e);
    int64_t n = read_one(e);
    if (n != MC_EMPTY || timeout == 0) return n;
    int rc = wait(e, timeout, 0);
    return rc ? rc : read_one(e);
}

static int64_t mcp_read_newest(mcp_end *e) {
    ATTEND(e);
    const uint8_t *at;
    int64_t n = mc_peek_newest(&e->in, &at);
    return hand_out(e, at, n);
}

static int64_t mcp_read_many(mcp_end *e, size_t room, size_t count) {
    ATTEND(e);
    int64_t n = e->count = mc_read_many(&e->in, e->scratch, room, e->lengths, e->ends, count, &e->used);
    uint32_t other = 0;
    for (int64_t i = 1; i < n; i++) other |= e->lengths[i] ^ e->lengths[0];
    e->alike = !other;
    return n;
}

static int64_t mcp_read_fixed(mcp_end *e, uint32_t length, size_t count) {
    ATTEND(e);
    return mc_read_fixed(&e->in, e->scratch, length, count);
}

static int mcp_wait_readable(mcp_end *e, double timeout) {
    e->left = timeout;
    ATTEND(e);
    return mc_readable(&e->in) ? MC_OK : timeout == 0 ? MC_TIMEOUT : wait(e, timeout, 0);
}

static int mcp_wait_writable(mcp_end *e, double timeout) {
    e->left = timeout;
    ATTEND(e);
    return mc_writable(&e->out) ? MC_OK : timeout == 0 ? MC_TIMEOUT : wait(e, timeout, 1);
}

static void mcp_release(mcp_end *e) { mc_release(&e->in); }
static void mcp_done(mcp_end *e) { mc_done(&e->in); }
static int mcp_arm_readable(mcp_end *e, int kind) { return mc_reader_arm(&e->in, (uint32_t)kind); }
static int mcp_arm_writable(mcp_end *e, int kind) { return mc_writer_arm(&e->out, (uint32_t)kind); }

static uint64_t mcp_written(mcp_end *e) { return e->out.published; }
static uint64_t mcp_peer_taken(mcp_end *e) { return mc_writer_taken(&e->out); }
static uint64_t mcp_peer_acknowledged(mcp_end *e) { return mc_writer_acknowledged(&e->out); }
static uint64_t mcp_received(mcp_end *e) { return e->in.mine; }
static uint64_t mcp_settled(mcp_end *e) { return e->in.published; }
static uint64_t mcp_redelivered(mcp_end *e) { return e->in.redelivered; }
static uint64_t mcp_rung(mcp_end *e) { return e->out.ways.rung + e->in.ways.rung; }
"""

ffi.set_source(
    "mchannel._ring",
    GLUE,
    sources=["native/ring.c"],
    depends=["native/ring.h"],
    include_dirs=["native"],
    extra_compile_args=[
        "-std=c11",
        "-O3",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-Wno-missing-field-initializers",
    ],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)

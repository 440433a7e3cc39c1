"""Bind the C ring to Python: ``ffi`` builds ``mchannel._ring`` (cffi API mode, stable ABI).

What a call does stands in ring.h and end.h. The two calls that every message costs are not among these: quick.c.
"""

from cffi import FFI

ffi = FFI()

ffi.cdef("""
#define MC_OK ...
#define MC_EMPTY ...
#define MC_TOO_BIG ...
#define MC_BROKEN ...
#define MC_CLOSED ...
#define MC_TIMEOUT ...
#define MC_INTERRUPTED ...
#define MC_NO_ROOM ...
#define MC_MISMATCH ...
#define MCP_ATTENTION ...
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
    uint64_t view, view_end; /* where mcp_peek's message lies: offsets in the region */
    double left;            /* seconds of the last call's timeout that are left */
    double period;          /* seconds between two MCP_ATTENTION; 0: never */
    ...;
} mcp_end;

int mcp_join(mcp_end *e, void *base, uint64_t capacity, uint64_t pool, int side, uint64_t limit,
             int bell, int peer_bell, int futex, double spin);
void mcp_close(mcp_end *e);
int mcp_broken(mcp_end *e);

int64_t mcp_write_many(mcp_end *e, const char *messages, const uint32_t *lengths, size_t count);
int64_t mcp_write_fixed(mcp_end *e, const char *messages, uint32_t length, size_t count);
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
#include "end.h"

/* cffi gives up the interpreter's lock around every call. A call here takes about 50 ns, and a busy second thread
 * would keep the lock for its whole switch interval (5 ms) each time. So only the waits give it up, in end.c. */
#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define Py_BEGIN_ALLOW_THREADS {
#define Py_END_ALLOW_THREADS }
"""

ffi.set_source(
    "mchannel._ring",
    GLUE,
    sources=["native/ring.c", "native/end.c"],
    depends=["native/ring.h", "native/end.h"],
    include_dirs=["native"],
    extra_compile_args=[
        "-std=c11",
        "-O3",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-Wno-missing-field-initializers",
    ],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)

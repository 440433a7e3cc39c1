/* One end of a ring as Python sees it: both halves, and what its last call left behind. */
#ifndef MCHANNEL_END_H
#define MCHANNEL_END_H

#include "ring.h"

enum { MCP_ATTENTION = -100 }; /* `period` has passed: look around and call again, nothing has happened */

typedef struct mcp_end { /* the fields that Python uses are explained in build_ring.py */
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

int mcp_region_check(void *base, uint64_t size, uint64_t *shape);
int mcp_join(mcp_end *e, void *base, uint64_t capacity, uint64_t pool, int side, uint64_t limit,
             int bell, int peer_bell, int futex, double spin);
void mcp_close(mcp_end *e);
int mcp_broken(mcp_end *e);

/* What mc_* returns, or MCP_ATTENTION. */
int mcp_write(mcp_end *e, const char *message, size_t length);
int64_t mcp_write_many(mcp_end *e, const char *messages, const uint32_t *lengths, size_t count);
int64_t mcp_write_fixed(mcp_end *e, const char *messages, uint32_t length, size_t count);
/* The next message where it lies, after at most `timeout` seconds (negative: no limit), or the newest; mc_take it. */
int64_t mcp_next(mcp_end *e, double timeout, const uint8_t **at);
int64_t mcp_newest(mcp_end *e, const uint8_t **at);
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

#endif

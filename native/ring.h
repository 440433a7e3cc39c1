/* A single-producer, single-consumer ring of variable-length messages over memory that the caller gives.
 *
 * The two ends do not trust each other. What an end owns (its index, the capacity, every pointer) it keeps in
 * private memory and only publishes; what the peer owns it loads once, checks against its range, and masks. A
 * violation is permanent: every later call on that end returns MC_BROKEN.
 *
 * A region (mc_region_size bytes, zeroed, aligned to a page) holds two lanes, one a direction:
 *
 *   page 0   header | lane 0 | lane 1      a lane is four lines of 128 bytes: tail | head, taken | two wake flags
 *   data 0, data 1                         capacity bytes each: the records
 *   pool 0, pool 1                         pool bytes each: messages too long for a record
 *
 * Indices count bytes since the region was made and never wrap in practice (64 bits). A record is one word
 * (u32 length, u16 type, u16 flags) and its payload, 8-aligned; a PAD record fills the end of the data area. A long
 * message lies contiguously in the pool, and its record is a CHUNK {u64 pool index, u64 length}. The pool has no
 * shared index: the record's acknowledgement frees the chunk. So one store of `tail` publishes and one store of
 * `head` acknowledges, whatever the message, and a peer killed between any two instructions leaves nothing half done.
 *
 * `taken` is where the reader has looked; `head` is what it is done with. A reader stores `taken` before it hands a
 * message out and `head` when it asks for the next one. A successor starts at `head`; up to `taken` its
 * predecessor may have seen the messages already (mc_reader.redelivered). A successor of a writer starts at `tail`.
 */
#ifndef MCHANNEL_RING_H
#define MCHANNEL_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MC_PAGE 4096u
#define MC_LONG 16384u /* messages of this length and more go to the pool */
#define MC_CHUNKS 1024u /* most chunks in flight, a power of two */

enum {
  MC_OK = 0,
  MC_EMPTY = -1,       /* nothing to read */
  MC_FULL = -2,        /* no room until the peer acknowledges */
  MC_TOO_BIG = -3,     /* longer than the limit or the pool */
  MC_BROKEN = -4,      /* the peer broke the rules; permanent */
  MC_CLOSED = -5,      /* this end was closed */
  MC_TIMEOUT = -6,     /* nothing happened in time */
  MC_INTERRUPTED = -7, /* a signal, or a peer that rings without cause: look around and call again */
  MC_NO_ROOM = -8,     /* the next message does not fit into the caller's buffer */
  MC_MISMATCH = -9,    /* the next message has another length than asked for */
};

typedef enum mc_violation {
  MC_NONE = 0,
  MC_BAD_HEADER, /* magic, version, byte order, feature, or a size that does not fit */
  MC_BAD_TAIL,   /* the writer's index is out of range */
  MC_BAD_HEAD,   /* the reader's index is out of range */
  MC_BAD_TAKEN,  /* the predecessor's index is out of range */
  MC_BAD_RECORD, /* a record's length, type or flags */
  MC_BAD_CHUNK,  /* a chunk outside the pool */
} mc_violation;

/* How an end that found nothing to do sleeps; the value of its wake flag. */
enum { MC_POLL = 0, MC_FUTEX = 1, MC_FD = 2, MC_KINDS = 3 };

/* One way to sleep and to wake the peer that sleeps so. A kind whose `ring` is NULL is never rung, whatever the peer's
 * flag says: a futex word must not cross a guest boundary, so an end that faces a guest leaves MC_FUTEX empty. */
typedef struct mc_bell {
  void (*ring)(const struct mc_bell *bell, _Atomic uint32_t *flag);  /* must not block */
  int (*sleep)(const struct mc_bell *bell, _Atomic uint32_t *flag, int64_t nanoseconds); /* < 0: no limit */
  int own, peer; /* file descriptors, for the kinds that have them */
  void *context;
} mc_bell;

typedef struct mc_lane { /* shared memory */
  _Alignas(128) _Atomic uint64_t tail;
  _Alignas(128) _Atomic uint64_t head;
  _Atomic uint64_t taken;
  _Alignas(128) _Atomic uint32_t reader_flag;
  _Alignas(128) _Atomic uint32_t writer_flag;
} mc_lane;

typedef struct mc_header { /* shared memory */
  _Atomic uint64_t magic;
  _Atomic uint32_t version, order;
  _Atomic uint64_t features, capacity, pool, epoch;
} mc_header;

typedef struct mc_page {
  mc_header header;
  mc_lane lane[2];
} mc_page;

typedef struct mc_shape { /* a private copy of the header, checked */
  uint64_t capacity, pool;
} mc_shape;

typedef struct mc_ways { /* private: how this end sleeps and rings */
  mc_bell bell[MC_KINDS];
  uint32_t kind;    /* how mc_*_wait sleeps */
  uint64_t spin_ns; /* how long it looks before it sleeps */
  uint64_t rung;    /* how often the peer had to be woken */
} mc_ways;

typedef struct mc_writer {
  mc_lane *lane;
  uint8_t *data, *pool;
  mc_shape shape;
  uint64_t limit, inline_max;
  uint64_t mine, published, peer;   /* own index, the part of it that the peer knows, the reader's */
  uint64_t pool_mine, pool_free;    /* chunks in flight lie in [pool_free, pool_mine) */
  uint64_t first_chunk, last_chunk; /* free-running over `chunk` */
  struct { uint64_t record, pool; } chunk[MC_CHUNKS]; /* where the record and the chunk end */
  mc_ways ways;
  _Atomic int state; /* MC_OK, MC_BROKEN or MC_CLOSED */
  bool full; /* the last write found no room */
  mc_violation violation;
} mc_writer;

typedef struct mc_reader {
  mc_lane *lane;
  const uint8_t *data, *pool;
  mc_shape shape;
  uint64_t limit, inline_max;
  uint64_t mine, published, peer; /* own index, the part acknowledged, the writer's */
  uint64_t peeked;                /* end of the record that mc_peek showed last */
  uint64_t seen;                  /* the predecessor may have seen what lies before */
  uint64_t last;                  /* length of the message handed out last */
  uint64_t redelivered;           /* how many messages of the last call the predecessor may have seen */
  mc_ways ways;
  _Atomic int state;
  mc_violation violation;
} mc_reader;

/* Bytes of a region, or 0 if a size is not a power of two from 4 KiB to 1 GiB. */
uint64_t mc_region_size(uint64_t capacity, uint64_t pool);
/* Write the header over zeroed memory. */
void mc_region_init(void *base, uint64_t capacity, uint64_t pool);
/* Copy the header once and check the copy: MC_OK or MC_BROKEN. */
int mc_region_check(void *base, uint64_t size, mc_shape *shape);
uint64_t mc_region_epoch(void *base);
uint64_t mc_region_advance(void *base);

/* Join a lane where its last writer or reader stopped. `limit` bounds a message in bytes. MC_OK or MC_BROKEN. */
int mc_writer_join(mc_writer *w, void *base, mc_shape shape, unsigned lane, uint64_t limit, mc_ways ways);
int mc_reader_join(mc_reader *r, void *base, mc_shape shape, unsigned lane, uint64_t limit, mc_ways ways);

/* Permanent; a thread of this end that sleeps in mc_*_wait on a futex returns. Acknowledges nothing. */
void mc_writer_close(mc_writer *w);
void mc_reader_close(mc_reader *r);

/* MC_OK, MC_FULL, MC_TOO_BIG, MC_BROKEN, MC_CLOSED. The batch calls publish once and return how many were written. */
int mc_write(mc_writer *w, const void *message, uint64_t length);
int64_t mc_write_many(mc_writer *w, const void *messages, const uint32_t *lengths, uint64_t count);
int64_t mc_write_fixed(mc_writer *w, const void *messages, uint32_t length, uint64_t count);

/* How far the reader came: what it may have seen, and what it is done with. Its word, but never beyond what was
 * published; a word out of range breaks the writer. */
uint64_t mc_writer_taken(mc_writer *w);
uint64_t mc_writer_acknowledged(mc_writer *w);

/* Each asks for the next message and thereby acknowledges those handed out before. They return a length or a count,
 * or MC_EMPTY, MC_NO_ROOM, MC_MISMATCH, MC_BROKEN, MC_CLOSED. */
int64_t mc_read(mc_reader *r, void *buffer, uint64_t room);
int64_t mc_read_many(mc_reader *r, void *buffer, uint64_t room, uint32_t *lengths, uint64_t *ends, uint64_t count,
                     uint64_t *used); /* ends: the reader's index after each message */
int64_t mc_read_fixed(mc_reader *r, void *buffer, uint32_t length, uint64_t count);
/* The next message where it lies. A peer that is not trusted can still change it. mc_release is done with it. */
int64_t mc_peek(mc_reader *r, const uint8_t **at);
void mc_release(mc_reader *r);
/* The same with the newest of those that are there when it is called; those before it are acknowledged unseen. */
int64_t mc_peek_newest(mc_reader *r, const uint8_t **at);
/* Hand the peeked message out: it is taken, and acknowledged with the next call. Nothing happens if that was read
 * since. */
void mc_take(mc_reader *r);
/* Acknowledge all that was handed out. */
void mc_done(mc_reader *r);

static inline void mc_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* Is there something to do (a message, room again, or an error to report)? */
bool mc_readable(mc_reader *r);
bool mc_writable(mc_writer *w);
/* Spin, then sleep. MC_OK, MC_TIMEOUT or MC_INTERRUPTED; nanoseconds < 0: no limit. */
int mc_reader_wait(mc_reader *r, int64_t nanoseconds);
int mc_writer_wait(mc_writer *w, int64_t nanoseconds);
/* Ask for the bell of this kind; true: do not sleep, there is something to do already. Kind MC_POLL disarms. */
bool mc_reader_arm(mc_reader *r, uint32_t kind);
bool mc_writer_arm(mc_writer *w, uint32_t kind);

mc_bell mc_bell_poll(void);
mc_bell mc_bell_futex(void);
/* Sockets (which a peer cannot make block) or eventfds (between ends that trust each other); -1 for none. */
mc_bell mc_bell_fd(int own, int peer);
void mc_bell_drain(int own);

#endif

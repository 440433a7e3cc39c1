/* A hostile peer against one half of a ring, under libFuzzer with ASan and UBSan.
 *
 * The input drives the victim's calls and what the peer writes between them; a second thread rewrites indices and
 * records during the calls. All of the region that the victim has no business with is poisoned, its buffers are as
 * small as they may be, and what it returns must hold. */
#include "ring.h"

#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum { CAPACITY = 4096, POOL = 4096, ROOM = 4096, LENGTHS = 16 };
#define CHECK(truth) do { if (!(truth)) abort(); } while (0)

static const uint8_t *input;
static size_t left;
static uint8_t *region;
static atomic_bool stop, started;

static uint64_t take(unsigned bytes) {
  uint64_t value = 0;
  for (; bytes && left; bytes--, left--) value = value << 8 | *input++;
  return value;
}

/* The peer writes where the victim must not look as well: no sanitizer for it. */
__attribute__((no_sanitize("address", "undefined"))) static void poke(uint64_t offset, uint64_t value) {
  *(volatile uint64_t *)(region + offset % mc_region_size(CAPACITY, POOL) / 8 * 8) = value;
}

static uint64_t lane_word(uint64_t lane, uint64_t which) { /* tail, head, taken, reader flag, writer flag */
  static const uint16_t at[] = {0, 128, 136, 256, 384};
  return offsetof(mc_page, lane) + (lane & 1) * sizeof(mc_lane) + at[which % 5];
}

static uint64_t data_word(uint64_t lane, uint64_t offset) { return MC_PAGE + (lane & 1) * CAPACITY + offset % CAPACITY; }

static uint64_t plausible(uint64_t x) { /* a record that is nearly right */
  static const uint32_t lengths[] = {0, 8, 16, 100, 1000, 1016, 1017, 2000, 4080, 4088, 4096, 0x7fffffff, 0xffffffff};
  return lengths[x % 13] | (x / 13 % 4) << 32 | (uint64_t)(x / 52 % 16 == 0) << 48;
}

static void *attack(void *seed) {
  uint64_t x = *(uint64_t *)seed | 1;
  atomic_store(&started, true);
  while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    uint64_t lane = x >> 60 & 1;
    switch (x >> 5 & 7) {
    case 0: poke(lane_word(lane, x >> 16), x >> 40 & 0x1ff8); break;
    case 1: poke(x >> 16, x); break;
    case 2: poke(data_word(lane, x >> 16), x >> 20 & 0x1fff); break; /* also a chunk's index or length */
    default: poke(data_word(lane, x >> 16), plausible(x >> 30)); break;
    }
  }
  return NULL;
}

static struct { uint64_t at, words[2][3]; } duel;

/* One record changes for ever between two that are plausible. */
static void *flip(void *unused) {
  atomic_store(&started, true);
  for (unsigned i = 0; !atomic_load_explicit(&stop, memory_order_relaxed); i ^= 1)
    for (unsigned word = 0; word < 3; word++) poke(data_word(0, duel.at + 8 * word), duel.words[i][word]);
  return unused;
}

static void victim_reads_one_record(mc_shape shape, mc_ways ways) {
  mc_reader *r = malloc(sizeof *r);
  uint8_t *buffer = malloc(ROOM);
  for (int i = 0; i < 300; i++) {
    mc_reader_join(r, region, shape, 0, POOL, ways);
    CHECK(mc_read(r, buffer, ROOM) <= ROOM);
  }
  free(buffer);
  free(r);
}

static void victim_reads(mc_shape shape, mc_ways ways) {
  mc_reader *r = malloc(sizeof *r);
  uint8_t *buffer = malloc(ROOM);
  uint32_t *lengths = malloc(LENGTHS * sizeof *lengths);
  uint64_t *ends = malloc(LENGTHS * sizeof *ends);
  const uint8_t *at = NULL;
  int dead = mc_reader_join(r, region, shape, 0, POOL, ways);
  while (left) {
    uint64_t op = take(1), used = 0;
    int64_t n = 0;
    switch (op % 8) {
    case 0: poke(lane_word(0, take(1)), take(8)); continue;
    case 1: poke(lane_word(0, 0), r->mine + 8 * take(1)); continue;
    case 2: poke(data_word(0, r->mine + 8 * (op >> 5)), plausible(take(2))); continue;
    case 3: poke(data_word(0, take(2)), take(8)); continue;
    case 4:
      n = mc_read(r, buffer, ROOM);
      CHECK(n <= ROOM);
      break;
    case 5:
      n = mc_read_many(r, buffer, ROOM, lengths, ends, LENGTHS, &used);
      CHECK(n <= LENGTHS && used <= ROOM);
      CHECK(n <= 0 || ends[n - 1] == r->mine);
      for (int64_t i = 0; i < n; i++) used -= lengths[i];
      CHECK(n < 0 || used == 0);
      break;
    case 6: n = mc_read_fixed(r, buffer, 8, ROOM / 8); break;
    case 7:
      n = op & 16 ? mc_peek_newest(r, &at) : mc_peek(r, &at);
      for (int64_t i = 0; i < n; i++) ((volatile uint8_t *)buffer)[i] = at[i];
      if (op & 8) mc_take(r);
      else mc_release(r);
      break;
    }
    CHECK(!dead || n == MC_BROKEN); /* once broken, for ever */
    if ((dead = r->state)) continue;
    CHECK(r->peer - r->published <= CAPACITY && r->mine - r->published <= r->peer - r->published);
  }
  free(ends);
  free(lengths);
  free(buffer);
  free(r);
}

static void victim_writes(mc_shape shape, mc_ways ways) {
  mc_writer *w = malloc(sizeof *w);
  uint8_t *message = calloc(1, ROOM);
  uint32_t lengths[LENGTHS];
  int dead = mc_writer_join(w, region, shape, 0, POOL, ways);
  while (left) {
    uint64_t op = take(1);
    int64_t n = 0;
    switch (op % 8) {
    case 0: poke(lane_word(0, take(1)), take(8)); continue;
    case 1: poke(lane_word(0, 1), w->published - 8 * take(1)); continue;
    case 2: poke(lane_word(0, 1), w->published); continue;
    case 3: poke(data_word(0, take(2)), plausible(take(2))); continue;
    case 4: n = mc_write(w, message, take(2) % (ROOM + 1)); break;
    case 5:
      for (int i = 0; i < LENGTHS; i++) lengths[i] = (uint32_t)take(1);
      n = mc_write_many(w, message, lengths, LENGTHS);
      break;
    case 6: n = mc_write_fixed(w, message, 8 + (op >> 3), LENGTHS); break;
    case 7: /* killed: a successor joins */
      dead = mc_writer_join(w, region, shape, 0, POOL, ways);
      continue;
    }
    CHECK(!dead || n == MC_BROKEN);
    if ((dead = w->state)) continue;
    CHECK(w->mine - w->peer <= CAPACITY && w->last_chunk - w->first_chunk <= MC_CHUNKS);
    CHECK(w->first_chunk == w->last_chunk || w->pool_mine - w->pool_free <= POOL);
  }
  free(message);
  free(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const mc_shape shape = {CAPACITY, POOL};
  input = data, left = size;
  uint64_t mode = take(1), seed = take(4);
  uint64_t bytes = mc_region_size(CAPACITY, POOL);
  region = aligned_alloc(MC_PAGE, bytes);
  memset(region, 0, bytes);
  for (unsigned i = 0; mode & 4 && i < CAPACITY / 8; i++) poke(data_word(0, 8 * i), plausible(seed + i * 7));
  ASAN_POISON_MEMORY_REGION(region + MC_PAGE + CAPACITY, CAPACITY);
  ASAN_POISON_MEMORY_REGION(region + MC_PAGE + 2 * CAPACITY + POOL, POOL);
  mc_ways ways = {.bell[MC_POLL] = mc_bell_poll()};
  pthread_t thread;
  bool one = mode % 16 == 8, hostile = one || mode % 4 == 2; /* threads are slow: most inputs do without */
  if (one) {
    duel.at = take(2) % CAPACITY / 8 * 8;
    poke(lane_word(0, 1), duel.at);
    poke(lane_word(0, 2), duel.at);
    poke(lane_word(0, 0), duel.at + take(2) % CAPACITY / 8 * 8);
    for (unsigned i = 0; i < 2; i++) {
      duel.words[i][0] = plausible(take(2));
      duel.words[i][1] = take(2);
      duel.words[i][2] = take(2);
    }
  }
  atomic_store(&stop, false);
  atomic_store(&started, false);
  if (hostile) {
    CHECK(pthread_create(&thread, NULL, one ? flip : attack, &seed) == 0);
    while (!atomic_load(&started)) sched_yield();
  }
  if (one) victim_reads_one_record(shape, ways);
  else if (mode & 1) victim_writes(shape, ways);
  else victim_reads(shape, ways);
  atomic_store(&stop, true);
  if (hostile) pthread_join(thread, NULL);
  ASAN_UNPOISON_MEMORY_REGION(region, bytes);
  free(region);
  return 0;
}

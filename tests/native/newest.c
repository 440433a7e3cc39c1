/* A writer that answers every acknowledgement with one more message cannot hold a reader that asks for the newest.
 * The writer lives in the bell that the reader rings when it acknowledges. */
#include "ring.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { CAPACITY = 4096, POOL = 4096, FIRST = 5, MANY = 100000 };
static mc_writer writer;
static uint64_t written;

static void write_one(void) {
  if (mc_write(&writer, &written, sizeof written)) abort();
  written++;
}

static void one_more(const mc_bell *bell, _Atomic uint32_t *flag) {
  (void)bell;
  if (written > MANY) {
    puts("held for ever");
    exit(1);
  }
  write_one();
  *flag = MC_FD; /* it sleeps again */
}

int main(void) {
  uint64_t size = mc_region_size(CAPACITY, POOL), found;
  mc_page *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) abort();
  mc_region_init(page, CAPACITY, POOL);
  mc_shape shape = {CAPACITY, POOL};
  mc_ways ways = {.bell[MC_FD].ring = one_more};
  static mc_reader reader;
  if (mc_writer_join(&writer, page, shape, 0, POOL, ways) || mc_reader_join(&reader, page, shape, 0, POOL, ways)) abort();
  while (written < FIRST) write_one();
  page->lane[0].writer_flag = MC_FD;
  const uint8_t *at;
  if (mc_peek_newest(&reader, &at) != sizeof found) abort();
  found = *(const uint64_t *)at;
  printf("message %llu of %llu\n", (unsigned long long)found, (unsigned long long)written);
  return found != FIRST - 1 || written <= FIRST;
}

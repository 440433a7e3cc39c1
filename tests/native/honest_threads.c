/* Two honest threads exchange numbered messages of all kinds, with sleeps on both sides; for ThreadSanitizer. */
#include "ring.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CAPACITY = 4096, POOL = 8192, MESSAGES = 30000 };
static void *region;
static const mc_shape shape = {CAPACITY, POOL};

static mc_ways ways(void) {
  mc_ways found = {.kind = MC_FUTEX};
  found.bell[MC_FUTEX] = mc_bell_futex();
  return found;
}

static uint32_t length_of(uint32_t number) { return 8 + number * 37 % (number % 8 ? 200 : 3000); }

static void *reads(void *unused) {
  static mc_reader r;
  static uint8_t buffer[POOL];
  if (mc_reader_join(&r, region, shape, 0, POOL, ways())) abort();
  for (uint32_t number = 0; number < MESSAGES;) {
    int64_t n = mc_read(&r, buffer, sizeof buffer);
    if (n == MC_EMPTY) {
      mc_reader_wait(&r, -1);
      continue;
    }
    uint32_t found;
    memcpy(&found, buffer, sizeof found);
    if (n != length_of(number) || found != number || buffer[n - 1] != (uint8_t)(number | 1)) {
      printf("message %u is not whole\n", number);
      _Exit(1);
    }
    number++;
  }
  return unused;
}

int main(void) {
  region = aligned_alloc(MC_PAGE, mc_region_size(CAPACITY, POOL));
  memset(region, 0, mc_region_size(CAPACITY, POOL));
  mc_region_init(region, CAPACITY, POOL);
  pthread_t reader;
  static mc_writer w;
  static uint8_t message[POOL];
  if (mc_writer_join(&w, region, shape, 0, POOL, ways()) || pthread_create(&reader, NULL, reads, NULL)) abort();
  for (uint32_t number = 0; number < MESSAGES;) {
    uint32_t length = length_of(number);
    memset(message, (uint8_t)(number | 1), length);
    memcpy(message, &number, sizeof number);
    if (mc_write(&w, message, length) == MC_FULL) mc_writer_wait(&w, -1);
    else number++;
  }
  pthread_join(reader, NULL);
  puts("all messages arrived whole and in order");
  free(region);
  return 0;
}

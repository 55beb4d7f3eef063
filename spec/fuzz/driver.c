/*
** Runs a target without libFuzzer.
**
**     fuzz_TARGET DIRECTORY   runs the seeds in the directory, then random inputs
**     fuzz_TARGET FILE        runs this input alone
**
** A random input is a changed seed, or consists of random bytes. The environment variable
** OUTBOX_RUNS sets how many random inputs there are (default: 2000), and OUTBOX_SEED the seed of
** the random numbers (default: the time). An input that makes the target fail is written to the
** file fuzz_TARGET.failed beside the program.
*/
#define _POSIX_C_SOURCE 200809L

#include <dirent.h>
#include <sanitizer/common_interface_defs.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"

#define MAX_SEEDS 256
#define MAX_BYTES 65536
#define MAX_SECONDS 60 /* for one input */

static input seeds[MAX_SEEDS];
static size_t seed_count;
static uint8_t current[MAX_BYTES];
static size_t current_size;
static char reproducer[256];

/* --- Running --------------------------------------------------------------------------------- */

static void keep_input(void) {
  FILE *file = fopen(reproducer, "wb");
  if (file == NULL) return;
  fwrite(current, 1, current_size, file);
  fclose(file);
  fprintf(stderr, "the input is in %s\n", reproducer);
}

static void give_up(int number) {
  keep_input();
  signal(number, SIG_DFL);
  raise(number);
}

static void run(void) {
  alarm(MAX_SECONDS);
  LLVMFuzzerTestOneInput(current, current_size);
}

/* --- Inputs ---------------------------------------------------------------------------------- */

static uint64_t state;

static size_t random_below(size_t limit) { /* splitmix64 */
  uint64_t z = state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  return (size_t)((z ^ z >> 31) % limit);
}

static void splice(const input *other) {
  size_t from = random_below(other->size), at = random_below(current_size + 1);
  size_t size = 1 + random_below(other->size - from);
  if (at + size > MAX_BYTES) return;
  memcpy(current + at, other->data + from, size);
  if (at + size > current_size) current_size = at + size;
}

static void mutate(void) {
  for (size_t edits = 1 + random_below(8); edits > 0; edits--) {
    const input *other = seed_count > 0 ? &seeds[random_below(seed_count)] : NULL;
    if (random_below(4) == 0 && other != NULL && other->size > 0)
      splice(other);
    else if (random_below(16) == 0)
      current_size = random_below(current_size + 1);
    else if (current_size > 0)
      current[random_below(current_size)] = (uint8_t)random_below(256);
  }
}

static void make_input(void) {
  current_size = 0;
  if (seed_count > 0 && random_below(4) > 0) {
    const input *seed = &seeds[random_below(seed_count)];
    memcpy(current, seed->data, current_size = seed->size);
    mutate();
  } else {
    for (size_t size = random_below(256); current_size < size; current_size++)
      current[current_size] = (uint8_t)random_below(256);
  }
}

static void read_seed(const char *path) {
  FILE *file = fopen(path, "rb");
  if (file == NULL || seed_count == MAX_SEEDS) {
    perror(path);
    exit(2);
  }
  uint8_t *data = malloc(MAX_BYTES);
  seeds[seed_count++] = (input){data, fread(data, 1, MAX_BYTES, file)};
  fclose(file);
}

static int by_name(const struct dirent **a, const struct dirent **b) {
  return strcmp((*a)->d_name, (*b)->d_name);
}

/* Returns false if the path is not a directory. */
static bool read_directory(const char *path) {
  struct dirent **items = NULL;
  int count = scandir(path, &items, NULL, by_name);
  for (int i = 0; i < count; i++) {
    char name[1024];
    snprintf(name, sizeof name, "%s/%s", path, items[i]->d_name);
    if (items[i]->d_name[0] != '.') read_seed(name);
    free(items[i]);
  }
  free(items);
  return count >= 0;
}

static long number(const char *name, long standard) {
  const char *text = getenv(name);
  return text != NULL ? strtol(text, NULL, 10) : standard;
}

int main(int argc, char **argv) {
  long seed = number("OUTBOX_SEED", time(NULL)), runs = number("OUTBOX_RUNS", 2000);
  if (argc != 2) {
    fprintf(stderr, "usage: %s SEEDS\n", argv[0]);
    return 2;
  }
  if (!read_directory(argv[1])) {
    read_seed(argv[1]);
    runs = 0;
  }
  snprintf(reproducer, sizeof reproducer, "%s.failed", argv[0]);
  __sanitizer_set_death_callback(keep_input);
  signal(SIGABRT, give_up);
  signal(SIGALRM, give_up);
  for (size_t i = 0; i < seed_count; i++) {
    memcpy(current, seeds[i].data, current_size = seeds[i].size);
    run();
  }
  state = (uint64_t)seed;
  for (long i = 0; i < runs; i++) {
    make_input();
    run();
  }
  printf("%zu seeds and %ld inputs, OUTBOX_SEED=%ld\n", seed_count, runs, seed);
  return 0;
}

#include "heads.h"

#include <string.h>

#include "lines.h"

#define MANY_BITS (1024u * 1024u)

heads *heads_make(void *(*reallocate)(void *items, uint64_t size)) {
  heads *it = reallocate(NULL, sizeof *it);
  if (it == NULL) return NULL;
  memset(it, 0, sizeof *it);
  it->reallocate = reallocate;
  return it;
}

void heads_free(heads *heads) {
  if (heads->many != NULL) heads->reallocate(heads->many, 0);
  heads->reallocate(heads, 0);
}

void heads_begin(heads *heads, int64_t at) {
  heads->from = heads->at = at;
  heads->sweep = 0;
  heads->count = heads->tail = heads->keys = 0;
  heads->passed = 0;
  heads->fruitful = heads->done = false;
  memset(heads->few, 0, sizeof heads->few);
  if (heads->many != NULL) heads->reallocate(heads->many, 0);
  heads->many = NULL;
}

static bool mark(heads *heads, uint32_t hash) {
  unsigned char *byte = &heads->many[hash / 2 % MANY_BITS / 8];
  unsigned char bit = (unsigned char)(1u << (hash / 2 % 8));
  bool met = (*byte & bit) != 0;
  *byte |= bit;
  return met;
}

/* From now on the keys are kept in the bit map. Without memory for it, no further key is a head. */
static bool spread(heads *heads) {
  heads->many = heads->reallocate(NULL, MANY_BITS / 8);
  if (heads->many == NULL) return false;
  memset(heads->many, 0, MANY_BITS / 8);
  for (size_t i = 0; i < HEADS_FEW; i++)
    if (heads->few[i] != 0) mark(heads, heads->few[i]);
  return true;
}

bool heads_met(heads *heads, uint64_t line) {
  if (line == 0) return false;
  uint32_t hash = (uint32_t)(line >> 16) | 1; /* 0 is an empty slot */
  hash = hash ^ (uint32_t)(line >> 40) << 1;
  if (heads->many == NULL && heads->keys == HEADS_FEW / 2 && !spread(heads)) return true;
  if (heads->many != NULL) return mark(heads, hash);
  size_t i = hash >> 1;
  while (heads->few[i % HEADS_FEW] != 0 && heads->few[i % HEADS_FEW] != hash)
    i++;
  bool met = heads->few[i % HEADS_FEW] == hash;
  heads->few[i % HEADS_FEW] = hash;
  heads->keys += !met;
  return met;
}

static void remove_at(heads *heads, size_t i) {
  memmove(&heads->places[i], &heads->places[i + 1], (heads->count - i - 1) * sizeof *heads->places);
  heads->count--;
}

void heads_add(heads *heads, int64_t place, uint64_t random) {
  if (heads->tail == HEADS_TAIL) { /* the first of the last ones takes its chance in the sample */
    size_t sample = heads->count - heads->tail;
    uint64_t among = ++heads->passed;
    heads->tail--;
    if (sample == HEADS_MOST - HEADS_TAIL) {
      size_t chosen = (size_t)(random % among);
      remove_at(heads, chosen < sample ? chosen : sample); /* one of the sample, or the newcomer */
    }
  }
  heads->places[heads->count++] = place;
  heads->tail++;
}

int64_t heads_take(heads *heads, bool newest, uint64_t random) {
  if (heads->count == 0) return NEVER;
  size_t i = newest ? heads->count - 1 : (size_t)(random % heads->count);
  int64_t place = heads->places[i];
  if (i >= heads->count - heads->tail) heads->tail--;
  remove_at(heads, i);
  return place;
}

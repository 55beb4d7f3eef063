#include "box.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"

/* --- Hashes ---------------------------------------------------------------------------------- */

/* The finalizer of MurmurHash3: each bit of the result depends on each bit of the hash. */
static uint64_t mix(uint64_t hash) {
  hash ^= hash >> 33;
  hash *= 0xff51afd7ed558ccdu;
  hash ^= hash >> 33;
  hash *= 0xc4ceb9fe1a85ec53u;
  return hash ^ hash >> 33;
}

/* FNV-1a. */
static uint64_t add(uint64_t hash, outbox_bytes bytes) {
  const unsigned char *data = bytes.data;
  for (size_t i = 0; i < bytes.size; i++)
    hash = (hash ^ data[i]) * 0x100000001b3u;
  return hash;
}

uint64_t box_space(outbox_bytes namespace) {
  return mix(add(0xcbf29ce484222325u, namespace)) | 1;
}

uint64_t box_line(uint64_t space, outbox_bytes key) {
  uint64_t line = mix(add(space, key)) & ~(uint64_t)1;
  return line != 0 ? line : 2;
}

int box_class(uint64_t line, int64_t seq) {
  return (int)((line != 0 ? line : mix((uint64_t)seq)) >> 58);
}

/* --- Sets of namespaces ---------------------------------------------------------------------- */

bool outbox_next_namespace(outbox_bytes *rest, outbox_bytes *name) {
  const char *text = rest->data, *end = text + rest->size;
  size_t size = 0;
  if (text == end) return false;
  while (text < end && *text >= '0' && *text <= '9')
    size = 10 * size + (size_t)(*text++ - '0');
  if (text == end || *text != ':' || (size_t)(end - text - 1) < size) return false; /* damaged */
  *name = (outbox_bytes){text + 1, size};
  *rest = (outbox_bytes){text + 1 + size, (size_t)(end - text - 1) - size};
  return true;
}

static char sign(outbox_bytes set) {
  return set.size == 0 ? '\0' : *(const char *)set.data;
}

static outbox_bytes names_of(outbox_bytes set) {
  return (outbox_bytes){(const char *)set.data + 1, set.size - 1};
}

bool box_serves(outbox_bytes set, outbox_bytes namespace) {
  if (set.size == 0) return true;
  outbox_bytes rest = names_of(set), name;
  bool named = false;
  while (!named && outbox_next_namespace(&rest, &name))
    named = bytes_equal(name, namespace);
  return named == (sign(set) == '+');
}

bool box_overlaps(outbox_bytes a, outbox_bytes b) {
  if (sign(a) != '+' && sign(b) != '+') return true; /* there are names that neither leaves out */
  if (sign(a) != '+') return box_overlaps(b, a);
  outbox_bytes rest = names_of(a), name;
  while (outbox_next_namespace(&rest, &name))
    if (box_serves(b, name)) return true;
  return false;
}

static int compare(const void *a, const void *b) {
  const outbox_bytes *x = a, *y = b;
  size_t size = x->size < y->size ? x->size : y->size;
  int order = size > 0 ? memcmp(x->data, y->data, size) : 0;
  return order != 0 ? order : (x->size > y->size) - (x->size < y->size);
}

size_t box_write(char *text, outbox_bytes *names, size_t count, bool except) {
  char length[24];
  size_t size = 0;
  bool all = count == 0 && except;
  if (count > 0) qsort(names, count, sizeof *names, compare);
  if (text != NULL && !all) text[0] = except ? '-' : '+';
  if (!all) size = 1;
  for (size_t i = 0; i < count; i++) {
    if (i > 0 && compare(&names[i - 1], &names[i]) == 0) continue;
    size_t digits = (size_t)snprintf(length, sizeof length, "%zu:", names[i].size);
    if (text != NULL) {
      memcpy(text + size, length, digits);
      if (names[i].size > 0) memcpy(text + size + digits, names[i].data, names[i].size);
    }
    size += digits + names[i].size;
  }
  if (text != NULL) text[size] = '\0';
  return size;
}

/* --- The share of a processor ---------------------------------------------------------------- */

/* The lowest bits of a mask, so many of them. */
static uint64_t lowest(uint64_t mask, int count) {
  uint64_t some = 0;
  for (; count > 0 && mask != 0; count--) {
    some |= mask & -mask;
    mask &= mask - 1;
  }
  return some;
}

int box_count(uint64_t mask) {
  int count = 0;
  for (; mask != 0; mask &= mask - 1)
    count++;
  return count;
}

uint64_t box_quota(uint64_t mask, uint64_t taken, int members, bool overlapped, bool strict) {
  int quota = strict ? BOX_CLASSES : (BOX_CLASSES + members - 1) / members;
  int have = box_count(mask);
  if (overlapped && have == 0) return 0; /* who came later stands by */
  if (have > quota) return lowest(mask, quota);
  if (strict && taken != 0) return mask;
  return mask | lowest(~(mask | taken), quota - have);
}

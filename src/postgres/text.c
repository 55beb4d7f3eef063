#include "text.h"

#include <stdlib.h>
#include <string.h>

/* How many bytes the character takes that `left` bytes begin with; 0: they begin with none. */
static size_t character(const unsigned char *at, size_t left) {
  if (at[0] < 0x80) return at[0] != 0;
  size_t size = at[0] >= 0xf0 ? 4 : at[0] >= 0xe0 ? 3 : 2;
  if (at[0] < 0xc2 || at[0] > 0xf4 || left < size) return 0;
  for (size_t i = 1; i < size; i++)
    if (at[i] >> 6 != 2) return 0;
  if (at[0] == 0xe0 && at[1] < 0xa0) return 0; /* could be shorter */
  if (at[0] == 0xed && at[1] > 0x9f) return 0; /* half of a surrogate */
  if (at[0] == 0xf0 && at[1] < 0x90) return 0;
  return at[0] == 0xf4 && at[1] > 0x8f ? 0 : size; /* no such character */
}

/* Most text is ASCII: looks at eight bytes at once, which have no high bit and are no NUL. */
static bool is_ascii(const unsigned char *at) {
  uint64_t word;
  memcpy(&word, at, sizeof word);
  return ((word | (word - 0x0101010101010101u)) & 0x8080808080808080u) == 0;
}

bool text_is_good(outbox_bytes bytes) {
  if (bytes.data == NULL) return true;
  const unsigned char *at = bytes.data, *end = at + bytes.size;
  while (at < end) {
    while (end - at >= 8 && is_ascii(at))
      at += 8;
    if (at == end) break;
    size_t size = character(at, (size_t)(end - at));
    if (size == 0) return false;
    at += size;
  }
  return true;
}

outbox_bytes text_clean(outbox_bytes bytes, char **copy) {
  *copy = NULL;
  if (text_is_good(bytes)) return bytes;
  unsigned char *at = malloc(bytes.size);
  *copy = (char *)at;
  if (at == NULL) return (outbox_bytes){NULL, 0};
  const unsigned char *end = at + bytes.size;
  memcpy(at, bytes.data, bytes.size);
  while (at < end) {
    size_t size = character(at, (size_t)(end - at));
    if (size == 0) *at = '?';
    at += size > 0 ? size : 1;
  }
  return (outbox_bytes){*copy, bytes.size};
}

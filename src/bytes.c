/*
** Strings that may hold any bytes, and the one that may not: the prefix.
*/
#include <string.h>

#include "bytes.h"

bool bytes_equal(outbox_bytes a, outbox_bytes b) {
  return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

bool outbox_is_prefix(outbox_bytes name) {
  static const char LETTERS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789";
  const char *bytes = name.data;
  if (name.size == 0 || name.size > OUTBOX_MAX_PREFIX || (bytes[0] >= '0' && bytes[0] <= '9'))
    return false;
  for (size_t i = 0; i < name.size; i++)
    if (bytes[i] == '\0' || strchr(LETTERS, bytes[i]) == NULL) return false;
  return true;
}

/*
** Derived ids in C: written, read, and found.
*/
#include "derived.h"

#include <string.h>

#include "../columns.h"

/*
** Each seq that has the bits ?2 of a derived one, from the last downwards, but where there is none
** for 2^30 places: one row, nearly always. Each lies below the one before even if the database is
** damaged.
*/
#define FROM_PLACES                                                                                \
  "WITH RECURSIVE place (seq) AS (SELECT at - ((at - ?2) & " DERIVED_SEQ_BITS_SQL                  \
  ") FROM (SELECT (SELECT max(seq) FROM " READY ") AS at) UNION ALL SELECT (SELECT at - ((at"      \
  " - ?2) & " DERIVED_SEQ_BITS_SQL ") FROM (SELECT max(seq) AS at FROM " READY                     \
  " WHERE seq < place.seq) WHERE at < place.seq) FROM place WHERE place.seq IS NOT NULL)"          \
  " SELECT r.seq FROM place CROSS JOIN " READY " AS r ON "

static const char FIND_STORED_SQL[] = "SELECT seq FROM " READY " WHERE id = ?1";

static const char FIND_SQL[] =
    "SELECT seq FROM " READY " WHERE id = ?1 UNION ALL SELECT * FROM (" FROM_PLACES
    "r.seq = place.seq WHERE r.id IS NULL AND r.source_id IS NULL AND +r.nonce = ?3"
    " AND +r.created_at = ?4) LIMIT 1";

/* Each + keeps SQLite from making an index of the whole table for it. */
#define COPY "r.seq BETWEEN place.seq AND place.seq + " COPY_SPAN_SQL " WHERE r.id IS NULL"

static const char FIND_COPY_SQL[] =
    "SELECT seq FROM " READY " WHERE id = ?1 UNION ALL SELECT * FROM (" FROM_PLACES COPY
    " AND +r.source_id = ?3 AND +r.namespace = ?4 LIMIT 1) LIMIT 1";

/* ?4 is what stands before the namespace of a copy in that of the hidden one. */
static const char FIND_COPIES_SQL[] =
    FROM_PLACES COPY " AND +r.source_id = ?1 AND +r.namespace IN"
                     " (SELECT ?4 || copy FROM @subscriptions WHERE namespace = ?3) LIMIT 1";

uint32_t derived_bits(int64_t seq) {
  return (uint32_t)((uint64_t)seq & DERIVED_SEQ_BITS);
}

bool derived_is_time(int64_t created_at) {
  return created_at >= 0 && created_at < DERIVED_TIME_END;
}

/* Writes the lowest `count` hexadecimal digits of a number. */
static char *write_digits(char *text, uint64_t number, int count) {
  for (int i = count; i-- > 0; number >>= 4)
    text[i] = "0123456789abcdef"[number & 15];
  return text + count;
}

static bool read_digits(const char *text, int count, uint64_t *number) {
  static const unsigned char VALUES[256] = {['0'] = 16, 1, 2,          3,  4,  5,  6,  7,
                                            8,          9, ['a'] = 10, 11, 12, 13, 14, 15};
  uint64_t result = 0;
  for (int i = 0; i < count; i++) {
    unsigned value = VALUES[(unsigned char)text[i]]; /* 0: it is none */
    if (value == 0) return false;
    result = result << 4 | (value & 15);
  }
  *number = result;
  return true;
}

void derived_write(char text[OUTBOX_ID_SIZE], derived id) {
  uint64_t milliseconds = (uint64_t)id.created_at / 1000;
  text = write_digits(text, milliseconds >> 16, 8);
  *text++ = '-';
  text = write_digits(text, milliseconds, 4);
  *text++ = '-';
  text = write_digits(text, 0x7000 | (uint64_t)id.created_at % 1000, 4);
  *text++ = '-';
  text = write_digits(text, 0x8000 | id.seq >> 16, 4);
  *text++ = '-';
  text = write_digits(text, (uint64_t)id.seq << 32 | id.nonce, 12);
  *text = '\0';
}

bool derived_read(outbox_bytes text, derived *id) {
  uint64_t high, low, micro, seq, rest;
  const char *digits = text.data;
  if (digits == NULL || text.size != OUTBOX_ID_SIZE - 1 || digits[8] != '-' || digits[13] != '-' ||
      digits[18] != '-' || digits[23] != '-' || !read_digits(digits, 8, &high) ||
      !read_digits(digits + 9, 4, &low) || !read_digits(digits + 14, 4, &micro) ||
      !read_digits(digits + 19, 4, &seq) || !read_digits(digits + 24, 12, &rest))
    return false;
  if (micro >> 12 != 7 || (micro & 0xfff) > 999 || seq >> 14 != 2) return false;
  id->created_at = (int64_t)((high << 16 | low) * 1000 + (micro & 0xfff));
  id->seq = (uint32_t)((seq & 0x3fff) << 16 | rest >> 32);
  id->nonce = (uint32_t)rest;
  return true;
}

outbox_bytes derived_column(sqlite3_stmt *row, char text[OUTBOX_ID_SIZE]) {
  if (sqlite3_column_type(row, 1) != SQLITE_NULL) return sql_column(row, 1);
  derived_write(text, (derived){.created_at = sqlite3_column_int64(row, 6),
                                .seq = derived_bits(sqlite3_column_int64(row, 0)),
                                .nonce = (uint32_t)sqlite3_column_int64(row, 10)});
  return (outbox_bytes){text, OUTBOX_ID_SIZE - 1};
}

/* The source in the id of a copy, and its namespace. */
static bool read_copy(outbox_bytes id, outbox_bytes *source, outbox_bytes *namespace,
                      derived *parts) {
  enum { SOURCE = OUTBOX_ID_SIZE - 1 };
  const char *text = id.data;
  if (text == NULL || id.size <= SOURCE || text[SOURCE] != ':') return false;
  *source = (outbox_bytes){text, SOURCE};
  *namespace = (outbox_bytes){text + SOURCE + 1, id.size - SOURCE - 1};
  return derived_read(*source, parts);
}

bool derived_is_hidden(outbox_bytes id) {
  outbox_bytes source, namespace;
  derived parts;
  return derived_read(id, &parts) || read_copy(id, &source, &namespace, &parts);
}

int derived_find(outbox_store *store, outbox_bytes id, int64_t *seq, bool *found) {
  outbox_bytes source, namespace;
  derived parts;
  if (derived_read(id, &parts))
    return sql_fetch(store, FIND_SQL, seq, 1, found, "tiii", id, (int64_t)parts.seq,
                     (int64_t)parts.nonce, parts.created_at);
  if (read_copy(id, &source, &namespace, &parts))
    return sql_fetch(store, FIND_COPY_SQL, seq, 1, found, "titt", id, (int64_t)parts.seq, source,
                     namespace);
  return sql_fetch(store, FIND_STORED_SQL, seq, 1, found, "t", id);
}

/*
** With a namespace "b:c", a hidden copy of "a" has the id that the copy of "a:b" in "c" would have.
*/
int derived_find_copy(outbox_store *store, outbox_bytes id, outbox_bytes namespace, int64_t *seq,
                      bool *found) {
  outbox_bytes source = id, before = {"", 0};
  derived parts;
  *found = false;
  if (!derived_read(id, &parts) && !read_copy(id, &source, &before, &parts)) return OUTBOX_OK;
  size_t size = source.size < id.size ? before.size + 1 : 0;
  char *text = sqlite3_malloc64(size + 1);
  if (text == NULL) return store_fail_nomem(store);
  if (size > 0) memcpy(text, before.data, before.size);
  if (size > 0) text[size - 1] = ':';
  int code = sql_fetch(store, FIND_COPIES_SQL, seq, 1, found, "titt", source, (int64_t)parts.seq,
                       namespace, (outbox_bytes){text, size});
  sqlite3_free(text);
  return code;
}

/*
** Derived ids. The row of a ready entry stores its id only where somebody has chosen it. Otherwise
** the id is made of what the row holds anyway, and of a random number of its own, the nonce. So it
** needs no room and no index, and is found by the seq in it. It is a UUIDv7:
**
**     tttttttt-tttt-7uuu-Vsss-ssssnnnnnnnn
**
** t: milliseconds, u: the microseconds after them; V: the variant and, with s, 30 bits of seq; n:
** the nonce. Ids of one moment rise with seq. Without the nonce two messages might have one id: a
** seq that was rolled back is given again, perhaps at the same time of a clock that stands still.
**
** A copy stores no id either where its source's id was derived of a seq that is not far before its
** own: it has the source's id, ":" and its namespace, and is found behind that seq.
*/
#ifndef OUTBOX_DERIVED_H
#define OUTBOX_DERIVED_H

#include "statement.h"

#pragma GCC visibility push(hidden)

/* How far behind the seq in its source's id a copy without an id may lie. */
#define COPY_SPAN 127

/* In SQL, of a row; `row` is empty, or names it: "NEW.". */
#define DERIVED_ID(row)                                                                            \
  "printf('%08x-%04x-7%03x-%04x-%012x', " row "created_at / 65536000, (" row                       \
  "created_at / 1000) & 65535, " row "created_at % 1000, 32768 | ((" row                           \
  "seq >> 16) & 16383), ((" row "seq & 65535) << 32) | " row "nonce)"

#define DERIVED_SEQ_BITS 0x3fffffff        /* of seq, the lowest 30 */
#define DERIVED_TIME_END 0x3e8000000000000 /* microseconds, excluded: the 48 bits end there */
#define DERIVED_NONCE_MAX 0xffffffff

/* The same in SQL. */
#define DERIVED_SEQ_BITS_SQL DERIVED_SQL(DERIVED_SEQ_BITS)
#define DERIVED_TIME_END_SQL DERIVED_SQL(DERIVED_TIME_END)
#define DERIVED_NONCE_MAX_SQL DERIVED_SQL(DERIVED_NONCE_MAX)
#define COPY_SPAN_SQL DERIVED_SQL(COPY_SPAN)
#define DERIVED_SQL(number) DERIVED_TEXT(number)
#define DERIVED_TEXT(number) #number

/* Whether an id can be derived of a row. */
#define IS_DERIVABLE(row)                                                                          \
  "ifnull(" row "nonce BETWEEN 0 AND " DERIVED_NONCE_MAX_SQL " AND typeof(" row                    \
  "created_at) = 'integer' AND " row "created_at >= 0 AND " row                                    \
  "created_at < " DERIVED_TIME_END_SQL ", 0)"

typedef struct derived {
  int64_t created_at;
  uint32_t seq, nonce; /* seq: its DERIVED_SEQ_BITS */
} derived;

/* The bits of seq that an id holds. */
uint32_t derived_bits(int64_t seq);

/* Whether an id can be derived at this time. */
bool derived_is_time(int64_t created_at);

/* Writes the id, and a NUL. */
void derived_write(char text[OUTBOX_ID_SIZE], derived id);

/* Takes an id apart. False: no row has derived it. */
bool derived_read(outbox_bytes text, derived *id);

/* The id of a ready entry: its columns are seq, ENTRY_COLUMNS, nonce. `text` is room for it. */
outbox_bytes derived_column(sqlite3_stmt *row, char text[OUTBOX_ID_SIZE]);

/* Whether a row that stores no id may have this one. */
bool derived_is_hidden(outbox_bytes id);

/* Finds the ready entry with an id. *found: there is one. */
int derived_find(outbox_store *store, outbox_bytes id, int64_t *seq, bool *found);

/* The same for any copy, which stores no id, of the message that has an id and a namespace. */
int derived_find_copy(outbox_store *store, outbox_bytes id, outbox_bytes namespace, int64_t *seq,
                      bool *found);

#pragma GCC visibility pop

#endif

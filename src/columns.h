/*
** The names and the columns of the tables, which every statement of every engine names in this
** order. source_id is the id of the message that a copy was made of; of one that is no copy it is
** NULL, or its own id.
**
** outbox_ready adds nonce, outbox_delayed due_at, position and delayed_at, outbox_dead died_at.
*/
#ifndef OUTBOX_COLUMNS_H
#define OUTBOX_COLUMNS_H

/* The table of the ready entries; and the view of it in which each entry has its id. */
#define READY "@ready"
#define ENTRIES "@entries"

/*
** The seq of the next ready entry. None comes twice: a lease may still cover it. The mark is the
** highest that there was when the last of the entries went. `at` is "@", or "@@" in a trigger.
*/
#define NEXT_SEQ(at) "(" SELECT_NEXT_SEQ(at) ")"
#define SELECT_NEXT_SEQ(at)                                                                        \
  "SELECT max(mark, coalesce((SELECT max(seq) FROM " at "ready), 0)) + 1 FROM " at "schema"

/* Sets the mark before ready entries go, of which `last` is the highest seq; it may be too high. */
#define MARK_SEQ(at, last)                                                                         \
  "UPDATE " at "schema SET mark = (SELECT max(seq) FROM " at "ready)"                              \
  " WHERE (SELECT max(seq) FROM " at "ready) BETWEEN mark + 1 AND " last

/* The columns of a message. The id is separate for statements that write another id. */
#define MESSAGE_COLUMNS_BUT_ID "namespace, key, payload, headers, created_at"
#define MESSAGE_COLUMNS "id, " MESSAGE_COLUMNS_BUT_ID

/* The columns of an entry: the message, and the result of its deliveries so far. */
#define ENTRY_COLUMNS MESSAGE_COLUMNS OTHER_COLUMNS
#define OTHER_COLUMNS ", attempts, last_error, source_id"

/* The same of a row in READY. The id is still NULL where derived_column is to make it. */
#define COPY_ID "source_id || ':' || namespace"
#define READY_ENTRY_COLUMNS                                                                        \
  "CASE WHEN source_id IS NULL THEN id ELSE coalesce(id, " COPY_ID                                 \
  ") END, " MESSAGE_COLUMNS_BUT_ID OTHER_COLUMNS

#endif

/*
** The table of the ready entries, and the columns of the tables, which every statement of every
** engine names in this order. source_id is the id of the message that a copy was made of; of one
** that is no copy it is NULL, or its own id.
**
** outbox_delayed adds due_at, position and delayed_at, outbox_dead adds died_at.
*/
#ifndef OUTBOX_COLUMNS_H
#define OUTBOX_COLUMNS_H

/* The table of the ready entries, in SQL with the store's prefix; and its name without one. */
#define ENTRIES "@" ENTRIES_NAME
#define ENTRIES_NAME "entries"

/* The columns of a message. The id is separate for statements that write another id. */
#define MESSAGE_COLUMNS_BUT_ID "namespace, key, payload, headers, created_at"
#define MESSAGE_COLUMNS "id, " MESSAGE_COLUMNS_BUT_ID

/* The columns of an entry: the message, and the result of its deliveries so far. */
#define ENTRY_COLUMNS MESSAGE_COLUMNS ", attempts, last_error, source_id"

#endif

/*
** The columns of the tables, which every statement of every engine names in this order.
**
** outbox_delayed adds due_at and position, outbox_dead adds died_at.
*/
#ifndef OUTBOX_COLUMNS_H
#define OUTBOX_COLUMNS_H

/* What a message brings. The id stands apart for statements that make another one of it. */
#define MESSAGE_COLUMNS_BUT_ID "namespace, key, payload, headers, created_at"
#define MESSAGE_COLUMNS "id, " MESSAGE_COLUMNS_BUT_ID

/* What an entry has: the message, and what became of its deliveries. */
#define ENTRY_COLUMNS MESSAGE_COLUMNS ", attempts, last_error"

#endif

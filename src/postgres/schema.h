/*
** The tables, their triggers and functions.
*/
#ifndef OUTBOX_PG_SCHEMA_H
#define OUTBOX_PG_SCHEMA_H

#pragma GCC visibility push(hidden)

#define SCHEMA_VERSION 1
#define PARTITIONS 64 /* the classes of ../box.h: each key lies in one */

/*
** The numbers of the outbox's advisory locks, beside `#`: those of the classes of keys, from 0 to
** 1023, which publishers queue for; then these; and those of claims, from LOCK_CLAIM up.
*/
#define LOCK_ALL 1024     /* every publisher queues for it: strict order */
#define LOCK_CLAIMS 1025  /* whoever changes claims */
#define LOCK_WAITING 1026 /* held, shared, by each processor that waits for a NOTIFY */
#define LOCK_MIGRATION 1027
#define LOCK_CLAIM 2000 /* and its number: its processor settles, or somebody removes it */

/* The step to version i + 1 is at i: scripts, up to NULL. */
extern const char *const *const schema_steps[SCHEMA_VERSION];

#pragma GCC visibility pop

#endif

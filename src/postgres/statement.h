/*
** The third floor: SQL with the store's names, prepared once, its parameters and its rows in
** binary; several statements in one round trip.
*/
#ifndef OUTBOX_PG_STATEMENT_H
#define OUTBOX_PG_STATEMENT_H

#include "connection.h"

#pragma GCC visibility push(hidden)

/* A parameter that is an array. The bytes of strings are not copied. */
typedef struct array {
  char *data; /* as PostgreSQL sends it: a header, and each element after its length */
  size_t size, room;
  int32_t count;
  bool broken; /* there was no memory for all of it */
} array;

void array_add_int(array *array, int64_t value);
void array_add_tid(array *array, int64_t tid);          /* where a row lies, as sql_int reads it */
void array_add_bytes(array *array, outbox_bytes bytes); /* no value: NULL */
void array_free(array *array);

/*
** The SQL with its names in full. `@name` is the table <prefix>name in the store's schema, `@@` the
** prefix alone, `#` the number of the outbox's advisory locks. free() frees it. NULL: no memory.
*/
char *sql_expand(const outbox_store *store, const char *sql);

/*
** Begins a round trip; adds a statement to it; sends it all, and receives the results. Statements
** that are sent together are one transaction, unless one is open already. The statement is known by
** the address of its SQL, which must be a constant. `types` lists its parameters: i an int64_t; b a
** bool; t an outbox_bytes as text, B one as bytea; I, D, T, Y an array * of bigint, tid, text,
** bytea. The parameters must live until the end. An error of sql_add is remembered until then.
**
** After a failure there are no results. They live until the next round trip begins.
*/
void sql_start(outbox_store *store);
void sql_add(outbox_store *store, const char *sql, const char *types, ...);
int sql_end(outbox_store *store);

/* The result of a statement, counted from 0; from -1 backwards. */
const PGresult *sql_result(const outbox_store *store, int index);

/* Takes the last result, which the caller clears. */
PGresult *sql_take(outbox_store *store);

/* How many rows a statement has changed. */
int64_t sql_changes(const PGresult *result);

/* A round trip of one statement. */
int sql_run(outbox_store *store, const char *sql, const char *types, ...);

/* A script of several statements that have no parameters, with the store's names. */
int sql_script(outbox_store *store, const char *script);

/* A field of a row. A NULL is 0, false, no value. */
int64_t sql_int(const PGresult *result, int row, int column);
bool sql_bool(const PGresult *result, int row, int column);
outbox_bytes sql_bytes(const PGresult *result, int row, int column);

/* The payload, which is text in one column or else bytea in the next. */
outbox_bytes sql_payload(const PGresult *result, int row, int column);

/* Fails with SCHEMA, NEWER unless the outbox's tables are of this version. Asks once. */
int sql_check_schema(outbox_store *store);

#pragma GCC visibility pop

#endif

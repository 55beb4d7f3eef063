/*
** The second floor: SQL with the store's prefix, prepared once, bound, stepped and read.
*/
#ifndef OUTBOX_STATEMENT_H
#define OUTBOX_STATEMENT_H

#include "store.h"

#pragma GCC visibility push(hidden)

/*
** The SQL, each `@` replaced by `main.` and the prefix: a TEMP table, or a table of an attached
** file, that has the same name is never meant. `@@` becomes the prefix alone, for text and for the
** few places where SQL allows no qualifier. Free it with sqlite3_free. NULL: no memory.
*/
char *sql_expand(outbox_store *store, const char *sql);

/*
** sqlite3_prepare_v3, sqlite3_step and sqlite3_exec. Meanwhile any other call on the store fails,
** because SQLite may run functions of the application that call it. They return SQLite's codes.
*/
int sql_compile(outbox_store *store, const char *sql, unsigned flags, sqlite3_stmt **statement);
int sql_work(outbox_store *store, sqlite3_stmt *statement);
int sql_script(outbox_store *store, const char *sql);

/* Runs a script that names our tables as the statements below do. */
int sql_execute(outbox_store *store, const char *script);

/* Runs a PRAGMA. Where `wanted` is not NULL, *answered becomes whether the answer is `wanted`. */
int sql_configure(outbox_store *store, const char *sql, const char *wanted, bool *answered);

/* Fails with ENCODING where the database keeps its text in UTF-16. */
int sql_check_encoding(outbox_store *store);

/* Finds the version of the outbox's tables; 0: there are none. Fails with NEWER, CORRUPT. */
int sql_schema_version(outbox_store *store, int *version);

/* Prepares SQL that the caller keeps. */
int sql_prepare(outbox_store *store, const char *sql, sqlite3_stmt **statement);

/*
** Makes the statement of `sql` ready to step, and keeps it for the connection's life: `sql` must be
** a constant, because its address is what the statement is known by. Binds the parameters that
** `types` lists: i an int64_t; t an outbox_bytes as TEXT, b one as BLOB, both not copied, so that
** they must live until sql_reset; T one as TEXT, copied. Fails with SCHEMA before the migration.
**
** A limit that is bound is written `LIMIT 0 + ?`: from version 3.47 on, SQLite compiles a statement
** with `LIMIT ?` anew for each value, unless the connection is one of ours (see open.c). The newest
** do so with `column = ?` in a join, where the column has no index: it is written `+column = ?`.
*/
int sql_query(outbox_store *store, const char *sql, sqlite3_stmt **statement, const char *types,
              ...);

/* Binds more parameters, the one at `first` first. */
int sql_bind(outbox_store *store, sqlite3_stmt *statement, int first, const char *types, ...);

/* OUTBOX_ROW; or OUTBOX_DONE or an error, and the statement is reset. */
int sql_step(outbox_store *store, sqlite3_stmt *statement);

/* Steps a statement that writes to its end. */
int sql_finish(outbox_store *store, sqlite3_stmt *statement);

/* Resets a statement and lets go of the bytes that are bound to it. */
void sql_reset(outbox_store *store, sqlite3_stmt *statement);

/* Finalizes all statements. The application may have finalized some that were on its connection. */
void sql_finalize(outbox_store *store);

/* Runs a query and reads `count` integers from its first row. *found: whether there is a row. */
int sql_fetch(outbox_store *store, const char *sql, int64_t *values, int count, bool *found,
              const char *types, ...);

/* Runs a statement to its end. */
int sql_run(outbox_store *store, const char *sql, const char *types, ...);

/* The same for the writes of a processor, which do not end the wait of its own store. */
int sql_process(outbox_store *store, const char *sql, const char *types, ...);

/*
** The source of an entry, where its columns are those from 1 on (see ../columns.h). Has no value
** where it is the entry itself.
*/
outbox_bytes sql_source(sqlite3_stmt *statement);

/* The bytes of a column, whatever its type. A NULL has no value. */
outbox_bytes sql_column(sqlite3_stmt *statement, int index);

#pragma GCC visibility pop

#endif

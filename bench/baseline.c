/*
** The baseline of the benchmarks: the same work in C on SQLite alone. It uses the same tables and
** pragmas, and prepared statements. Prints the time that the work took, in seconds.
**
**     baseline publish DATABASE COUNT PER_TRANSACTION
**     baseline claim DATABASE COUNT
**     baseline drain DATABASE BATCH_SIZE
**     baseline rowid DATABASE COUNT PER_TRANSACTION
**
** The library must have migrated the database before, except for `rowid`: that publishes into a
** table of a rowid and a payload alone, which is the least that can be written.
*/
#define _DEFAULT_SOURCE

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_BATCH 1000

static void check(sqlite3 *db, int ok) {
  if (ok) return;
  fprintf(stderr, "baseline: %s\n", sqlite3_errmsg(db));
  exit(1);
}

static sqlite3_stmt *prepare(sqlite3 *db, const char *sql) {
  sqlite3_stmt *statement;
  check(db,
        sqlite3_prepare_v3(db, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, NULL) == SQLITE_OK);
  return statement;
}

static void run(sqlite3 *db, sqlite3_stmt *statement) {
  check(db, sqlite3_step(statement) == SQLITE_DONE);
  sqlite3_reset(statement);
}

static double seconds(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* The following functions set *start after they have prepared their statements, because the library
** prepares each statement only once. */
static void publish(sqlite3 *db, long count, long per_transaction, double *start) {
  sqlite3_stmt *begin = prepare(db, "BEGIN IMMEDIATE"), *commit = prepare(db, "COMMIT");
  sqlite3_stmt *insert =
      prepare(db, "INSERT INTO outbox_ready (namespace, key, payload, created_at, nonce)"
                  " VALUES (?1, ?2, ?3, ?4, ?5)");
  char key[32], payload[200];
  memset(payload, 'x', sizeof payload);
  *start = seconds(CLOCK_MONOTONIC);
  for (long i = 0; i < count; i++) {
    if (i % per_transaction == 0) run(db, begin);
    snprintf(key, sizeof key, "key-%07ld", i);
    sqlite3_bind_text(insert, 1, "bench", 5, SQLITE_STATIC);
    sqlite3_bind_text(insert, 2, key, 11, SQLITE_STATIC);
    sqlite3_bind_blob(insert, 3, payload, 200, SQLITE_STATIC);
    sqlite3_bind_int64(insert, 4, (int64_t)(seconds(CLOCK_REALTIME) * 1e6));
    sqlite3_bind_int64(insert, 5, random());
    run(db, insert);
    if ((i + 1) % per_transaction == 0 || i + 1 == count) run(db, commit);
  }
  sqlite3_finalize(begin);
  sqlite3_finalize(commit);
  sqlite3_finalize(insert);
}

static void claim(sqlite3 *db, long count, double *start) {
  sqlite3_stmt *begin = prepare(db, "BEGIN IMMEDIATE"), *commit = prepare(db, "COMMIT");
  sqlite3_stmt *clear = prepare(db, "DELETE FROM outbox_claims WHERE processor_id = 'bench'");
  sqlite3_stmt *lease = prepare(db, "INSERT INTO outbox_claims"
                                    " (processor_id, namespaces, classes, first_seq, last_seq,"
                                    " deadline, claimed_at) SELECT 'bench', '', -1,"
                                    " (SELECT min(seq) FROM outbox_ready),"
                                    " (SELECT max(seq) FROM outbox_ready), ?1, ?1");
  *start = seconds(CLOCK_MONOTONIC);
  for (long i = 0; i < count; i++) {
    run(db, begin);
    run(db, clear);
    sqlite3_bind_int64(lease, 1, (int64_t)((seconds(CLOCK_REALTIME) + 3600) * 1e6));
    run(db, lease);
    run(db, commit);
  }
  sqlite3_finalize(begin);
  sqlite3_finalize(commit);
  sqlite3_finalize(clear);
  sqlite3_finalize(lease);
}

static void drain(sqlite3 *db, long batch_size, double *start) {
  static sqlite3_int64 seqs[MAX_BATCH];
  sqlite3_stmt *begin = prepare(db, "BEGIN IMMEDIATE"), *commit = prepare(db, "COMMIT");
  sqlite3_stmt *delete = prepare(db, "DELETE FROM outbox_ready WHERE seq = ?1");
  sqlite3_stmt *select =
      prepare(db, "SELECT seq, namespace, key, payload, created_at FROM outbox_claims"
                  " CROSS JOIN outbox_ready ON seq BETWEEN first_seq AND last_seq"
                  " WHERE processor_id = 'bench' ORDER BY first_seq, seq LIMIT ?1");
  long count;
  claim(db, 1, start);
  do {
    count = 0;
    sqlite3_bind_int64(select, 1, batch_size);
    while (sqlite3_step(select) == SQLITE_ROW) {
      seqs[count++] = sqlite3_column_int64(select, 0);
      for (int i = 1; i < 4; i++)
        check(db, sqlite3_column_blob(select, i) != NULL);
    }
    sqlite3_reset(select);
    run(db, begin);
    for (long i = 0; i < count; i++) {
      sqlite3_bind_int64(delete, 1, seqs[i]);
      run(db, delete);
    }
    run(db, commit);
  } while (count > 0);
  sqlite3_finalize(begin);
  sqlite3_finalize(commit);
  sqlite3_finalize(delete);
  sqlite3_finalize(select);
}

static void publish_rowid(sqlite3 *db, long count, long per_transaction, double *start) {
  check(db,
        sqlite3_exec(db, "CREATE TABLE IF NOT EXISTS payloads (payload)", 0, 0, 0) == SQLITE_OK);
  sqlite3_stmt *begin = prepare(db, "BEGIN IMMEDIATE"), *commit = prepare(db, "COMMIT");
  sqlite3_stmt *insert = prepare(db, "INSERT INTO payloads VALUES (?1)");
  char payload[200];
  memset(payload, 'x', sizeof payload);
  *start = seconds(CLOCK_MONOTONIC);
  for (long i = 0; i < count; i++) {
    if (per_transaction > 1 && i % per_transaction == 0) run(db, begin);
    sqlite3_bind_blob(insert, 1, payload, 200, SQLITE_STATIC);
    run(db, insert);
    if (per_transaction > 1 && ((i + 1) % per_transaction == 0 || i + 1 == count)) run(db, commit);
  }
  sqlite3_finalize(begin);
  sqlite3_finalize(commit);
  sqlite3_finalize(insert);
}

int main(int argc, char **argv) {
  if (argc < 4) return 2;
  sqlite3 *db;
  long number = atol(argv[3]);
  int opened = sqlite3_open_v2(argv[2], &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL);
  check(db, opened == SQLITE_OK);
  check(db, sqlite3_exec(db,
                         "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
                         "PRAGMA journal_size_limit = 67108864",
                         NULL, NULL, NULL) == SQLITE_OK);
  double start;
  if (strcmp(argv[1], "publish") == 0 && argc == 5)
    publish(db, number, atol(argv[4]), &start);
  else if (strcmp(argv[1], "rowid") == 0 && argc == 5)
    publish_rowid(db, number, atol(argv[4]), &start);
  else if (strcmp(argv[1], "claim") == 0)
    claim(db, number, &start);
  else if (strcmp(argv[1], "drain") == 0 && number <= MAX_BATCH)
    drain(db, number, &start);
  else
    return 2;
  printf("%.6f\n", seconds(CLOCK_MONOTONIC) - start);
  return sqlite3_close(db) == SQLITE_OK ? 0 : 1;
}

/*
** The baseline of the benchmarks on PostgreSQL: the same work in C on libpq, as one would write it
** by hand. Prints the time that the work took, in seconds.
**
**     baseline_postgres insert URL COUNT PER_CALL   INSERT of many rows
**     baseline_postgres copy URL COUNT PER_CALL     COPY
**     baseline_postgres status URL COUNT BATCH      UPDATE ... SKIP LOCKED, then DELETE
**     baseline_postgres locked URL COUNT BATCH      FOR UPDATE SKIP LOCKED, held open, and DELETE
**     baseline_postgres hold URL                    holds a snapshot until its input ends
**
** The tables are those of bench/postgres.lua: `rows` has the columns and indexes of the outbox's
** table of entries, and `jobs` the same columns with a status.
*/
#define _DEFAULT_SOURCE

#include <libpq-fe.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define COLUMNS 7

static void check(PGconn *db, bool ok) {
  if (ok) return;
  fprintf(stderr, "baseline: %s\n", PQerrorMessage(db));
  exit(1);
}

static double seconds(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void run(PGconn *db, const char *sql) {
  PGresult *result = PQexec(db, sql);
  check(db,
        PQresultStatus(result) == PGRES_COMMAND_OK || PQresultStatus(result) == PGRES_TUPLES_OK);
  PQclear(result);
}

static void prepare(PGconn *db, const char *name, const char *sql) {
  PGresult *result = PQprepare(db, name, sql, 0, NULL);
  check(db, PQresultStatus(result) == PGRES_COMMAND_OK);
  PQclear(result);
}

static PGresult *execute(PGconn *db, const char *name, int count, const char *const *values) {
  PGresult *result = PQexecPrepared(db, name, count, values, NULL, NULL, 0);
  check(db,
        PQresultStatus(result) == PGRES_COMMAND_OK || PQresultStatus(result) == PGRES_TUPLES_OK);
  return result;
}

/* --- Publishing ------------------------------------------------------------------------------ */

/* A row: partition, seq, id, namespace, key, payload, created_at. */
typedef struct row {
  char partition[8], seq[24], id[40], key[16], payload[201], created_at[24];
} row;

static void make_row(row *row, long i, long base) {
  int64_t now = (int64_t)(seconds(CLOCK_REALTIME) * 1e6);
  unsigned long a = (unsigned long)random(), b = (unsigned long)random();
  snprintf(row->partition, sizeof row->partition, "%ld", random() % 64);
  snprintf(row->seq, sizeof row->seq, "%ld", base + i);
  snprintf(row->id, sizeof row->id, "%08lx-%04lx-7%03lx-8%03lx-%012lx", (unsigned long)(now >> 26),
           (unsigned long)(now >> 10 & 0xffff), a & 0xfff, b & 0xfff, a << 16 ^ b);
  snprintf(row->key, sizeof row->key, "key-%07ld", i);
  memset(row->payload, 'x', 200);
  row->payload[200] = '\0';
  snprintf(row->created_at, sizeof row->created_at, "%lld", (long long)now);
}

static void publish(PGconn *db, bool copy, long count, long size, double *start) {
  char *sql = malloc(200 + (size_t)size * 64), *at = sql;
  const char **values = malloc((size_t)size * COLUMNS * sizeof *values);
  row *rows = malloc((size_t)size * sizeof *rows);
  long base = (long)(seconds(CLOCK_REALTIME) * 1e6);
  if (sql == NULL || values == NULL || rows == NULL) exit(1);
  at += sprintf(at, "INSERT INTO rows"
                    " (partition, seq, id, namespace, key, payload, created_at) VALUES ");
  for (int i = 0, n = 1; i < size; i++, n += COLUMNS)
    at += sprintf(at, "%s($%d,$%d,$%d,$%d,$%d,$%d,$%d)", i > 0 ? "," : "", n, n + 1, n + 2, n + 3,
                  n + 4, n + 5, n + 6);
  if (!copy) prepare(db, "insert", sql);
  *start = seconds(CLOCK_MONOTONIC);
  for (long first = 0; first < count; first += size) {
    if (copy)
      run(db, "BEGIN"), PQclear(PQexec(db, "COPY rows (partition, seq, id, namespace, key,"
                                           " payload, created_at) FROM STDIN"));
    for (long i = 0; i < size; i++) {
      row *row = &rows[i];
      char line[400];
      make_row(row, first + i, base);
      const char *row_values[COLUMNS] = {row->partition, row->seq,     row->id,        "bench",
                                         row->key,       row->payload, row->created_at};
      memcpy(values + i * COLUMNS, row_values, sizeof row_values);
      if (!copy) continue;
      int length = snprintf(line, sizeof line, "%s\t%s\t%s\tbench\t%s\t%s\t%s\n", row->partition,
                            row->seq, row->id, row->key, row->payload, row->created_at);
      check(db, PQputCopyData(db, line, length) == 1);
    }
    if (copy) {
      check(db, PQputCopyEnd(db, NULL) == 1);
      for (PGresult *result; (result = PQgetResult(db)) != NULL;)
        PQclear(result);
      run(db, "COMMIT");
    } else {
      PQclear(execute(db, "insert", (int)size * COLUMNS, values));
    }
  }
  free(sql);
  free(values);
  free(rows);
}

/* --- Draining -------------------------------------------------------------------------------- */

/* The ids of a result as a literal of an array. */
static char *ids_of(const PGresult *rows) {
  int count = PQntuples(rows);
  char *text = malloc((size_t)count * 22 + 3), *at = text;
  if (text == NULL) exit(1);
  *at++ = '{';
  for (int i = 0; i < count; i++)
    at += sprintf(at, "%s%s", i > 0 ? "," : "", PQgetvalue(rows, i, 0));
  memcpy(at, "}", 2);
  return text;
}

/* The limit is a literal: with a parameter PostgreSQL may plan to sort the whole backlog. */
static void drain(PGconn *db, bool held, long count, long size, double *start) {
  char sql[600];
#define WAITING " FROM jobs WHERE status = 0 ORDER BY number LIMIT %ld FOR UPDATE SKIP LOCKED"
#define READ "number, id, namespace, key, payload, headers, created_at, attempts"
  snprintf(sql, sizeof sql,
           held ? "SELECT " READ WAITING
                : "UPDATE jobs SET status = 1, attempts = attempts + 1 WHERE number IN"
                  " (SELECT number" WAITING ") RETURNING " READ,
           size);
  prepare(db, "take", sql);
  prepare(db, "delete", "DELETE FROM jobs WHERE number = ANY ($1::bigint[])");
  *start = seconds(CLOCK_MONOTONIC);
  for (long done = 0; done < count; done += size) {
    if (held) run(db, "BEGIN");
    PGresult *rows = execute(db, "take", 0, NULL);
    check(db, PQntuples(rows) == size);
    char *ids = ids_of(rows);
    const char *values[] = {ids};
    PQclear(execute(db, "delete", 1, values));
    if (held) run(db, "COMMIT");
    free(ids);
    PQclear(rows);
  }
}

static void hold(PGconn *db) {
  run(db, "BEGIN ISOLATION LEVEL REPEATABLE READ");
  run(db, "SELECT count(*) FROM rows");
  while (getchar() != EOF)
    continue;
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  PGconn *db = PQconnectdb(argv[2]);
  check(db, PQstatus(db) == CONNECTION_OK);
  if (strcmp(argv[1], "hold") == 0) {
    hold(db);
    PQfinish(db);
    return 0;
  }
  if (argc != 5) return 2;
  const char *operation = argv[1];
  bool publishes = strcmp(operation, "insert") == 0 || strcmp(operation, "copy") == 0;
  long count = atol(argv[3]), size = atol(argv[4]);
  double start;
  if (publishes) {
    publish(db, strcmp(operation, "copy") == 0, count, size, &start);
  } else {
    run(db, "SET synchronous_commit = off"); /* as a processor of the outbox */
    drain(db, strcmp(operation, "locked") == 0, count, size, &start);
  }
  printf("%.6f\n", seconds(CLOCK_MONOTONIC) - start);
  PQfinish(db);
  return 0;
}

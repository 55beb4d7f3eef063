/*
** SQL of the application's own, on the store's connection. The result is in memory as a whole.
*/
#define _POSIX_C_SOURCE 200809L

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "operations.h"

struct outbox_rows {
  PGresult *result; /* NULL once it has ended */
  int row;
  unsigned char *bytes; /* of the last BLOB that was asked for */
};

enum { OID_BOOL = 16, OID_BYTEA = 17, OID_INT8 = 20, OID_INT2 = 21, OID_INT4 = 23, OID_OID = 26 };
enum { OID_FLOAT4 = 700, OID_FLOAT8 = 701 };

/* --- Parameters ------------------------------------------------------------------------------ */

/* PostgreSQL finds the types out by itself, except that of a BLOB. */
typedef struct parameters {
  int count;
  Oid *types;
  const char **values;
  int *sizes, *formats;
  char **copies;
} parameters;

static void free_parameters(parameters *p) {
  for (int i = 0; p->copies != NULL && i < p->count; i++)
    free(p->copies[i]);
  free(p->types);
  free(p->values);
  free(p->sizes);
  free(p->formats);
  free(p->copies);
}

static char *print(const outbox_value *value) {
  char number[32];
  switch (value->type) {
  case OUTBOX_BOOLEAN: return strdup(value->boolean ? "t" : "f");
  case OUTBOX_INTEGER:
    snprintf(number, sizeof number, "%lld", (long long)value->integer);
    return strdup(number);
  case OUTBOX_REAL:
    snprintf(number, sizeof number,
             isinf(value->real) ? value->real > 0 ? "Infinity" : "-Infinity" : "%.17g",
             value->real);
    return strdup(number);
  default: return strndup(value->bytes.size > 0 ? value->bytes.data : "", value->bytes.size);
  }
}

static int set(outbox_store *store, parameters *p, int i, const outbox_value *value) {
  if (value->type == OUTBOX_NULL) return OUTBOX_OK;
  if (value->type == OUTBOX_BLOB) {
    p->types[i] = OID_BYTEA;
    p->formats[i] = 1;
    p->values[i] = value->bytes.size > 0 ? value->bytes.data : "";
    p->sizes[i] = (int)value->bytes.size;
    return OUTBOX_OK;
  }
  if (value->type == OUTBOX_REAL && value->real != value->real)
    return store_fail(store, OUTBOX_MISUSE, "a NaN cannot be bound");
  if (value->type == OUTBOX_TEXT && value->bytes.size > 0 &&
      memchr(value->bytes.data, '\0', value->bytes.size) != NULL)
    return store_fail(store, OUTBOX_ENCODING, "text cannot contain a NUL; bind a blob");
  p->values[i] = p->copies[i] = print(value);
  return p->copies[i] != NULL ? OUTBOX_OK : store_fail_nomem(store);
}

static int set_all(outbox_store *store, parameters *p, const outbox_value *values, size_t count) {
  size_t room = count + 1;
  p->types = calloc(room, sizeof *p->types);
  p->values = calloc(room, sizeof *p->values);
  p->sizes = calloc(room, sizeof *p->sizes);
  p->formats = calloc(room, sizeof *p->formats);
  p->copies = calloc(room, sizeof *p->copies);
  if (p->types == NULL || p->values == NULL || p->sizes == NULL || p->formats == NULL ||
      p->copies == NULL)
    return store_fail_nomem(store);
  p->count = (int)count;
  int code = OUTBOX_OK;
  for (int i = 0; i < p->count && code == OUTBOX_OK; i++)
    code = set(store, p, i, &values[i]);
  return code;
}

/* --- Running --------------------------------------------------------------------------------- */

static const char *const CONTROLS[] = {"abort", "begin", "commit", "end", "prepare", "start"};

/* Skips blanks and comments. */
static const char *skip(const char *sql) {
  for (;;) {
    sql += strspn(sql, " \t\r\n\f\v");
    if (strncmp(sql, "--", 2) == 0) {
      sql += strcspn(sql, "\n");
    } else if (strncmp(sql, "/*", 2) == 0) {
      const char *end = strstr(sql + 2, "*/");
      if (end == NULL) return sql;
      sql = end + 2;
    } else {
      return sql;
    }
  }
}

/* Whether the SQL begins with a word; goes past it then. */
static bool is_word(const char **sql, const char *word) {
  const char *at = skip(*sql);
  size_t size = strspn(at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ");
  if (size != strlen(word) || strncasecmp(at, word, size) != 0) return false;
  *sql = at + size;
  return true;
}

/* Whether the SQL goes on with the name of the store's savepoints. */
static bool is_ours(const char *sql) {
  is_word(&sql, "savepoint");
  sql = skip(sql);
  return strncmp(sql, "\"outbox\"", 8) == 0 || is_word(&sql, "outbox");
}

/* Other savepoints are the application's own affair. */
static bool is_control(const char *sql) {
  const char *rest = sql;
  if (is_word(&rest, "savepoint") || is_word(&rest, "release")) return is_ours(rest);
  if (is_word(&rest, "rollback")) {
    if (!is_word(&rest, "work")) is_word(&rest, "transaction");
    return !is_word(&rest, "to") || is_ours(rest);
  }
  for (size_t i = 0; i < sizeof CONTROLS / sizeof *CONTROLS; i++)
    if (is_word(&rest, CONTROLS[i])) return true;
  return false;
}

static int run(outbox_store *store, const char *sql, const outbox_value *values, size_t count,
               PGresult **result) {
  parameters p = {0};
  *result = NULL;
  int code = outbox_check_transaction(store);
  if (code == OUTBOX_OK && is_control(sql))
    code = store_fail(store, OUTBOX_MISUSE, "a transaction cannot be begun or ended from within");
  if (code == OUTBOX_OK && count > 65535)
    code = store_fail(store, OUTBOX_MISUSE, "too many values");
  if (code == OUTBOX_OK) code = set_all(store, &p, values, count);
  if (code == OUTBOX_OK) {
    *result = PQexecParams(store->db, sql, p.count, p.types, p.values, p.sizes, p.formats, 0);
    ExecStatusType status = PQresultStatus(*result);
    if (status == PGRES_EMPTY_QUERY)
      code = store_fail(store, OUTBOX_MISUSE, "there is no statement in it");
    else if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
      code = connection_fail(store, *result, false);
  }
  free_parameters(&p);
  if (code == OUTBOX_OK) return code;
  PQclear(*result);
  *result = NULL;
  return code;
}

int outbox_execute(outbox_store *store, const char *sql, const outbox_value *values, size_t count,
                   int64_t *changed) {
  PGresult *result;
  int code = run(store, sql, values, count, &result);
  if (code != OUTBOX_OK) return code;
  bool reads = strncmp(PQcmdStatus(result), "SELECT", 6) == 0;
  *changed = reads ? 0 : strtoll(PQcmdTuples(result), NULL, 10);
  PQclear(result);
  return OUTBOX_OK;
}

/* --- Rows ------------------------------------------------------------------------------------ */

int outbox_query(outbox_store *store, outbox_rows **out, const char *sql,
                 const outbox_value *values, size_t count) {
  PGresult *result;
  *out = NULL;
  int code = run(store, sql, values, count, &result);
  if (code != OUTBOX_OK) return code;
  *out = malloc(sizeof **out);
  if (*out == NULL) {
    PQclear(result);
    return store_fail_nomem(store);
  }
  **out = (outbox_rows){.result = result, .row = -1};
  return OUTBOX_OK;
}

static void end(outbox_rows *rows) {
  PQclear(rows->result);
  free(rows->bytes);
  rows->result = NULL;
  rows->bytes = NULL;
}

int outbox_next_row(outbox_rows *rows) {
  if (rows->result == NULL) return OUTBOX_DONE;
  if (++rows->row < PQntuples(rows->result)) return OUTBOX_ROW;
  end(rows);
  return OUTBOX_DONE;
}

int outbox_column_count(const outbox_rows *rows) {
  return rows->result != NULL ? PQnfields(rows->result) : 0;
}

const char *outbox_column_name(const outbox_rows *rows, int column) {
  return rows->result != NULL ? PQfname(rows->result, column) : NULL;
}

/* The bytes live in the rows, which is not seen from outside. */
static outbox_value blob(const outbox_rows *rows, const char *text) {
  outbox_rows *mutable = (outbox_rows *)rows;
  size_t size;
  if (mutable->bytes != NULL) PQfreemem(mutable->bytes);
  mutable->bytes = PQunescapeBytea((const unsigned char *)text, &size);
  return (outbox_value){.type = OUTBOX_BLOB, .bytes = {mutable->bytes, size}};
}

outbox_value outbox_column(const outbox_rows *rows, int column) {
  const PGresult *result = rows->result;
  if (result == NULL || PQgetisnull(result, rows->row, column))
    return (outbox_value){.type = OUTBOX_NULL};
  const char *text = PQgetvalue(result, rows->row, column);
  switch (PQftype(result, column)) {
  case OID_BOOL: return (outbox_value){.type = OUTBOX_BOOLEAN, .boolean = text[0] == 't'};
  case OID_INT2:
  case OID_INT4:
  case OID_INT8:
  case OID_OID: return (outbox_value){.type = OUTBOX_INTEGER, .integer = strtoll(text, NULL, 10)};
  case OID_FLOAT4:
  case OID_FLOAT8: return (outbox_value){.type = OUTBOX_REAL, .real = strtod(text, NULL)};
  case OID_BYTEA: return blob(rows, text);
  default:
    return (outbox_value){.type = OUTBOX_TEXT,
                          .bytes = {text, (size_t)PQgetlength(result, rows->row, column)}};
  }
}

void outbox_close_rows(outbox_rows *rows) {
  if (rows == NULL) return;
  end(rows);
  free(rows);
}

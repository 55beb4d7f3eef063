/*
** Statements: parameters in binary, round trips of several, results.
*/
#define _POSIX_C_SOURCE 200809L

#include "statement.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schema.h"

/* The types of parameters, as pg_type numbers them. */
enum { OID_BOOL = 16, OID_BYTEA = 17, OID_INT8 = 20, OID_TEXT = 25 };
enum { OID_TID = 27, OID_BYTEA_ARRAY = 1001, OID_TEXT_ARRAY = 1009, OID_TID_ARRAY = 1010 };
enum { OID_INT8_ARRAY = 1016 };

#define MAX_PARAMETERS 16

/* --- Numbers as the server sends them -------------------------------------------------------- */

static void put(char *bytes, uint64_t value, int size) {
  for (int i = size - 1; i >= 0; i--, value >>= 8)
    bytes[i] = (char)(value & 0xff);
}

static int64_t get(const char *bytes, int size) {
  uint64_t value = 0;
  for (int i = 0; i < size; i++)
    value = value << 8 | (unsigned char)bytes[i];
  return (int64_t)value;
}

/* --- Arrays ---------------------------------------------------------------------------------- */

#define HEADER 20 /* dimensions, whether there are NULLs, the elements' type, their count, 1 */

static char *grow(array *array, size_t size) {
  size_t needed = (array->size == 0 ? HEADER : array->size) + 4 + size;
  if (array->broken) return NULL;
  if (needed > array->room) {
    size_t room = 2 * needed + 256;
    char *larger = realloc(array->data, room);
    if (larger == NULL) {
      array->broken = true;
      return NULL;
    }
    array->data = larger;
    array->room = room;
  }
  char *element = array->data + (array->size == 0 ? HEADER : array->size);
  array->size = needed;
  array->count++;
  return element;
}

static void add_number(array *array, int64_t value, int size) {
  char *element = grow(array, (size_t)size);
  if (element == NULL) return;
  put(element, (uint64_t)size, 4);
  put(element + 4, (uint64_t)value, size);
}

void array_add_int(array *array, int64_t value) {
  add_number(array, value, 8);
}

void array_add_tid(array *array, int64_t tid) {
  add_number(array, tid, 6);
}

void array_add_bytes(array *array, outbox_bytes bytes) {
  size_t size = bytes.data != NULL ? bytes.size : 0;
  char *element = grow(array, size);
  if (element == NULL) return;
  put(element, bytes.data != NULL ? bytes.size : UINT32_MAX, 4);
  if (size > 0) memcpy(element + 4, bytes.data, size);
}

void array_free(array *array) {
  free(array->data);
  *array = (struct array){0};
}

/* Completes the header. An array without elements has no dimension. */
static void finish(array *array, Oid type) {
  if (array->size == 0) { /* there is room for it in any case: see set_array */
    put(array->data, 0, 4);
    put(array->data + 4, 0, 4);
    put(array->data + 8, type, 4);
    return;
  }
  put(array->data, 1, 4);
  put(array->data + 4, 1, 4);
  put(array->data + 8, type, 4);
  put(array->data + 12, (uint64_t)array->count, 4);
  put(array->data + 16, 1, 4);
}

/* --- Parameters ------------------------------------------------------------------------------ */

typedef struct parameters {
  int count;
  Oid types[MAX_PARAMETERS];
  const char *values[MAX_PARAMETERS];
  int sizes[MAX_PARAMETERS], formats[MAX_PARAMETERS];
  char numbers[MAX_PARAMETERS][8];
} parameters;

static void set(parameters *p, Oid type, const void *value, size_t size) {
  p->types[p->count] = type;
  p->values[p->count] = value;
  p->sizes[p->count] = (int)size;
  p->formats[p->count++] = 1;
}

static void set_number(parameters *p, Oid type, uint64_t value, int size) {
  put(p->numbers[p->count], value, size);
  set(p, type, p->numbers[p->count], (size_t)size);
}

static bool set_array(parameters *p, Oid type, Oid element, array *array) {
  if (array->data == NULL && !array->broken) {
    array->data = malloc(HEADER);
    array->room = HEADER;
  }
  if (array->data == NULL || array->broken) return false;
  finish(array, element);
  set(p, type, array->data, array->size == 0 ? 12 : array->size);
  return true;
}

static bool read_parameters(parameters *p, const char *types, va_list list) {
  bool good = true;
  outbox_bytes bytes;
  for (; *types != '\0' && good; types++)
    switch (*types) {
    case 'i': set_number(p, OID_INT8, (uint64_t)va_arg(list, int64_t), 8); break;
    case 'b': set_number(p, OID_BOOL, (uint64_t)va_arg(list, int), 1); break;
    case 't':
    case 'B':
      bytes = va_arg(list, outbox_bytes);
      set(p, *types == 't' ? OID_TEXT : OID_BYTEA, bytes.data, bytes.size);
      break;
    case 'I': good = set_array(p, OID_INT8_ARRAY, OID_INT8, va_arg(list, array *)); break;
    case 'D': good = set_array(p, OID_TID_ARRAY, OID_TID, va_arg(list, array *)); break;
    case 'T': good = set_array(p, OID_TEXT_ARRAY, OID_TEXT, va_arg(list, array *)); break;
    default: good = set_array(p, OID_BYTEA_ARRAY, OID_BYTEA, va_arg(list, array *)); break;
    }
  return good;
}

/* --- SQL ------------------------------------------------------------------------------------- */

/* What a letter of the SQL stands for, and how many letters it takes. */
static const char *meaning(const outbox_store *store, const char *sql, char *text, size_t size,
                           size_t *taken) {
  *taken = 1;
  if (*sql == '#') {
    snprintf(text, size, "%d", store->space);
    return text;
  }
  if (*sql != '@') return NULL;
  if (sql[1] == '@') {
    *taken = 2;
    return store->prefix;
  }
  snprintf(text, size, "%s.%s", store->schema, store->prefix);
  return text;
}

char *sql_expand(const outbox_store *store, const char *sql) {
  char text[256], *expanded = NULL;
  size_t size = 0, taken;
  for (int pass = 0; pass < 2; pass++) {
    size = 0;
    for (const char *at = sql; *at != '\0'; at += taken) {
      const char *word = meaning(store, at, text, sizeof text, &taken);
      size_t length = word != NULL ? strlen(word) : 1;
      if (expanded != NULL) memcpy(expanded + size, word != NULL ? word : at, length);
      size += length;
    }
    if (expanded == NULL) expanded = malloc(size + 1);
    if (expanded == NULL) return NULL;
  }
  expanded[size] = '\0';
  return expanded;
}

static statement *find(outbox_store *store, const char *sql) {
  for (int i = 0; i < store->statement_count; i++)
    if (store->statements[i].sql == sql) return &store->statements[i];
  if (store->statement_count == MAX_STATEMENTS) return NULL;
  statement *new = &store->statements[store->statement_count++];
  *new = (statement){.sql = sql};
  return new;
}

/* --- Round trips ----------------------------------------------------------------------------- */

/* How an error before the end is remembered. */
#define FAILED (-1)

/* A transaction that has looked at something cannot change its isolation. */
static const char ISOLATION_SQL[] = "SET transaction_isolation = 'read committed'";

static bool send_simple(outbox_store *store, const char *sql) {
  return PQsendQueryParams(store->db, sql, 0, NULL, NULL, NULL, NULL, 0);
}

void sql_start(outbox_store *store) {
  for (int i = 0; i < store->call_count; i++) {
    PQclear(store->calls[i].result);
    store->calls[i].result = NULL;
  }
  store->call_count = PQenterPipelineMode(store->db) ? 0 : FAILED;
  store->sets = store->pooled && store->depth == 0;
  if (store->sets && store->call_count == 0 &&
      !(send_simple(store, ISOLATION_SQL) && send_simple(store, store->settings)))
    store->call_count = FAILED;
}

static bool send(outbox_store *store, call *call, const parameters *p) {
  char name[16] = ""; /* of a statement that others could mistake for theirs: none */
  statement *statement = call->statement;
  if (!store->pooled) snprintf(name, sizeof name, "outbox%d", (int)(statement - store->statements));
  if (store->pooled || !statement->prepared) {
    char *sql = sql_expand(store, statement->sql);
    call->prepares = sql != NULL && PQsendPrepare(store->db, name, sql, p->count, p->types);
    free(sql);
    if (!call->prepares) return false;
  }
  return PQsendQueryPrepared(store->db, name, p->count, p->values, p->sizes, p->formats, 1);
}

void sql_add(outbox_store *store, const char *sql, const char *types, ...) {
  parameters p = {.count = 0};
  va_list list;
  if (store->call_count == FAILED) return;
  call *call = &store->calls[store->call_count];
  *call = (struct call){.statement = find(store, sql)};
  va_start(list, types);
  bool good = call->statement != NULL && store->call_count < MAX_CALLS - 1 &&
              read_parameters(&p, types, list) && send(store, call, &p);
  va_end(list);
  store->call_count++;
  if (!good) store->calls[store->call_count - 1].statement = NULL;
}

/* Receives what belongs to one statement. *code: the first failure. */
static PGresult *receive(outbox_store *store, int *code) {
  PGresult *result = PQgetResult(store->db);
  ExecStatusType status = PQresultStatus(result);
  if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK && *code == OUTBOX_OK)
    *code = connection_fail(store, result, true);
  if (result != NULL && status != PGRES_PIPELINE_SYNC) PQclear(PQgetResult(store->db));
  return result;
}

/*
** Receives the end of the round trip, at which the server commits: an error of that, its own end,
** and the sync. Constraints may be deferred to it. Returns whether the sync has come.
*/
static bool receive_end(outbox_store *store, int *code) {
  ExecStatusType status = PGRES_FATAL_ERROR;
  for (int i = 0; i < 3 && status != PGRES_PIPELINE_SYNC && !connection_is_lost(store); i++) {
    PGresult *result = PQgetResult(store->db);
    status = PQresultStatus(result);
    if (result != NULL && status != PGRES_PIPELINE_SYNC && *code == OUTBOX_OK)
      *code = connection_fail(store, result, true);
    PQclear(result);
  }
  return status == PGRES_PIPELINE_SYNC;
}

/*
** Something could not be sent: there was no memory, or the connection is lost. What was sent must
** not be committed without it: the server drops that with the connection.
*/
static int spoil(outbox_store *store) {
  int code = connection_fail(store, NULL, true);
  connection_close(store->db, store->pid);
  store->db = NULL;
  return code == OUTBOX_DISCONNECTED ? code : store_fail_nomem(store);
}

int sql_end(outbox_store *store) {
  int code = OUTBOX_OK, count = store->call_count;
  if (count == FAILED) {
    store->call_count = 0;
    return connection_fail(store, NULL, true);
  }
  for (int i = 0; i < count; i++)
    if (store->calls[i].statement == NULL && !connection_is_lost(store)) return spoil(store);
  if (!connection_is_lost(store) && !PQpipelineSync(store->db)) return spoil(store);
  for (int i = 0; i < 2 && store->sets && !connection_is_lost(store); i++)
    PQclear(receive(store, &code));
  for (int i = 0; i < count && !connection_is_lost(store); i++) {
    call *call = &store->calls[i];
    if (call->prepares) {
      PGresult *result = receive(store, &code);
      call->statement->prepared |= PQresultStatus(result) == PGRES_COMMAND_OK;
      PQclear(result);
    }
    call->result = receive(store, &code);
  }
  bool ended = receive_end(store, &code);
  if (!connection_is_lost(store)) PQexitPipelineMode(store->db);
  return code == OUTBOX_OK && !ended ? connection_fail(store, NULL, true) : code;
}

const PGresult *sql_result(const outbox_store *store, int index) {
  return store->calls[index < 0 ? store->call_count + index : index].result;
}

PGresult *sql_take(outbox_store *store) {
  call *call = &store->calls[store->call_count - 1];
  PGresult *result = call->result;
  call->result = NULL;
  return result;
}

int64_t sql_changes(const PGresult *result) {
  return strtoll(PQcmdTuples((PGresult *)result), NULL, 10);
}

int sql_run(outbox_store *store, const char *sql, const char *types, ...) {
  parameters p = {.count = 0};
  va_list list;
  sql_start(store);
  if (store->call_count == FAILED) return sql_end(store);
  call *call = &store->calls[store->call_count++];
  *call = (struct call){.statement = find(store, sql)};
  va_start(list, types);
  bool good = call->statement != NULL && read_parameters(&p, types, list) && send(store, call, &p);
  va_end(list);
  if (!good) call->statement = NULL;
  return sql_end(store);
}

int sql_script(outbox_store *store, const char *script) {
  char *sql = sql_expand(store, script);
  if (sql == NULL) return store_fail_nomem(store);
  PGresult *result = PQexec(store->db, sql);
  ExecStatusType status = PQresultStatus(result);
  int code = status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK
                 ? OUTBOX_OK
                 : connection_fail(store, result, true);
  PQclear(result);
  free(sql);
  return code;
}

/* --- Fields ---------------------------------------------------------------------------------- */

int64_t sql_int(const PGresult *result, int row, int column) {
  if (PQgetisnull(result, row, column)) return 0;
  return get(PQgetvalue(result, row, column), PQgetlength(result, row, column));
}

bool sql_bool(const PGresult *result, int row, int column) {
  return sql_int(result, row, column) != 0;
}

outbox_bytes sql_bytes(const PGresult *result, int row, int column) {
  if (PQgetisnull(result, row, column)) return (outbox_bytes){NULL, 0};
  return (outbox_bytes){PQgetvalue(result, row, column), (size_t)PQgetlength(result, row, column)};
}

outbox_bytes sql_payload(const PGresult *result, int row, int column) {
  outbox_bytes text = sql_bytes(result, row, column);
  return text.data != NULL ? text : sql_bytes(result, row, column + 1);
}

/* --- The schema ------------------------------------------------------------------------------ */

static const char SCHEMA_SQL[] =
    "SELECT version, space, ordering <> 'none', ordering = 'strict' FROM @schema";

int sql_check_schema(outbox_store *store) {
  if (store->migrated) return OUTBOX_OK;
  int code = sql_run(store, SCHEMA_SQL, "");
  if (code != OUTBOX_OK) return code;
  const PGresult *row = sql_result(store, 0);
  int64_t version = PQntuples(row) == 1 ? sql_int(row, 0, 0) : 0;
  if (version > SCHEMA_VERSION)
    return store_fail(store, OUTBOX_NEWER, "the tables are of version %d, from a newer outbox",
                      (int)version);
  if (version < SCHEMA_VERSION)
    return store_fail(store, OUTBOX_SCHEMA, "the tables are of version %d; migrate first",
                      (int)version);
  int space = (int)sql_int(row, 0, 1);
  if (space != store->space) /* it is part of the statements */
    for (int i = 0; i < store->statement_count; i++)
      if (store->statements[i].prepared && store->space != 0)
        return store_fail(store, OUTBOX_SCHEMA, "the tables were made anew; open the store again");
  store->space = space;
  store->ordered = sql_bool(row, 0, 2);
  store->strict = sql_bool(row, 0, 3);
  store->migrated = true;
  return OUTBOX_OK;
}

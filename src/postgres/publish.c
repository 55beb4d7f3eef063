/*
** Publishing: one round trip, whatever the number of messages.
**
** The first statement gives the transaction its number and takes the locks of the keys' classes,
** sorted; only then the second draws the entries' seqs. Copies for subscriptions are made by the
** second, in the place of the message.
*/
#include <stdlib.h>

#include "schema.h"
#include "text.h"
#include "transaction.h"

#define MOST 10000            /* messages in one statement */
#define MOST_BYTES (64 << 20) /* of their payloads */

/* $1 the namespaces, $2 the keys. */
static const char LOCK_KEYS_SQL[] =
    "SELECT pg_current_xact_id()::text::bigint, count(pg_advisory_xact_lock(#, class)) FROM"
    " (SELECT DISTINCT (@hash(coalesce(s.copy, m.namespace), m.key) & 1023)::int AS class"
    " FROM unnest($1::text[], $2::text[]) AS m (namespace, key)"
    " LEFT JOIN @subscriptions AS s ON s.namespace = m.namespace"
    " WHERE m.key IS NOT NULL ORDER BY class) AS classes";

static const char LOCK_ALL_SQL[] =
    "SELECT pg_current_xact_id()::text::bigint, pg_advisory_xact_lock(#, 1024)::text";

static const char NUMBER_SQL[] = "SELECT pg_current_xact_id()::text::bigint";

/* Refuses ids that are somewhere already. */
static const char REFUSE_SQL[] = "SELECT @refuse($1, $2)::text";

/* The messages and their copies, in their order. $8 is the time. */
#define MESSAGES                                                                                   \
  "SELECT CASE WHEN s.copy IS NULL THEN m.id ELSE m.id || ':' || s.copy END AS id,"                \
  " coalesce(s.copy, m.namespace) AS namespace, m.key, m.payload, m.payload_bytes, m.headers,"     \
  " CASE WHEN s.copy IS NOT NULL THEN m.id END AS source_id, m.due_at"                             \
  " FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::text[],"          \
  " $7::bigint[]) WITH ORDINALITY"                                                                 \
  " AS m (id, namespace, key, payload, payload_bytes, headers, due_at, o)"                         \
  " LEFT JOIN @subscriptions AS s ON s.namespace = m.namespace ORDER BY m.o, s.copy"

/* The inner query draws one seq for each row; OFFSET 0 keeps it apart. */
static const char INSERT_SQL[] =
    "INSERT INTO @entries (partition, seq, id, namespace, key, payload, payload_bytes, headers,"
    " created_at, source_id)"
    " SELECT (coalesce(@hash(namespace, key), seq) & 63)::smallint, seq, id, namespace, key,"
    " payload, payload_bytes, headers, $8, source_id"
    " FROM (SELECT nextval('@seq') AS seq, m.* FROM (" MESSAGES ") AS m OFFSET 0) AS placed";

static const char SCHEDULE_SQL[] =
    "INSERT INTO @delayed (seq, id, namespace, key, payload, payload_bytes, headers, created_at,"
    " source_id, due_at)"
    " SELECT nextval('@seq'), id, namespace, key, payload, payload_bytes, headers, $8,"
    " source_id, due_at FROM (" MESSAGES ") AS m";

/* --- IDs ------------------------------------------------------------------------------------- */

static int generate_ids(outbox_store *store, outbox_message *messages, size_t count, int64_t now) {
  outbox_id_generator *generator =
      store->id_generator != NULL ? store->id_generator : outbox_uuid_v7;
  void *context =
      store->id_generator != NULL ? store->id_generator_context : (void *)&store->uuid_state;
  for (size_t i = 0; i < count; i++) {
    outbox_message *message = &messages[i];
    if (message->id.data != NULL) continue;
    if (generator(context, now, message) != 0)
      return store_fail(store, OUTBOX_CALLBACK, "the ID generator failed");
    if (message->id.data == NULL)
      return store_fail(store, OUTBOX_CALLBACK, "the ID generator gave no id");
    message->unique = message->unique || store->id_generator == NULL;
  }
  return OUTBOX_OK;
}

int outbox_generate_ids(outbox_store *store, outbox_message *messages, size_t count) {
  int64_t now;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  return code == OUTBOX_OK ? generate_ids(store, messages, count, now) : code;
}

/* --- Arrays of messages ---------------------------------------------------------------------- */

typedef struct columns {
  array ids, namespaces, keys, texts, bytes, headers, due_at;
} columns;

static outbox_bytes name_of(const outbox_message *m) {
  return m->namespace.data != NULL ? m->namespace : (outbox_bytes){"", 0};
}

static void add(columns *c, const outbox_message *m) {
  bool is_text = text_is_good(m->payload);
  outbox_bytes none = {NULL, 0};
  array_add_bytes(&c->ids, m->id);
  array_add_bytes(&c->namespaces, name_of(m));
  array_add_bytes(&c->keys, m->key);
  array_add_bytes(&c->texts, is_text ? m->payload : none);
  array_add_bytes(&c->bytes, is_text ? none : m->payload);
  array_add_bytes(&c->headers, m->headers);
  array_add_int(&c->due_at, m->deliver_at);
}

static void free_columns(columns *c) {
  array_free(&c->ids);
  array_free(&c->namespaces);
  array_free(&c->keys);
  array_free(&c->texts);
  array_free(&c->bytes);
  array_free(&c->headers);
  array_free(&c->due_at);
}

static void send(outbox_store *store, const char *sql, columns *c, int64_t now) {
  sql_add(store, sql, "TTTTYTIi", &c->ids, &c->namespaces, &c->keys, &c->texts, &c->bytes,
          &c->headers, &c->due_at, now);
}

/* --- Publishing ------------------------------------------------------------------------------ */

/* What the messages of one statement need. */
typedef struct part {
  columns ready, late;
  array ids, namespaces; /* of those that brought their ids, which may be somewhere already */
  bool keys;
} part;

static size_t fill(part *part, const outbox_message *messages, size_t count, int64_t now) {
  size_t taken = 0, bytes = 0;
  while (taken < count && taken < MOST && (taken == 0 || bytes < MOST_BYTES)) {
    const outbox_message *m = &messages[taken++];
    bool late = m->deliver_at > now;
    bytes += m->payload.size;
    add(late ? &part->late : &part->ready, m);
    if (!late && m->key.data != NULL) part->keys = true;
    if (m->unique) continue;
    array_add_bytes(&part->ids, m->id);
    array_add_bytes(&part->namespaces, name_of(m));
  }
  return taken;
}

static int write_part(outbox_store *store, part *part, int64_t now) {
  int first;
  bool ready = part->ready.ids.count > 0;
  const char *lock = !store->ordered ? NUMBER_SQL : store->strict ? LOCK_ALL_SQL : LOCK_KEYS_SQL;
  if (lock == LOCK_KEYS_SQL && !part->keys) lock = NUMBER_SQL;
  transaction_start(store, &first);
  if (part->ids.count > 0) sql_add(store, REFUSE_SQL, "TT", &part->ids, &part->namespaces);
  int number = store->call_count;
  if (lock == LOCK_KEYS_SQL)
    sql_add(store, lock, "TT", &part->ready.namespaces, &part->ready.keys);
  else
    sql_add(store, lock, "");
  if (ready) send(store, INSERT_SQL, &part->ready, now);
  if (part->late.ids.count > 0) send(store, SCHEDULE_SQL, &part->late, now);
  int code = transaction_finish(store);
  if (code == OUTBOX_OK && store->depth > 0) store->xid = sql_int(sql_result(store, number), 0, 0);
  return code;
}

static int publish(outbox_store *store, const outbox_message *messages, size_t count, int64_t now,
                   bool whole) {
  int code = OUTBOX_OK;
  for (size_t i = 0, n; i < count && code == OUTBOX_OK; i += n) {
    part part = {.keys = false};
    n = fill(&part, messages + i, count - i, now);
    if (whole && n < count) { /* several statements: they need a transaction */
      code = outbox_begin(store);
      if (code == OUTBOX_OK)
        code = transaction_end(store, publish(store, messages, count, now, false));
      n = count;
    } else {
      code = write_part(store, &part, now);
    }
    free_columns(&part.ready);
    free_columns(&part.late);
    array_free(&part.ids);
    array_free(&part.namespaces);
  }
  return code;
}

int outbox_publish(outbox_store *store, outbox_message *messages, size_t count) {
  int64_t now = 0;
  int code = outbox_check_transaction(store);
  if (code == OUTBOX_OK) code = sql_check_schema(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code == OUTBOX_OK) code = generate_ids(store, messages, count, now);
  return code == OUTBOX_OK ? publish(store, messages, count, now, true) : code;
}

/*
** Publishing: messages become entries, in the transaction that is open.
*/
#include <string.h>

#include "../columns.h"
#include "../uuid.h"
#include "derived.h"
#include "operations.h"

#define INSERT "INSERT INTO " READY " (seq, id, nonce, " MESSAGE_COLUMNS_BUT_ID ") VALUES "
#define ROW "(?, ?, ?, ?, ?, ?, ?, ?)"
#define ROW_TYPES "itittbti"
#define FOUR_ROWS ROW "," ROW "," ROW "," ROW

/*
** A message whose namespace, ?1, has subscriptions, has no attempts, which are NOT NULL: so it is
** refused, and becomes copies. Triggers run before that, so what they need must be right in any
** case. `fans_out` spares those who have no subscriptions at all the look.
*/
#define IS_ITSELF                                                                                  \
  " WHERE NOT fans_out OR NOT EXISTS (SELECT 1 FROM @subscriptions WHERE namespace = ?1)"
#define INSERT_READY "INSERT INTO " READY " (" MESSAGE_COLUMNS_BUT_ID ", attempts, "
#define MESSAGE "?1, ?2, ?3, ?4, ?5, "

/* One whose id is derived of ?6, if that is the next seq: else it is refused, too. */
static const char INSERT_GUESSED_SQL[] =
    INSERT_READY "seq, nonce) VALUES (" MESSAGE "CASE WHEN ?6 = (" SELECT_NEXT_SEQ("@") IS_ITSELF
    ") THEN 0 END, ?6, ?7)";

/* The same where it is the next one, because nothing has changed since the last one got its own. */
static const char INSERT_NEXT_SQL[] =
    INSERT_READY "seq, nonce) VALUES (" MESSAGE "(SELECT 0 FROM @schema" IS_ITSELF "), ?6, ?7)";

/* One that gets the next seq, and has an id of its own. */
static const char INSERT_READY_SQL[] =
    INSERT_READY "id, seq, nonce) VALUES (" MESSAGE "(SELECT 0 FROM @schema" IS_ITSELF
                 "), ?6, " NEXT_SEQ("@") ", 0)";

/* One that is scheduled. A trigger makes its copies. */
static const char INSERT_DELAYED_SQL[] =
    "INSERT INTO @delayed (" MESSAGE_COLUMNS ", due_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

/* A statement for many rows costs a third less than one for each. */
#define ROWS COPIES_ROWS
static const char INSERT_READY_ROWS_SQL[] =
    INSERT FOUR_ROWS "," FOUR_ROWS "," FOUR_ROWS "," FOUR_ROWS;

#define MOST_DELAY 60000000 /* microseconds between the making of an id and its row */
#define MOST_DOUBTS 100

/* The next seq, and whether there is any subscription. */
static const char NEXT_SQL[] = "SELECT " NEXT_SEQ("@") ", EXISTS (SELECT 1 FROM @subscriptions)";

static outbox_bytes namespace_of(const outbox_message *m) {
  return m->namespace.data != NULL ? m->namespace : (outbox_bytes){"", 0};
}

/*
** Not in a transaction that has only begun: that would make a reader of it, whose first write does
** not wait for the lock, and is refused if another connection has written meanwhile.
*/
static bool may_read(const outbox_store *store) {
  return sqlite3_get_autocommit(store->db) ||
         sqlite3_txn_state(store->db, "main") != SQLITE_TXN_NONE;
}

/* `copies`: of each message. `together`: the next seq is one above all that are there. */
typedef struct fan_out {
  int64_t next_seq, copies;
  bool together;
} fan_out;

static const char FAN_OUT_SQL[] =
    "SELECT mark, (SELECT max(seq) FROM " READY "),"
    " (SELECT count(*) FROM @subscriptions WHERE namespace = ?1) FROM @schema";

static int look_at_fan_out(outbox_store *store, const outbox_message *m, fan_out *it) {
  int64_t values[3] = {0}; /* the mark, the last seq, the copies */
  bool found;
  int code = sql_fetch(store, FAN_OUT_SQL, values, 3, &found, "t", namespace_of(m));
  it->together = values[1] >= values[0];
  it->next_seq = values[it->together] + 1;
  it->copies = values[2];
  return code;
}

/* An id is unique in the whole outbox. SQL's UNIQUE covers one table. */
#define IS_TAKEN(id)                                                                               \
  "EXISTS (SELECT 1 FROM " READY " WHERE id = " id ")"                                             \
  " OR EXISTS (SELECT 1 FROM @delayed WHERE id = " id ")"                                          \
  " OR EXISTS (SELECT 1 FROM @dead WHERE id = " id ")"

static const char FIND_ID_SQL[] =
    "SELECT " IS_TAKEN("?1") " OR EXISTS (SELECT 1 FROM @subscriptions WHERE namespace = ?2"
                             " AND (" IS_TAKEN("?1 || ':' || copy") "))";

/* Checks that the id of a message is new, or the ids of its copies. */
static int check_id(outbox_store *store, const outbox_message *m) {
  int64_t taken, seq;
  bool found;
  int code = sql_fetch(store, FIND_ID_SQL, &taken, 1, &found, "tt", m->id, namespace_of(m));
  if (code == OUTBOX_OK && !taken && derived_is_hidden(m->id)) {
    code = derived_find(store, m->id, &seq, &found);
    if (code == OUTBOX_OK && !found)
      code = derived_find_copy(store, m->id, namespace_of(m), &seq, &found);
    taken = found;
  }
  return code == OUTBOX_OK && taken ? store_fail_duplicate(store) : code;
}

/*
** Why SQLite has refused to insert messages: DUPLICATE where an id of theirs is taken or is there
** twice. Otherwise it is another constraint, perhaps of a trigger of the application's, and the
** message is SQLite's. The ids are looked for, because a trigger may insert other ids into the same
** tables.
*/
static int explain_refusal(outbox_store *store, const outbox_message *messages, size_t count) {
  int code = OUTBOX_OK;
  for (size_t i = 0; i < count && code == OUTBOX_OK; i++) {
    code = check_id(store, &messages[i]);
    for (size_t j = 0; j < i && code == OUTBOX_OK; j++)
      if (bytes_equal(messages[j].id, messages[i].id)) code = store_fail_duplicate(store);
  }
  return code == OUTBOX_OK ? OUTBOX_CONSTRAINT : code;
}

/* What the row of a message holds instead of its id: bits of seq, or -1 where the id is stored. */
typedef struct origin {
  int64_t bits, nonce, created_at;
} origin;

static origin find_origin(const outbox_message *m, int64_t now) {
  derived id;
  if (m->deliver_at > now || !m->unique || !derived_read(m->id, &id) || id.created_at > now ||
      now - id.created_at > MOST_DELAY)
    return (origin){.bits = -1, .created_at = now};
  return (origin){id.seq, id.nonce, id.created_at};
}

/* An entry got a seq. Where its id was derived of another one, the next are made with more care. */
static void note_seq(outbox_store *store, const origin *origin, int64_t seq) {
  if (origin->bits >= 0 && origin->bits != derived_bits(seq)) store->doubts = MOST_DOUBTS;
  store->next_seq = seq + 1;
}

static bool is_next(const outbox_store *store, const origin *origin) {
  return store->next_seq > 0 && origin->bits == derived_bits(store->next_seq);
}

/*
** Whether a row was refused because its namespace has subscriptions, or its seq was not the next
** one. Whatever else is refused, perhaps in a trigger of the application's, must not be tried
** again: it may have ended the transaction.
*/
static bool has_no_attempts(const outbox_store *store, int code) {
  return store_is_refusal(store, code, "NOT NULL", "ready.attempts");
}

static bool has_taken_seq(const outbox_store *store, int code) {
  return store_is_refusal(store, code, "UNIQUE", "ready.seq");
}

static int insert_itself(outbox_store *store, const outbox_message *m, const origin *origin) {
  outbox_bytes namespace = namespace_of(m);
  if (is_next(store, origin)) {
    const char *sql = store->certain ? INSERT_NEXT_SQL : INSERT_GUESSED_SQL;
    int code = sql_run(store, sql, "ttbtiii", namespace, m->key, m->payload, m->headers,
                       origin->created_at, store->next_seq, origin->nonce);
    if (!has_no_attempts(store, code) && !has_taken_seq(store, code)) return code;
  }
  return sql_run(store, INSERT_READY_SQL, "ttbtit", namespace, m->key, m->payload, m->headers,
                 origin->created_at, m->id);
}

/*
** Where copies go that get `seq` and the places after it. They are hidden where the promised seq
** was right, or nearly: the copies of the messages before in this call have taken places.
*/
static copies_place find_place(outbox_store *store, const origin *origin, int64_t seq,
                               int64_t copies) {
  uint32_t behind = derived_bits(seq - origin->bits);
  bool near = origin->bits >= 0 && behind + copies <= COPY_SPAN + 1;
  if (origin->bits >= 0 && !near) store->doubts = MOST_DOUBTS;
  return (copies_place){origin->created_at, seq, near && !store->crowded};
}

static int insert_copies(outbox_store *store, const outbox_message *m, const origin *origin,
                         const fan_out *it) {
  copies_place place = find_place(store, origin, it->next_seq, it->copies);
  int code = copies_make(store, namespace_of(m), m, &place);
  if (!place.hidden || !has_taken_seq(store, code)) return code;
  store->crowded = true;
  place.hidden = false;
  return copies_make(store, namespace_of(m), m, &place);
}

/* Inserts the message, or its copies, inside the write lock. */
static int insert_locked(outbox_store *store, const outbox_message *m, const origin *origin) {
  fan_out it = {0};
  bool scope = sqlite3_txn_state(store->db, "main") != SQLITE_TXN_WRITE;
  int code = scope ? outbox_begin(store) : OUTBOX_OK;
  if (code != OUTBOX_OK) return code;
  code = look_at_fan_out(store, m, &it);
  store->copies = it.copies;
  if (code == OUTBOX_OK)
    code = it.copies > 0 ? insert_copies(store, m, origin, &it) : insert_itself(store, m, origin);
  return scope ? transaction_end(store, code) : code;
}

/* Whether copies are to be tried first, which begins with a reading. */
static bool expects_copies(const outbox_store *store) {
  if (store->copies == 0) return false;
  return sqlite3_get_autocommit(store->db)
             ? !transaction_is_writing(store->db)
             : sqlite3_txn_state(store->db, "main") == SQLITE_TXN_WRITE;
}

static int insert_one(outbox_store *store, const outbox_message *m, int64_t now) {
  if (m->deliver_at > now)
    return sql_run(store, INSERT_DELAYED_SQL, "tttbtii", m->id, namespace_of(m), m->key, m->payload,
                   m->headers, now, m->deliver_at);
  origin origin = find_origin(m, now);
  bool locked = expects_copies(store);
  int code = locked ? insert_locked(store, m, &origin) : insert_itself(store, m, &origin);
  if (!locked && has_no_attempts(store, code))
    code = insert_locked(store, m, &origin);
  else if (!locked)
    store->copies = 0;
  int64_t seq = sqlite3_last_insert_rowid(store->db);
  if (code != OUTBOX_OK || sqlite3_changes(store->db) == 0)
    store->next_seq = 0; /* a trigger has left the row out */
  else if (store->copies > 0)
    store->next_seq = seq + 1;
  else
    note_seq(store, &origin, seq);
  return code;
}

static int insert_rows(outbox_store *store, const outbox_message *m, const fan_out *it,
                       int64_t now) {
  (void)it;
  sqlite3_stmt *statement;
  int code = sql_query(store, INSERT_READY_ROWS_SQL, &statement, "");
  for (int i = 0; i < ROWS && code == OUTBOX_OK; i++, m++) {
    origin origin = find_origin(m, now);
    int64_t seq = store->next_seq;
    code = sql_bind(store, statement, 1 + i * (int)strlen(ROW_TYPES), ROW_TYPES, seq,
                    is_next(store, &origin) ? (outbox_bytes){NULL, 0} : m->id, origin.nonce,
                    namespace_of(m), m->key, m->payload, m->headers, origin.created_at);
    note_seq(store, &origin, seq);
  }
  return code == OUTBOX_OK ? sql_finish(store, statement) : code;
}

static int insert_rows_of_copies(outbox_store *store, const outbox_message *m, const fan_out *it,
                                 int64_t now) {
  copies_place places[ROWS];
  for (int i = 0; i < ROWS; i++) {
    origin origin = find_origin(&m[i], now);
    places[i] = find_place(store, &origin, it->next_seq + i * it->copies, it->copies);
  }
  int code = copies_make_rows(store, namespace_of(m), m, places);
  bool done = code == OUTBOX_OK && sqlite3_changes(store->db) > 0;
  store->next_seq = done ? sqlite3_last_insert_rowid(store->db) + 1 : 0;
  store->copies = it->copies;
  store->crowded |= has_taken_seq(store, code);
  return code;
}

/* Whether ROWS messages are left and the first ROWS are to be ready at once. */
static bool all_ready(const outbox_message *messages, size_t count, int64_t now) {
  if (count < ROWS) return false;
  for (int i = 0; i < ROWS; i++)
    if (messages[i].deliver_at > now) return false;
  return true;
}

static bool all_of_one_namespace(const outbox_message *messages) {
  for (int i = 1; i < ROWS; i++)
    if (!bytes_equal(namespace_of(&messages[i]), namespace_of(messages))) return false;
  return true;
}

/* Whether no id need be looked for, because it may be that of a copy in the same call. */
static bool all_unique(const outbox_message *messages) {
  for (int i = 0; i < ROWS; i++)
    if (!messages[i].unique) return false;
  return true;
}

typedef int insert_many(outbox_store *store, const outbox_message *messages, const fan_out *it,
                        int64_t now);

/*
** Inside a transaction that writes nobody else does. So the next seq is certain after an insert
** that was all that has changed, until something else is done through the store or the connection.
*/
static int insert(outbox_store *store, const outbox_message *m, int64_t now) {
  bool going_on = store->certain;
  int before = sqlite3_total_changes(store->db);
  int code = insert_one(store, m, now);
  int after = sqlite3_total_changes(store->db);
  bool inside = code == OUTBOX_OK && !sqlite3_get_autocommit(store->db);
  store->certain = inside && after - before == 1 && m->deliver_at <= now;
  store->changes = store->certain ? after : -1;
  if (store->certain && !going_on) store->version = transaction_version(store);
  return code;
}

/* Whether nothing has been done since. If others have written, the version tells. */
static bool is_certain(outbox_store *store, int changes) {
  if (changes == -1 || changes != sqlite3_total_changes(store->db)) return false;
  return (store->depth > 0 && !store->attached) ||
         (sqlite3_txn_state(store->db, "main") == SQLITE_TXN_WRITE &&
          store->version == transaction_version(store));
}

/*
** How the first ROWS messages can be inserted together; NULL: they cannot. `fans_out`: there are
** subscriptions.
*/
static int choose(outbox_store *store, const outbox_message *messages, bool fans_out, fan_out *it,
                  insert_many **together) {
  int code = OUTBOX_OK;
  *it = (fan_out){0};
  *together = NULL;
  if (fans_out && !all_of_one_namespace(messages)) return OUTBOX_OK;
  if (fans_out) {
    code = look_at_fan_out(store, messages, it);
    store->next_seq = it->next_seq;
  }
  if (it->copies > 0)
    *together = it->together && all_unique(messages) ? insert_rows_of_copies : NULL;
  else if (store->next_seq > 0)
    *together = insert_rows;
  return code;
}

/* --- Ids ------------------------------------------------------------------------------------- */

/* Reads the next seq where it is not known. */
static int guess_next(outbox_store *store) {
  bool found;
  if (store->next_seq > 0 && store->doubts == 0) return OUTBOX_OK;
  if (store->doubts > 0) store->doubts--;
  if (!may_read(store)) return OUTBOX_OK;
  return sql_fetch(store, NEXT_SQL, &store->next_seq, 1, &found, "");
}

/* The ids are promised before the seq is known. Where the guess is wrong, the id is stored. */
static int derive_id(outbox_store *store, int64_t seq, int64_t now, outbox_message *m) {
  derived id = {.created_at = now, .seq = derived_bits(seq)};
  if (m->deliver_at > now || !derived_is_time(now))
    return outbox_uuid_v7(&store->uuid_state, now, m);
  if (!uuid_random(&store->uuid_state, &id.nonce, sizeof id.nonce)) return -1;
  derived_write(m->generated_id, id);
  m->id = (outbox_bytes){m->generated_id, OUTBOX_ID_SIZE - 1};
  return 0;
}

static int generate_ids(outbox_store *store, outbox_message *messages, size_t count, int64_t now) {
  bool derives = store->id_generator == NULL, uuid = derives, guesses = false;
  int64_t seq = 0;
  uuid |= store->id_generator == outbox_uuid_v7 || store->id_generator == outbox_uuid_v4;
  for (outbox_message *m = messages; m < messages + count; m++) {
    if (m->id.data == NULL && derives && !guesses) {
      int code = guess_next(store);
      if (code != OUTBOX_OK) return code;
      seq += store->next_seq;
      guesses = true;
    }
    if (m->id.data == NULL) {
      int failed = derives ? derive_id(store, seq, now, m)
                           : store->id_generator(store->id_generator_context, now, m);
      if (failed || m->id.data == NULL)
        return store_fail(store, OUTBOX_CALLBACK, "the ID generator failed");
      m->unique = uuid;
    }
    if (m->deliver_at <= now) seq += store->copies > 0 ? store->copies : 1;
  }
  return OUTBOX_OK;
}

int outbox_generate_ids(outbox_store *store, outbox_message *messages, size_t count) {
  int64_t now;
  int changes = store->changes;
  int code = transaction_enter(store);
  store->changes = changes;
  if (code == OUTBOX_OK) code = store_now(store, &now);
  return code == OUTBOX_OK ? generate_ids(store, messages, count, now) : code;
}

/* --- Publishing ------------------------------------------------------------------------------ */

static int insert_all(outbox_store *store, outbox_message *messages, size_t count, int64_t now) {
  int64_t next[2] = {0, 0}; /* the next seq, 0: not read; and whether there are subscriptions */
  int code = OUTBOX_OK;
  bool alone = false, found;
  while (count > 0 && code == OUTBOX_OK) {
    insert_many *together = NULL;
    fan_out it;
    if (count >= ROWS && next[0] == 0 && may_read(store)) {
      code = sql_fetch(store, NEXT_SQL, next, 2, &found, "");
      store->next_seq = next[0];
    }
    if (code == OUTBOX_OK && !alone && next[0] != 0 && all_ready(messages, count, now))
      code = choose(store, messages, next[1] != 0, &it, &together);
    size_t rows = together != NULL ? ROWS : 1;
    bool again = together == insert_rows_of_copies && !store->crowded; /* then not hidden */
    for (size_t i = 0; i < rows && code == OUTBOX_OK; i++)
      if (!messages[i].unique) code = check_id(store, &messages[i]);
    if (code == OUTBOX_OK)
      code = together != NULL ? together(store, messages, &it, now) : insert(store, messages, now);
    if (together != NULL && has_taken_seq(store, code)) { /* a trigger has */
      alone = !again;
      code = OUTBOX_OK;
      continue;
    }
    if (code == OUTBOX_CONSTRAINT) code = explain_refusal(store, messages, rows);
    for (size_t i = 0; i < rows; i++)
      messages[i].unique = false; /* from now on the id is there */
    messages += rows;
    count -= rows;
  }
  if (code != OUTBOX_OK) store->next_seq = 0;
  return code;
}

int outbox_publish(outbox_store *store, outbox_message *messages, size_t count) {
  int64_t now;
  int changes = store->changes;
  int code = outbox_check_transaction(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code == OUTBOX_OK) code = generate_ids(store, messages, count, now);
  if (code != OUTBOX_OK) return code;
  store->certain = is_certain(store, changes);
  /* A single insert is atomic by itself, unless its id must be looked for first. */
  bool looking = count == 1 && !messages->unique && sqlite3_get_autocommit(store->db);
  /* The application asks its connection for the rowid of its own last insert, not of ours. */
  sqlite3_int64 rowid = sqlite3_last_insert_rowid(store->db);
  bool scope = count > 1 || looking;
  if (scope) code = outbox_begin(store);
  if (code == OUTBOX_OK) {
    code = insert_all(store, messages, count, now);
    if (scope) code = transaction_end(store, code);
  }
  if (store->attached) sqlite3_set_last_insert_rowid(store->db, rowid);
  return code;
}

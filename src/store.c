/*
** The store: one SQLite connection, opened as the outbox needs it, and closed.
*/
#define _POSIX_C_SOURCE 200809L

#include <string.h>
#include <time.h>
#include <unistd.h>

#include "store.h"

static int refuse_to_reenter(outbox_store *store) {
  return outbox_fail(store, OUTBOX_MISUSE, "the store is in the middle of another call");
}

int outbox_enter(outbox_store *store) {
  if (store->pid != getpid())
    return outbox_fail(store, OUTBOX_FORKED,
                       "the store was opened before fork(); open stores after it");
  if (store->working) return refuse_to_reenter(store);
  if (store->db == NULL && store->attached)
    return outbox_fail(store, OUTBOX_CLOSED, "the connection that the store used is closed");
  if (store->db == NULL) return OUTBOX_MISUSE; /* outbox_open failed; its message stands */
  outbox_finish(store);
  if (store->doomed) { /* what could not be rolled back must not be committed, nor added to */
    int code = sqlite3_get_autocommit(store->db) ? OUTBOX_OK : outbox_control(store, ROLLBACK);
    if (code != OUTBOX_OK) return code;
    store->doomed = false;
  }
  return OUTBOX_OK;
}

int outbox_now(outbox_store *store, int64_t *now) {
  if (store->clock(store->clock_context, now) != 0)
    return outbox_fail(store, OUTBOX_CALLBACK, "the clock failed");
  return OUTBOX_OK;
}

/* The prefix becomes part of SQL text, so it must be an identifier that needs no quotes. */
static bool is_identifier(const char *name) {
  static const char LETTERS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789";
  return strlen(name) <= 64 && name[strspn(name, LETTERS)] == '\0' && name[0] != '\0' &&
         !(name[0] >= '0' && name[0] <= '9');
}

/* Runs a PRAGMA and, where `wanted` is not NULL, tells whether that is what it answers. */
static int configure(outbox_store *store, const char *sql, const char *wanted, bool *answered) {
  sqlite3_stmt *statement = NULL;
  int sqlite_code = outbox_compile(store, sql, 0, &statement);
  if (sqlite_code == SQLITE_OK) {
    if (outbox_work(store, statement) == SQLITE_ROW && wanted != NULL) {
      const char *answer = (const char *)sqlite3_column_text(statement, 0);
      *answered = answer != NULL && strcmp(answer, wanted) == 0;
    }
    sqlite_code = sqlite3_finalize(statement);
  }
  return sqlite_code == SQLITE_OK ? OUTBOX_OK : outbox_fail_sqlite(store);
}

int outbox_check_encoding(outbox_store *store) {
  bool utf8 = false;
  int code = configure(store, "PRAGMA encoding", "UTF-8", &utf8);
  if (code == OUTBOX_OK && !utf8)
    code = outbox_fail(store, OUTBOX_ENCODING, "the database's text is not UTF-8 but UTF-16");
  return code;
}

int64_t outbox_monotonic(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

int64_t outbox_later(int64_t time, int64_t span) {
  return span < INT64_MAX - time ? time + span : INT64_MAX;
}

/* How long a connection asks for a lock at leisure, in microseconds. */
enum { PATIENT_FOR = 50000 };

/*
** SQLite's own way is to ask ever less often, at last every 100 ms: where a lock is hardly ever
** free, who has waited longest has then the least chance of it, and in the end fails. So it is the
** other way round here. A tenth of a millisecond is about the time that a transaction takes.
*/
static int wait_for_lock(void *context, int count) {
  static const struct timespec AT_FIRST = {.tv_nsec = 1000000}, LATER = {.tv_nsec = 100000};
  lock_wait *wait = context;
  int64_t now = outbox_monotonic();
  if (count == 0) wait->since = now;
  if (now - wait->since >= wait->timeout) return 0;
  nanosleep(now - wait->since < PATIENT_FOR ? &AT_FIRST : &LATER, NULL);
  return 1;
}

void outbox_wait_for_locks(sqlite3 *db, lock_wait *wait) {
  sqlite3_busy_handler(db, wait_for_lock, wait);
}

/*
** The change to WAL mode needs the file alone for a moment. SQLite waits for that, and keeps new
** readers out meanwhile, but sometimes it gives up at once. However often it is asked, all its
** waiting counts.
*/
static int enter_wal(outbox_store *store) {
  bool wal = false, memory = false;
  int64_t *left = &store->lock_wait.timeout, timeout = *left;
  int64_t end = outbox_monotonic() + timeout;
  int code;
  for (;; sqlite3_sleep(1)) {
    code = configure(store, "PRAGMA journal_mode = WAL", "wal", &wal);
    *left = end - outbox_monotonic();
    if (code != OUTBOX_BUSY || *left <= 0) break;
  }
  *left = timeout;
  if (code != OUTBOX_OK || wal) return code;
  code = configure(store, "PRAGMA journal_mode", "memory", &memory);
  if (code == OUTBOX_OK && !memory)
    code = outbox_fail(store, OUTBOX_CANTOPEN, "WAL mode is not possible on this file system");
  return code;
}

static int open_database(outbox_store *store, const char *path, const outbox_options *options) {
  static const char *const SYNCHRONOUS[] = {
      [OUTBOX_SYNCHRONOUS_OFF] = "PRAGMA synchronous = OFF",
      [OUTBOX_SYNCHRONOUS_NORMAL] = "PRAGMA synchronous = NORMAL",
      [OUTBOX_SYNCHRONOUS_FULL] = "PRAGMA synchronous = FULL",
      [OUTBOX_SYNCHRONOUS_EXTRA] = "PRAGMA synchronous = EXTRA",
  };
  int flags =
      SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_EXRESCODE | SQLITE_OPEN_NOMUTEX;
  if (sqlite3_open_v2(path, &store->db, flags, NULL) != SQLITE_OK) return outbox_fail_sqlite(store);
  outbox_wait_for_locks(store->db, &store->lock_wait);
  int code = outbox_check_encoding(store);
  if (code == OUTBOX_OK && sqlite3_db_readonly(store->db, "main") == 1)
    code = outbox_fail(store, OUTBOX_READONLY, "the file cannot be written");
  if (code == OUTBOX_OK) code = enter_wal(store);
  if (code == OUTBOX_OK) code = configure(store, SYNCHRONOUS[options->synchronous], NULL, NULL);
  /* A log of 16 MiB before it is copied back, not 4: a twelfth faster to drain. */
  if (code == OUTBOX_OK) code = configure(store, "PRAGMA wal_autocheckpoint = 4000", NULL, NULL);
  /* A log that a burst or a long reader made large is cut back to 64 MiB. */
  if (code == OUTBOX_OK)
    code = configure(store, "PRAGMA journal_size_limit = 67108864", NULL, NULL);
  if (code == OUTBOX_OK) code = outbox_prepare_control(store, 0, LAST_CONTROL);
  return code;
}

static void close_database(outbox_store *store) {
  outbox_finalize(store);
  if (store->db != NULL) /* it may outlive the store, for the sake of a statement left open */
    sqlite3_busy_timeout(store->db, (int)(store->lock_wait.timeout / 1000));
  sqlite3_close_v2(store->db);
  store->db = NULL;
}

static const outbox_options DEFAULTS = OUTBOX_DEFAULTS;

int outbox_make_store(outbox_store **out, const outbox_options *options) {
  if (options == NULL) options = &DEFAULTS;
  outbox_store *store = *out = sqlite3_malloc(sizeof *store);
  if (store == NULL) return OUTBOX_NOMEM;
  memset(store, 0, sizeof *store);
  store->pid = getpid();
  store->doorbell.fd = store->doorbell.file = -1;
  store->doorbell.version = -1; /* nothing has been seen: the first wait returns at once */
  store->doorbell.rung_at = INT64_MIN / 2;
  store->clock = options->clock != NULL ? options->clock : outbox_system_clock;
  store->clock_context = options->clock_context;
  store->id_generator = options->id_generator;
  store->lock_wait.timeout = 1000 * (int64_t)options->busy_timeout;
  store->id_generator_context = options->id_generator_context;
  if (store->id_generator == NULL) {
    store->id_generator = outbox_uuid_v7;
    store->id_generator_context = &store->uuid_state;
  }
  const char *prefix = options->prefix != NULL ? options->prefix : DEFAULTS.prefix;
  if (!is_identifier(prefix))
    return outbox_fail(store, OUTBOX_MISUSE, "the prefix is not a plain identifier");
  store->prefix = sqlite3_mprintf("%s", prefix);
  return store->prefix != NULL ? OUTBOX_OK : outbox_fail(store, OUTBOX_NOMEM, "out of memory");
}

int outbox_open(outbox_store **out, const char *path, const outbox_options *options) {
  int code = outbox_make_store(out, options);
  if (code != OUTBOX_OK) return code;
  outbox_store *store = *out;
  code = open_database(store, path, options != NULL ? options : &DEFAULTS);
  if (code != OUTBOX_OK) {
    char reason[sizeof store->message];
    memcpy(reason, store->message, sizeof reason);
    outbox_fail(store, code, "%s: %s", path, reason);
    close_database(store);
  }
  return code;
}

const char *outbox_prefix(const outbox_store *store) {
  return store->prefix;
}

struct sqlite3 *outbox_connection(outbox_store *store) {
  return store->pid == getpid() ? store->db : NULL;
}

int outbox_close(outbox_store *store) {
  if (store == NULL) return OUTBOX_OK;
  if (store->working) return refuse_to_reenter(store); /* it goes on using the store */
  outbox_close_keeper(store);
  if (store->attached) {
    outbox_detach(store);
  } else if (store->pid == getpid() && store->db != NULL) {
    /* Whoever left a statement of their own open keeps the connection, but not the transaction. */
    if (!sqlite3_get_autocommit(store->db)) outbox_control(store, ROLLBACK);
    close_database(store);
  }
  outbox_close_doorbell(store);
  sqlite3_free(store->batch.ids);
  sqlite3_free(store->batch.ranges);
  sqlite3_free(store->prefix);
  sqlite3_free(store);
  return OUTBOX_OK;
}

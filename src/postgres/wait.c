/*
** Waiting for commits of others, on a connection of its own that LISTENs.
**
** A publisher sends a NOTIFY only while somebody waits, because NOTIFY keeps all commits in line.
** Who waits holds a shared advisory lock; a row that said so would bloat. A publisher may have
** looked for that lock just before it was taken, and commit later. So, after the lock is taken, a
** processor looks again, with growing pauses, until every transaction of that moment has ended;
** only then does it sleep.
**
** Behind a pooler that pools transactions, LISTEN is accepted and never delivers. This is found out
** at first, by a NOTIFY on the other connection; then, as without one, it asks from time to time.
*/
#define _GNU_SOURCE

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/epoll.h>
#else
#include <sys/event.h>
#endif

#include "lane.h"

#define FIRST_PAUSE 500 /* microseconds between looks until all is calm; doubled each time */
#define LAST_PAUSE 100000
#define POLL 100000   /* between looks where nobody would tell */
#define TEST 200      /* milliseconds for a NOTIFY to itself */
#define RETRY 1000000 /* between attempts to connect */

struct bell {
  PGconn *db;
  unsigned session; /* the store's connection beside which it was made */
  int poller;  /* a descriptor for event loops, which is readable when the connection is; or -1 */
  bool deaf;   /* the server does not deliver */
  bool waits;  /* it holds the lock; */
  bool calm;   /* and all transactions of that moment have ended */
  bool asked;  /* a statement was sent, whose result was not received */
  bool rung;   /* there may be something, and nobody has looked since */
  int64_t xid; /* drawn after the lock was taken */
  int64_t pause, look_at; /* the next look, by the monotonic clock */
  int64_t retry_at;
};

/* --- The connection -------------------------------------------------------------------------- */

static void watch(bell *bell) {
  if (bell->poller < 0 || bell->db == NULL) return;
#ifdef __linux__
  struct epoll_event event = {.events = EPOLLIN};
  epoll_ctl(bell->poller, EPOLL_CTL_ADD, PQsocket(bell->db), &event);
#else
  struct kevent event;
  EV_SET(&event, (uintptr_t)PQsocket(bell->db), EVFILT_READ, EV_ADD, 0, 0, NULL);
  kevent(bell->poller, &event, 1, NULL, 0, NULL);
#endif
}

static void hang_up(bell *bell) {
  connection_close(bell->db, getpid());
  bell->db = NULL;
  bell->waits = bell->calm = bell->asked = false;
  bell->retry_at = clock_monotonic() + RETRY;
}

/*
** The store's connection was lost, and this may still lead to the server of before. Where that has
** vanished, nothing would ever come from it.
*/
static void follow(const outbox_store *store, bell *bell) {
  if (bell->db == NULL || bell->session == store->sessions) return;
  hang_up(bell);
  bell->retry_at = 0;
}

/* Receives what a statement gives that was sent without waiting for it. */
static bool settle(bell *bell) {
  while (bell->asked) {
    PGresult *result = PQgetResult(bell->db);
    bell->asked = result != NULL;
    PQclear(result);
  }
  return PQstatus(bell->db) == CONNECTION_OK;
}

/* Runs a statement that gives one number, or a boolean as 0 or 1. False: the connection is lost. */
static bool ask(bell *bell, const char *sql, int64_t *answer) {
  if (!settle(bell)) return false;
  PGresult *result = PQexec(bell->db, sql);
  bool good = PQresultStatus(result) == PGRES_TUPLES_OK && PQntuples(result) == 1;
  if (good) {
    const char *text = PQgetvalue(result, 0, 0);
    *answer = text[0] == 't' ? 1 : strtoll(text, NULL, 10);
  }
  PQclear(result);
  return good;
}

/*
** Whether there was a notification; takes all that there are. That this store has given something
** back is for others.
*/
static bool take(const outbox_store *store, bell *bell) {
  PGnotify *notify;
  bool any = false;
  PQconsumeInput(bell->db);
  while ((notify = PQnotifies(bell->db)) != NULL) {
    any |= notify->be_pid != PQbackendPID(store->db) || notify->extra[0] == '\0';
    PQfreemem(notify);
  }
  return any;
}

/* Whether something was received. */
static bool sleep_until(const bell *bell, int64_t timeout) {
  struct pollfd fd = {.fd = bell->db != NULL ? PQsocket(bell->db) : -1, .events = POLLIN};
  struct timespec time = {.tv_sec = timeout / 1000000, .tv_nsec = timeout % 1000000 * 1000};
  return ppoll(&fd, 1, &time, NULL) > 0;
}

static bool run(PGconn *db, const char *command, int space) {
  char sql[100];
  snprintf(sql, sizeof sql, "%s outbox_%d", command, space);
  PGresult *result = PQexec(db, sql);
  bool good = PQresultStatus(result) == PGRES_COMMAND_OK;
  PQclear(result);
  return good;
}

/*
** LISTENs, and finds out whether the server delivers. A pooler does deliver what this connection
** sends to itself.
*/
static bool tune(outbox_store *store, bell *bell) {
  bool good = run(bell->db, "LISTEN", store->space) && run(store->db, "NOTIFY", store->space);
  int64_t until = clock_monotonic() + 1000 * TEST;
  bool heard = good && take(store, bell);
  while (good && !heard && clock_monotonic() < until) {
    sleep_until(bell, until - clock_monotonic());
    heard = take(store, bell);
  }
  if (good && !heard && store->pooled) run(bell->db, "UNLISTEN", store->space);
  bell->deaf = !heard;
  return good;
}

/* Whether there is a connection that hears. */
static bool connect(outbox_store *store, bell *bell) {
  follow(store, bell);
  if (bell->db != NULL && PQstatus(bell->db) == CONNECTION_OK) {
    if (bell->deaf && take(store, bell)) bell->deaf = false; /* it was late */
    return !bell->deaf;
  }
  if (bell->db != NULL) hang_up(bell);
  if (clock_monotonic() < bell->retry_at) return false;
  bell->session = store->sessions;
  bell->db = connection_make(store->url);
  if (bell->db == NULL || PQstatus(bell->db) != CONNECTION_OK || !tune(store, bell)) {
    hang_up(bell);
    return false;
  }
  watch(bell);
  return !bell->deaf;
}

static bell *get(outbox_store *store) {
  if (store->bell == NULL) {
    store->bell = calloc(1, sizeof *store->bell);
    if (store->bell != NULL) store->bell->poller = -1;
  }
  return store->bell;
}

/* --- For the operations ---------------------------------------------------------------------- */

void bell_see(outbox_store *store, bool found) {
  bell *bell = store->bell;
  char sql[100];
  if (bell == NULL) return;
  bell->rung = false;
  follow(store, bell);
  if (!found || !bell->waits) return;
  bell->waits = bell->calm = false;
  if (!settle(bell)) return;
  snprintf(sql, sizeof sql, "SELECT pg_advisory_unlock_shared(%d, %d)", store->space, LOCK_WAITING);
  bell->asked = PQsendQuery(bell->db, sql);
}

void bell_close(outbox_store *store) {
  bell *bell = store->bell;
  if (bell == NULL) return;
  connection_close(bell->db, store->pid);
  if (bell->poller >= 0) close(bell->poller);
  free(bell);
  store->bell = NULL;
}

/* --- Waiting --------------------------------------------------------------------------------- */

/* Says that it waits. *ready: it does; the lock may just be tested by a publisher. */
static bool begin(outbox_store *store, bell *bell, bool *ready) {
  char sql[100];
  int64_t held;
  snprintf(sql, sizeof sql, "SELECT pg_try_advisory_lock_shared(%d, %d)", store->space,
           LOCK_WAITING);
  if (!ask(bell, sql, &held)) return false;
  *ready = held != 0;
  if (!*ready) return true;
  bell->waits = true;
  bell->calm = false;
  bell->pause = FIRST_PAUSE;
  bell->look_at = clock_monotonic() + FIRST_PAUSE;
  return ask(bell, "SELECT pg_current_xact_id()", &bell->xid);
}

/* Until all is calm: whether it is time to look, and perhaps to look for the last time. */
static bool look(bell *bell, bool *time) {
  int64_t xmin, now = clock_monotonic();
  *time = now >= bell->look_at;
  if (!*time) return true;
  if (!ask(bell, "SELECT pg_snapshot_xmin(pg_current_snapshot())", &xmin)) return false;
  bell->calm = xmin >= bell->xid;
  bell->pause = 2 * bell->pause < LAST_PAUSE ? 2 * bell->pause : LAST_PAUSE;
  bell->look_at = now + bell->pause;
  return true;
}

static void poll_for(int64_t timeout, bool *rung, int64_t *look_again, bell *bell) {
  int64_t now = clock_monotonic();
  if (bell->look_at > now + POLL) bell->look_at = now + POLL;
  if (timeout > 0 && bell->look_at > now) {
    int64_t left = bell->look_at - now;
    poll(NULL, 0, (int)(((left < timeout ? left : timeout) + 999) / 1000)); /* not too short */
    now = clock_monotonic();
  }
  *rung = now >= bell->look_at;
  *look_again = *rung ? POLL : bell->look_at - now;
  if (*rung) bell->look_at = now + POLL;
}

static void wait(outbox_store *store, bell *bell, int64_t timeout, bool *rung,
                 int64_t *look_again) {
  bool good = true, ready = true;
  if (!bell->waits) {
    good = begin(store, bell, &ready);
    *rung = true;
    if (good && !ready) *look_again = FIRST_PAUSE;
  } else if (!bell->calm) {
    *rung = take(store, bell);
    if (!*rung && timeout > 0 && bell->look_at > clock_monotonic()) {
      int64_t left = bell->look_at - clock_monotonic();
      sleep_until(bell, left < timeout ? left : timeout);
      *rung = take(store, bell);
    }
    bool time = false;
    good = *rung || look(bell, &time);
    *rung |= time;
    if (!bell->calm) *look_again = bell->pause;
  } else {
    int64_t until = clock_later(clock_monotonic(), timeout), left = timeout;
    do
      *rung = take(store, bell);
    while (!*rung && PQstatus(bell->db) == CONNECTION_OK && left > 0 && sleep_until(bell, left) &&
           (left = until - clock_monotonic()) > 0);
  }
  if (!good || PQstatus(bell->db) != CONNECTION_OK) {
    hang_up(bell);
    *rung = true; /* what was missed meanwhile is looked for */
  }
}

int outbox_wait(outbox_store *store, int64_t timeout, bool *rung, int64_t *look_again) {
  *rung = false;
  *look_again = 0;
  int code = transaction_ready(store);
  if (code == OUTBOX_OK && store->depth > 0)
    code = store_fail(store, OUTBOX_MISUSE, "a transaction is open");
  if (code != OUTBOX_OK) return code;
  bell *bell = get(store);
  if (bell == NULL) return store_fail_nomem(store);
  if (bell->rung)
    *rung = true;
  else if (connect(store, bell))
    wait(store, bell, timeout, rung, look_again);
  else
    poll_for(timeout, rung, look_again, bell);
  bell->rung = *rung;
  return OUTBOX_OK;
}

int outbox_pollfd(outbox_store *store) {
  bell *bell = store_is_ours(store) ? get(store) : NULL;
  if (bell == NULL) return -1;
  if (bell->poller < 0) {
#ifdef __linux__
    bell->poller = epoll_create1(EPOLL_CLOEXEC);
#else
    bell->poller = kqueue();
#endif
    watch(bell);
  }
  return bell->poller;
}

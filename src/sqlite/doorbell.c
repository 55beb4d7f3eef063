/*
** Waiting for a commit of any process. A commit appends to the write-ahead log, and the kernel
** reports this to the processes that watch that file. This is the doorbell. The bell says when to
** look; PRAGMA data_version says whether there was a commit. A claim notes what it can see when it
** begins, so that no commit is missed between a claim that finds nothing and the wait that follows
** it.
*/
#define _DEFAULT_SOURCE

#include <errno.h>
#include <poll.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "operations.h"

/*
** The bell rings when the log is written, a moment before the commit is visible. Where the commit
** then waits for a slow disk, that moment may be seconds. So a wake that finds nothing looks again,
** first after LOOK_FIRST microseconds, then after longer and longer pauses: some hundred looks in
** LOOK_FOR.
*/
#define LOOK_FIRST 20
#define LOOK_FOR 10000000

/* Microseconds between two looks where there is no bell. */
#define LOOK_EVERY 10000

/* Microseconds between two checks that the files are in their places. */
#define CHECK_EVERY 1000000

/* --- The bell -------------------------------------------------------------------------------- */

#if defined(__linux__) && !defined(OUTBOX_NO_BELL)
#include <sys/inotify.h>

/* A file that is deleted while it is open loses a link, and the link count is an attribute. */
#define GONE (IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF)

static int open_bell(void) {
  return inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
}

static bool watch(doorbell *bell, const char *path) {
  return inotify_add_watch(bell->fd, path, IN_MODIFY | GONE) >= 0;
}

/* Reads all events; true if there was one. Notes when the watched file is gone. */
static bool drain(doorbell *bell) {
  union {
    struct inotify_event event;
    char bytes[4096];
  } buffer;
  bool rung = false;
  for (ssize_t size; (size = read(bell->fd, &buffer, sizeof buffer)) > 0; rung = true)
    for (ssize_t i = 0; i < size;) {
      const struct inotify_event *event = (const void *)(buffer.bytes + i);
      if (event->mask & (GONE | IN_IGNORED)) bell->watching = false;
      i += (ssize_t)(sizeof *event + event->len);
    }
  return rung;
}

#elif (defined(__APPLE__) || defined(__FreeBSD__) || defined(__OpenBSD__) ||                       \
       defined(__NetBSD__)) &&                                                                     \
    !defined(OUTBOX_NO_BELL)
#include <fcntl.h>
#include <sys/event.h>
#include <sys/types.h>

static int open_bell(void) {
  int fd = kqueue();
  if (fd >= 0) fcntl(fd, F_SETFD, FD_CLOEXEC);
  return fd;
}

/* The file must be open while it is watched. SQLite holds no lock on it that a close would drop. */
static bool watch(doorbell *bell, const char *path) {
  if (bell->file >= 0) close(bell->file);
  bell->file = open(path, O_RDONLY | O_CLOEXEC);
  if (bell->file < 0) return false;
  struct kevent change;
  EV_SET(&change, bell->file, EVFILT_VNODE, EV_ADD | EV_CLEAR,
         NOTE_WRITE | NOTE_EXTEND | NOTE_DELETE | NOTE_RENAME, 0, 0);
  return kevent(bell->fd, &change, 1, NULL, 0, NULL) == 0;
}

static bool drain(doorbell *bell) {
  struct kevent event;
  const struct timespec now = {0, 0};
  bool rung = false;
  for (; kevent(bell->fd, NULL, 0, &event, 1, &now) > 0; rung = true)
    if (event.fflags & (NOTE_DELETE | NOTE_RENAME)) bell->watching = false;
  return rung;
}

#else /* no bell is known here: look every LOOK_EVERY */

static int open_bell(void) {
  return -1;
}

static bool watch(doorbell *bell, const char *path) {
  (void)bell, (void)path;
  return false;
}

static bool drain(doorbell *bell) {
  (void)bell;
  return false;
}

#endif

/* Watches the log, if it can be watched. A database in memory has none. */
static void tend(outbox_store *store) {
  doorbell *bell = &store->doorbell;
  const char *path = sqlite3_db_filename(store->db, "main");
  if (bell->fd < 0) bell->fd = open_bell();
  if (bell->fd >= 0 && !bell->watching && path != NULL && path[0] != '\0')
    bell->watching = watch(bell, sqlite3_filename_wal(path));
}

void doorbell_close(outbox_store *store) {
  if (store->doorbell.file >= 0) close(store->doorbell.file);
  if (store->doorbell.fd >= 0) close(store->doorbell.fd);
  store->doorbell.file = store->doorbell.fd = -1;
}

/* --- The files ------------------------------------------------------------------------------- */

/*
** SQLite keeps the log as long as a connection in WAL mode is open. If it has gone, somebody else
** has deleted it, and new connections begin another one. The application's own connection may have
** left WAL mode.
*/
static bool has_lost_log(outbox_store *store, const char *path) {
  struct stat log;
  if (store->attached) return false;
  bool there = stat(sqlite3_filename_wal(path), &log) == 0;
  if (there && store->doorbell.log == 0) store->doorbell.log = log.st_ino;
  return store->doorbell.log != 0 && !(there && store->doorbell.log == log.st_ino);
}

int doorbell_check(outbox_store *store) {
  int64_t now = clock_monotonic();
  if (now < store->doorbell.checked_at + CHECK_EVERY) return OUTBOX_OK;
  const char *path = sqlite3_db_filename(store->db, "main");
  int moved = 0;
  if (path == NULL || path[0] == '\0') return OUTBOX_OK;
  sqlite3_file_control(store->db, "main", SQLITE_FCNTL_HAS_MOVED, &moved);
  if (moved)
    return store_fail(store, OUTBOX_MOVED,
                      "%s: the file was deleted, moved or replaced while it was open", path);
  if (has_lost_log(store, path))
    return store_fail(
        store, OUTBOX_MOVED,
        "%s-wal: the write-ahead log was deleted, moved or replaced while it was open", path);
  store->doorbell.checked_at = now;
  return OUTBOX_OK;
}

/* --- What was seen --------------------------------------------------------------------------- */

static int64_t own_changes(outbox_store *store) {
  return sqlite3_total_changes64(store->db) - store->doorbell.processing;
}

static int find_version(outbox_store *store, int64_t *version) {
  int code = transaction_prepare(store, DATA_VERSION, DATA_VERSION);
  if (code != OUTBOX_OK) return code;
  sqlite3_stmt *statement = store->controls[DATA_VERSION];
  code = sql_step(store, statement);
  if (code != OUTBOX_ROW) return code;
  *version = sqlite3_column_int64(statement, 0);
  sql_reset(store, statement);
  return OUTBOX_OK;
}

int doorbell_see(outbox_store *store) {
  store->doorbell.changes = own_changes(store);
  int code = doorbell_check(store);
  return code == OUTBOX_OK ? find_version(store, &store->doorbell.version) : code;
}

static int look(outbox_store *store, bool *changed) {
  int64_t version = 0;
  int code = find_version(store, &version);
  if (code == OUTBOX_OK)
    *changed = version != store->doorbell.version || own_changes(store) != store->doorbell.changes;
  return code;
}

/* --- Waiting --------------------------------------------------------------------------------- */

/* Looks once. *again: microseconds until the next look; 0 where the bell will ring for it. */
static int look_once(outbox_store *store, bool *changed, int64_t *again) {
  doorbell *bell = &store->doorbell;
  int64_t now = clock_monotonic();
  bool watched = bell->watching;
  if (bell->watching && drain(bell)) bell->rung_at = now;
  if (watched && !bell->watching) bell->checked_at = INT64_MIN / 2; /* the log has gone, perhaps */
  int code = doorbell_check(store);
  if (code != OUTBOX_OK) return code;
  if (!bell->watching) tend(store);
  /* A write before the watch began rang no bell. */
  if (bell->watching && !watched) bell->rung_at = now;
  code = look(store, changed);
  *again = 0;
  if (code != OUTBOX_OK || *changed) return code;
  if (!bell->watching) {
    *again = LOOK_EVERY;
  } else if (now < bell->rung_at + LOOK_FOR) {
    *again = LOOK_FIRST + (now - bell->rung_at) / 8;
  }
  return OUTBOX_OK;
}

/*
** Sleeps as exactly as possible. Linux adds 50 microseconds unless the thread asks it not to. True
** if a signal ended the sleep.
*/
static bool nap(int64_t microseconds) {
  struct timespec time = {.tv_sec = microseconds / 1000000,
                          .tv_nsec = microseconds % 1000000 * 1000};
#ifdef __linux__
  int slack = prctl(PR_GET_TIMERSLACK);
  prctl(PR_SET_TIMERSLACK, 1UL);
#endif
  bool interrupted = nanosleep(&time, NULL) != 0 && errno == EINTR;
#ifdef __linux__
  if (slack > 0) prctl(PR_SET_TIMERSLACK, (unsigned long)slack);
#endif
  return interrupted;
}

int outbox_wait(outbox_store *store, int64_t timeout, bool *rung, int64_t *look_again) {
  int64_t end = clock_later(clock_monotonic(), timeout);
  bool changed = false, interrupted = false;
  *rung = false;
  *look_again = 0;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK && !sqlite3_get_autocommit(store->db))
    code = store_fail(store, OUTBOX_MISUSE, "a wait inside a transaction would keep others out");
  while (code == OUTBOX_OK) {
    int64_t again, left;
    code = look_once(store, &changed, &again);
    if (code != OUTBOX_OK || changed || interrupted) break;
    left = end - clock_monotonic();
    if (left <= 0) {
      *look_again = again;
      break;
    }
    if (again != 0 && again < left) left = again;
    struct pollfd bell = {.fd = store->doorbell.fd, .events = POLLIN};
    if (left >= 1000) {
      int64_t most = left / 1000 < 3600000 ? left / 1000 : 3600000;
      interrupted = poll(&bell, bell.fd >= 0 ? 1 : 0, (int)most) < 0 && errno == EINTR;
    } else {
      interrupted = nap(left);
    }
  }
  if (code == OUTBOX_OK) *rung = changed || interrupted;
  return code;
}

int outbox_pollfd(outbox_store *store) {
  if (transaction_enter(store) != OUTBOX_OK) return -1;
  tend(store);
  return store->doorbell.fd;
}

/*
** Claiming. A claim is a set of intervals of seq, the leases; they never overlap. What a processor
** may claim is what lies between the live leases of the others.
*/
#include <stdio.h>

#include "store.h"

#define DUE_AT_MOST 1000 /* delayed entries brought back per claim, to keep its transaction short */

/*
** How far in the future a lease may have been made. Clocks are read before the lock is waited for,
** so a claim may be older than what it finds by as long as that took, and some time for scheduling.
*/
#define SKEW 5000000

/* Read without a lock: an idle processor must neither write nor stand in a writer's way. */
static const char FIND_WORK_SQL[] = "SELECT EXISTS (SELECT 1 FROM @entries)"
                                    " OR EXISTS (SELECT 1 FROM @leases)"
                                    " OR EXISTS (SELECT 1 FROM @delayed WHERE due_at <= ?1)";

static const char FIND_DUE_SQL[] =
    "SELECT due_at FROM @delayed WHERE due_at > ?1 ORDER BY due_at LIMIT 1";

static const char SELECT_DUE_SQL[] =
    "SELECT seq, position FROM @delayed WHERE due_at <= ?1 ORDER BY due_at, seq LIMIT ?2";

static const char FIND_RETURNING_SQL[] =
    "SELECT EXISTS (SELECT 1 FROM @delayed WHERE position BETWEEN ?1 AND ?2 AND due_at <= ?3)";

/*
** A position is free: no other entry ever had that seq. A NULL gets the next seq. Nor may an entry
** wait because plain SQL has used its id again: that one may have to wait for it.
*/
static const char RESTORE_DUE_SQL[] =
    "INSERT OR IGNORE INTO @entries"
    " (seq, id, namespace, key, payload, headers, created_at, attempts, last_error)"
    " SELECT position, CASE WHEN EXISTS (SELECT 1 FROM @entries WHERE id = d.id)"
    " THEN d.id || '~' || coalesce(position, seq) ELSE d.id END, namespace, key, payload, headers,"
    " created_at, attempts, last_error FROM @delayed AS d WHERE seq = ?1";

static const char DELETE_DUE_SQL[] = "DELETE FROM @delayed WHERE seq = ?1";

static const char SELECT_LEASES_SQL[] =
    "SELECT first_seq, last_seq, processor_id, deadline, claimed_at, batch FROM @leases"
    " ORDER BY first_seq";

static const char DELETE_LEASE_SQL[] = "DELETE FROM @leases WHERE first_seq = ?1";

static const char INSERT_LEASE_SQL[] =
    "INSERT INTO @leases (first_seq, last_seq, processor_id, deadline, claimed_at)"
    " VALUES (?1, ?2, ?3, ?4, ?5)";

static const char FIRST_READY_SQL[] = "SELECT seq FROM @entries ORDER BY seq LIMIT 1";

static const char LAST_READY_SQL[] =
    "SELECT seq FROM @entries WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq DESC LIMIT 1";

static const char COUNT_READY_SQL[] =
    "SELECT max(seq), count(*) FROM"
    " (SELECT seq FROM @entries WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq LIMIT ?3)";

static const char RENEW_LEASES_SQL[] =
    "UPDATE @leases SET deadline = ?2, claimed_at = ?3, batch = NULL WHERE processor_id = ?1";

static const char RELEASE_LEASES_SQL[] = "DELETE FROM @leases WHERE processor_id = ?1";

static const char CHARGE_RANGE_SQL[] =
    "UPDATE @entries SET attempts = attempts + 1, last_error = '" OUTBOX_LAPSED "'"
    " WHERE seq BETWEEN ?1 AND ?2";

/* --- Delayed entries that are due ------------------------------------------------------------ */

/* *from becomes the lowest place to which one came back, if that is lower than what it was. */
static int restore_due(outbox_store *store, int64_t now, int *restored, int64_t *from) {
  int64_t due[DUE_AT_MOST], positions[DUE_AT_MOST];
  int count = 0;
  sqlite3_stmt *statement;
  int code =
      outbox_query(store, SELECT_DUE, SELECT_DUE_SQL, &statement, "ii", now, (int64_t)DUE_AT_MOST);
  if (code != OUTBOX_OK) return code;
  while ((code = outbox_step(store, statement)) == OUTBOX_ROW) {
    bool placed = sqlite3_column_type(statement, 1) != SQLITE_NULL;
    due[count] = sqlite3_column_int64(statement, 0);
    positions[count++] = placed ? sqlite3_column_int64(statement, 1) : INT64_MAX;
  }
  if (code != OUTBOX_DONE) return code;

  for (int i = 0; i < count; i++) {
    code = outbox_process(store, RESTORE_DUE, RESTORE_DUE_SQL, "i", due[i]);
    /* One whose new id is taken as well waits until that is gone. */
    if (code == OUTBOX_OK && sqlite3_changes(store->db) == 1) {
      code = outbox_process(store, DELETE_DUE, DELETE_DUE_SQL, "i", due[i]);
      ++*restored;
      if (positions[i] < *from) *from = positions[i];
    }
    if (code != OUTBOX_OK) return code;
  }
  return OUTBOX_OK;
}

/* --- Intervals ------------------------------------------------------------------------------- */

enum kind { OTHERS, OWN, LAPSED };

typedef struct interval {
  int64_t first, last;
  enum kind kind;
} interval;

typedef struct intervals { /* in the order of seq, not overlapping */
  interval *items;
  size_t count;
} intervals;

static int append(outbox_store *store, intervals *list, interval item) {
  if ((list->count & (list->count - 1)) == 0) { /* full at every power of two */
    sqlite3_uint64 size = (list->count == 0 ? 1 : 2 * list->count) * sizeof item;
    interval *items = sqlite3_realloc64(list->items, size);
    if (items == NULL) return outbox_fail(store, OUTBOX_NOMEM, "out of memory");
    list->items = items;
  }
  list->items[list->count++] = item;
  return OUTBOX_OK;
}

/* The earlier of two times, of which 0 is none. */
static int64_t earlier(int64_t a, int64_t b) {
  return a == 0 || (b != 0 && b < a) ? b : a;
}

/* The moment after the lease's deadline. */
static int64_t lapses(sqlite3_stmt *lease) {
  int64_t deadline = sqlite3_column_int64(lease, 3);
  return deadline < INT64_MAX ? deadline + 1 : deadline;
}

static enum kind classify(outbox_store *store, sqlite3_stmt *row, outbox_bytes processor_id,
                          int64_t now) {
  if (outbox_equal(outbox_column(row, 2), processor_id)) return OWN;
  bool lapsed = sqlite3_column_int64(row, 3) < now ||
                sqlite3_column_int64(row, 4) > now + SKEW + store->lock_wait.timeout;
  return lapsed ? LAPSED : OTHERS;
}

/* The entries of a lease that were in hand when it lapsed have had an attempt that failed. */
static int charge(outbox_store *store, sqlite3_stmt *lease) {
  const char *text = outbox_column(lease, 5).data;
  int64_t lease_first = sqlite3_column_int64(lease, 0), lease_last = sqlite3_column_int64(lease, 1);
  long long first, last;
  for (int size; text != NULL && sscanf(text, "%lld-%lld%n", &first, &last, &size) == 2;) {
    if (first < lease_first) first = lease_first;
    if (last > lease_last) last = lease_last;
    int code =
        outbox_process(store, CHARGE_RANGE, CHARGE_RANGE_SQL, "ii", (int64_t)first, (int64_t)last);
    if (code != OUTBOX_OK) return code;
    text += size;
    text = *text == ',' ? text + 1 : NULL;
  }
  return OUTBOX_OK;
}

/*
** *lapses_at is the moment after the first deadline of another's, if any is before what it was;
** *in_hand, whether a lease that is not another's names entries in hand.
*/
static int load_leases(outbox_store *store, outbox_bytes processor_id, int64_t now,
                       intervals *leases, int64_t *lapses_at, bool *in_hand) {
  sqlite3_stmt *row;
  int code = outbox_query(store, SELECT_LEASES, SELECT_LEASES_SQL, &row, "");
  if (code != OUTBOX_OK) return code;
  while ((code = outbox_step(store, row)) == OUTBOX_ROW) {
    interval lease = {.first = sqlite3_column_int64(row, 0),
                      .last = sqlite3_column_int64(row, 1),
                      .kind = classify(store, row, processor_id, now)};
    if (lease.kind == OTHERS)
      *lapses_at = earlier(*lapses_at, lapses(row));
    else
      *in_hand |= sqlite3_column_type(row, 5) != SQLITE_NULL;
    code = append(store, leases, lease);
    if (code != OUTBOX_OK) {
      outbox_reset(store, row);
      return code;
    }
  }
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

static int charge_leases(outbox_store *store, outbox_bytes processor_id, int64_t now) {
  sqlite3_stmt *row;
  int code = outbox_query(store, SELECT_LEASES, SELECT_LEASES_SQL, &row, "");
  if (code != OUTBOX_OK) return code;
  while ((code = outbox_step(store, row)) == OUTBOX_ROW) {
    if (classify(store, row, processor_id, now) != OTHERS) code = charge(store, row);
    if (code != OUTBOX_ROW && code != OUTBOX_OK) {
      outbox_reset(store, row);
      return code;
    }
  }
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

/*
** Finds the ready entries from first to last: *count of them, no more than `limit`, and *end,
** unless there are none, the seq of the last of those. Without a limit (0) *count is 1 for any
** number.
*/
static int measure(outbox_store *store, int64_t first, int64_t last, int64_t limit, int64_t *end,
                   int64_t *count) {
  sqlite3_stmt *row;
  *count = 0;
  int code =
      limit > 0 ? outbox_query(store, COUNT_READY, COUNT_READY_SQL, &row, "iii", first, last, limit)
                : outbox_query(store, LAST_READY, LAST_READY_SQL, &row, "ii", first, last);
  if (code != OUTBOX_OK) return code;
  code = outbox_step(store, row);
  if (code != OUTBOX_ROW) return code == OUTBOX_DONE ? OUTBOX_OK : code;
  *count = limit > 0 ? sqlite3_column_int64(row, 1) : 1;
  if (*count > 0) *end = sqlite3_column_int64(row, 0);
  outbox_reset(store, row);
  return OUTBOX_OK;
}

/* --- The claim ------------------------------------------------------------------------------- */

/* Whether an entry is due to come back to a place from first to last. */
static int find_returning(outbox_store *store, int64_t first, int64_t last, int64_t now,
                          bool *found) {
  sqlite3_stmt *row;
  int code = outbox_query(store, FIND_RETURNING, FIND_RETURNING_SQL, &row, "iii", first, last, now);
  if (code == OUTBOX_OK) code = outbox_step(store, row);
  if (code != OUTBOX_ROW) return code;
  *found = sqlite3_column_int(row, 0);
  outbox_reset(store, row);
  return OUTBOX_OK;
}

/*
** A live lease with no entry left under it, nor one that is due back there, is as good as none; an
** exclusive one awaits entries.
*/
static int sweep(outbox_store *store, intervals *leases, int64_t now) {
  for (size_t i = 0; i < leases->count; i++) {
    interval *lease = &leases->items[i];
    if (lease->kind != OTHERS || lease->last == INT64_MAX) continue;
    int64_t end, count;
    int code = measure(store, lease->first, lease->last, 1, &end, &count);
    bool returning = false;
    if (code == OUTBOX_OK && count == 0)
      code = find_returning(store, lease->first, lease->last, now, &returning);
    if (code != OUTBOX_OK) return code;
    if (count == 0 && !returning) lease->kind = LAPSED;
  }
  return OUTBOX_OK;
}

/*
** With a limit, the processor's own leases come first and are cut down to *remaining entries in
** all; without one they are dropped, for the gaps will cover them.
*/
static int keep_own(outbox_store *store, intervals *leases, bool limited, int64_t *remaining) {
  for (size_t i = 0; i < leases->count; i++) {
    interval *lease = &leases->items[i];
    if (lease->kind != OWN) continue;
    int64_t count = 0;
    if (limited && *remaining > 0) {
      int code = measure(store, lease->first, lease->last, *remaining, &lease->last, &count);
      if (code != OUTBOX_OK) return code;
    }
    if (count == 0) lease->kind = LAPSED;
    *remaining -= count;
  }
  return OUTBOX_OK;
}

/* Adds an interval behind the others; where nothing lies between, it is one with the last. */
static int add_claimed(outbox_store *store, intervals *claimed, int64_t first, int64_t last) {
  interval *before = claimed->count > 0 ? &claimed->items[claimed->count - 1] : NULL;
  if (before != NULL && before->last < first && before->last + 1 == first) {
    before->last = last;
    return OUTBOX_OK;
  }
  return append(store, claimed, (interval){first, last, OWN});
}

/* Finds the seq of the first ready entry, if there is one. */
static int find_first(outbox_store *store, int64_t *first, bool *found) {
  sqlite3_stmt *row;
  *found = false;
  int code = outbox_query(store, FIRST_READY, FIRST_READY_SQL, &row, "");
  if (code != OUTBOX_OK) return code;
  code = outbox_step(store, row);
  if (code != OUTBOX_ROW) return code == OUTBOX_DONE ? OUTBOX_OK : code;
  *first = sqlite3_column_int64(row, 0);
  *found = true;
  outbox_reset(store, row);
  return OUTBOX_OK;
}

/* Collects what the processor keeps and, from the gaps between all leases, what it may take. */
static int fill_gaps(outbox_store *store, const intervals *leases, bool limited, int64_t remaining,
                     intervals *claimed) {
  int64_t from;
  bool found;
  int code = find_first(store, &from, &found);
  if (code != OUTBOX_OK || !found) return code;
  for (size_t i = 0; i <= leases->count; i++) {
    const interval *lease = i < leases->count ? &leases->items[i] : NULL;
    if (lease != NULL && lease->kind == LAPSED) continue;
    bool gap = lease != NULL ? from < lease->first : true;
    if (gap && (!limited || remaining > 0)) {
      int64_t end, count, to = lease != NULL ? lease->first - 1 : INT64_MAX;
      code = measure(store, from, to, limited ? remaining : 0, &end, &count);
      if (code == OUTBOX_OK && count > 0) code = add_claimed(store, claimed, from, end);
      if (code != OUTBOX_OK) return code;
      remaining -= count;
    }
    if (lease == NULL) break;
    if (lease->kind == OWN) {
      code = add_claimed(store, claimed, lease->first, lease->last);
      if (code != OUTBOX_OK) return code;
    }
    if (lease->last == INT64_MAX) break;
    if (from <= lease->last) from = lease->last + 1;
  }
  return OUTBOX_OK;
}

static bool any_of_others(const intervals *leases) {
  for (size_t i = 0; i < leases->count; i++)
    if (leases->items[i].kind == OTHERS) return true;
  return false;
}

/* Everything there is and will be. */
static int claim_all(outbox_store *store, intervals *leases, intervals *claimed) {
  for (size_t i = 0; i < leases->count; i++)
    leases->items[i].kind = LAPSED;
  int64_t first;
  bool found;
  int code = find_first(store, &first, &found);
  if (code != OUTBOX_OK || !found) return code;
  /* From 1, for a retry may come back to a place before the first. */
  return add_claimed(store, claimed, first < 1 ? first : 1, INT64_MAX);
}

static int save_leases(outbox_store *store, const intervals *leases, const intervals *claimed,
                       outbox_bytes processor_id, int64_t deadline, int64_t now) {
  int code = OUTBOX_OK;
  for (size_t i = 0; i < leases->count && code == OUTBOX_OK; i++)
    if (leases->items[i].kind != OTHERS)
      code = outbox_process(store, DELETE_LEASE, DELETE_LEASE_SQL, "i", leases->items[i].first);
  for (size_t i = 0; i < claimed->count && code == OUTBOX_OK; i++)
    code = outbox_process(store, INSERT_LEASE, INSERT_LEASE_SQL, "iitii", claimed->items[i].first,
                          claimed->items[i].last, processor_id, deadline, now);
  return code;
}

static int find_work(outbox_store *store, int64_t now, bool *found) {
  sqlite3_stmt *row;
  int code = outbox_query(store, FIND_WORK, FIND_WORK_SQL, &row, "i", now);
  if (code != OUTBOX_OK) return code;
  code = outbox_step(store, row);
  if (code != OUTBOX_ROW) return code;
  *found = sqlite3_column_int(row, 0);
  outbox_reset(store, row);
  return OUTBOX_OK;
}

static int find_due(outbox_store *store, int64_t now, int64_t *due_at) {
  sqlite3_stmt *row;
  int code = outbox_query(store, FIND_DUE, FIND_DUE_SQL, &row, "i", now);
  if (code != OUTBOX_OK) return code;
  code = outbox_step(store, row);
  if (code != OUTBOX_ROW) return code == OUTBOX_DONE ? OUTBOX_OK : code;
  *due_at = sqlite3_column_int64(row, 0);
  outbox_reset(store, row);
  return OUTBOX_OK;
}

/*
** Whether another has a live lease that is exclusive: seen without a lock, for those who stand by
** look at every commit of the one who works.
*/
static int find_exclusive(outbox_store *store, outbox_bytes processor_id, int64_t now, bool *found,
                          int64_t *lapses_at) {
  sqlite3_stmt *row;
  int code = outbox_query(store, SELECT_LEASES, SELECT_LEASES_SQL, &row, "");
  if (code != OUTBOX_OK) return code;
  while ((code = outbox_step(store, row)) == OUTBOX_ROW)
    if (classify(store, row, processor_id, now) == OTHERS &&
        sqlite3_column_int64(row, 1) == INT64_MAX) {
      *found = true;
      *lapses_at = lapses(row);
    }
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

int outbox_claim_entries(outbox_store *store, outbox_bytes processor_id, int64_t deadline,
                         int64_t limit, bool exclusive, outbox_claimed *claimed) {
  int64_t now, lapses_at = 0, due_at = 0, restored_from = INT64_MAX;
  int restored = 0;
  bool found = false, refused = false, in_hand = false, limited = limit > 0;
  intervals leases = {NULL, 0}, mine = {NULL, 0};
  *claimed = (outbox_claimed){.restored_from = INT64_MAX};
  int code = outbox_enter(store);
  if (code == OUTBOX_OK && limited && exclusive)
    code = outbox_fail(store, OUTBOX_MISUSE, "a claim cannot be exclusive and have a limit");
  if (code == OUTBOX_OK) code = outbox_now(store, &now);
  if (code == OUTBOX_OK) code = outbox_see(store);
  if (code == OUTBOX_OK) code = find_work(store, now, &found);
  if (code == OUTBOX_OK && exclusive && found)
    code = find_exclusive(store, processor_id, now, &refused, &lapses_at);
  if (code == OUTBOX_OK && (!found || refused)) {
    if (!refused) code = find_due(store, now, &due_at);
    claimed->again_at = refused ? lapses_at : due_at;
    claimed->refused = refused;
    return code;
  }
  if (code == OUTBOX_OK) code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;

  code = load_leases(store, processor_id, now, &leases, &lapses_at, &in_hand);
  if (code == OUTBOX_OK && exclusive) {
    code = sweep(store, &leases, now);
    refused = any_of_others(&leases); /* all or nothing: then nothing changes */
  }
  if (code == OUTBOX_OK && !refused) {
    int64_t remaining = limit;
    if (in_hand) code = charge_leases(store, processor_id, now);
    if (code == OUTBOX_OK) code = restore_due(store, now, &restored, &restored_from);
    if (code == OUTBOX_OK && exclusive) code = claim_all(store, &leases, &mine);
    if (code == OUTBOX_OK && !exclusive) code = sweep(store, &leases, now);
    if (code == OUTBOX_OK && !exclusive) code = keep_own(store, &leases, limited, &remaining);
    if (code == OUTBOX_OK && !exclusive)
      code = fill_gaps(store, &leases, limited, remaining, &mine);
    if (code == OUTBOX_OK) code = save_leases(store, &leases, &mine, processor_id, deadline, now);
  }
  if (code == OUTBOX_OK) code = find_due(store, now, &due_at);
  code = outbox_end(store, code);
  if (code == OUTBOX_OK) {
    claimed->any = mine.count > 0;
    claimed->refused = refused;
    claimed->restored_from = restored_from;
    claimed->again_at = restored == DUE_AT_MOST ? now : earlier(due_at, lapses_at);
  }
  sqlite3_free(leases.items);
  sqlite3_free(mine.items);
  return code;
}

int outbox_renew_claim(outbox_store *store, outbox_bytes processor_id, int64_t deadline,
                       bool *renewed) {
  int64_t now;
  int code = outbox_enter(store);
  if (code == OUTBOX_OK) code = outbox_now(store, &now);
  if (code == OUTBOX_OK)
    code =
        outbox_process(store, RENEW_LEASES, RENEW_LEASES_SQL, "tii", processor_id, deadline, now);
  if (code == OUTBOX_OK) *renewed = sqlite3_changes(store->db) > 0;
  return code;
}

int outbox_release_claim(outbox_store *store, outbox_bytes processor_id) {
  int code = outbox_enter(store);
  if (code == OUTBOX_OK)
    code = outbox_process(store, RELEASE_LEASES, RELEASE_LEASES_SQL, "t", processor_id);
  return code;
}

/* --- Reading the leases ---------------------------------------------------------------------- */

int outbox_leases(outbox_store *store) {
  int code = outbox_enter(store);
  if (code != OUTBOX_OK) return code;
  return outbox_query(store, SELECT_LEASES, SELECT_LEASES_SQL, &store->reading, "");
}

int outbox_next_lease(outbox_store *store, outbox_lease *lease) {
  int code = outbox_next_row(store);
  if (code != OUTBOX_ROW) return code;
  lease->first_seq = sqlite3_column_int64(store->reading, 0);
  lease->last_seq = sqlite3_column_int64(store->reading, 1);
  lease->processor_id = outbox_column(store->reading, 2);
  lease->deadline = sqlite3_column_int64(store->reading, 3);
  lease->claimed_at = sqlite3_column_int64(store->reading, 4);
  lease->batch = outbox_column(store->reading, 5);
  return OUTBOX_ROW;
}

/*
** Claiming. A claim is a set of leases: intervals of seq that never overlap. A processor may claim
** the gaps between the live leases of the others:
**
**     entries       1 2 3 4 . 6 7 8 9 . . 12 13     . is gone
**     leases        [--A--]   [-B-]                 A is alive, B has lapsed
**     C claims                [----------------     from 6 on
**     C, limit 3              [---]                 6, 7 and 8
**     C, exclusive                                  refused while A is alive; then everything
*/
#include <stdio.h>

#include "../interval.h"
#include "operations.h"

/* Read without a lock, because an idle processor must neither write nor keep a writer waiting. */
static const char FIND_WORK_SQL[] = "SELECT EXISTS (SELECT 1 FROM @entries)"
                                    " OR EXISTS (SELECT 1 FROM @leases)"
                                    " OR EXISTS (SELECT 1 FROM @delayed WHERE due_at <= ?1),"
                                    " EXISTS (SELECT 1 FROM @delayed WHERE delayed_at > ?2)";

static const char FIND_DUE_SQL[] =
    "SELECT due_at FROM @delayed WHERE due_at > ?1 ORDER BY due_at LIMIT 1";

static const char FIND_RETURNING_SQL[] =
    "SELECT EXISTS (SELECT 1 FROM @delayed WHERE position BETWEEN ?1 AND ?2"
    " AND (due_at <= ?3 OR delayed_at > ?4))";

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
    " (SELECT seq FROM @entries WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq LIMIT 0 + ?3)";

static const char RENEW_LEASES_SQL[] =
    "UPDATE @leases SET deadline = ?2, claimed_at = ?3, batch = NULL WHERE processor_id = ?1";

static const char RELEASE_LEASES_SQL[] = "DELETE FROM @leases WHERE processor_id = ?1";

static const char CHARGE_RANGE_SQL[] =
    "UPDATE @entries SET attempts = attempts + 1, last_error = '" OUTBOX_LAPSED "'"
    " WHERE seq BETWEEN ?1 AND ?2";

/* --- A claim in the making ------------------------------------------------------------------- */

/* The kinds of leases: another processor's, this one's, and lapsed ones. */
enum kind { OTHERS, OWN, LAPSED };

typedef struct claim {
  outbox_store *store;
  outbox_bytes processor_id;
  int64_t now, deadline;
  bool limited;
  int64_t remaining; /* how many entries may still be claimed, if it is limited */
  intervals leases;  /* all leases as they are */
  intervals mine;    /* the processor's leases as they will be */
  bool in_hand;      /* an own or a lapsed lease names entries in hand */
  bool ahead;        /* a retry was delayed in the future */
  restored restored; /* the delayed entries that came back */
  int64_t lapses_at; /* when the first of the others' leases lapses; 0: there is none */
} claim;

static void *reallocate(void *items, uint64_t size) {
  return sqlite3_realloc64(items, size);
}

/*
** Counts the ready entries from first to last, up to `limit`. *end becomes the seq of the last one
** that was counted, if there is any. Without a limit (0) *count is 1 if there is any entry, else
** 0.
*/
static int measure(outbox_store *store, int64_t first, int64_t last, int64_t limit, int64_t *end,
                   int64_t *count) {
  int64_t values[2] = {0, 1}; /* the seq, the number */
  bool found;
  int code = limit > 0
                 ? sql_fetch(store, COUNT_READY_SQL, values, 2, &found, "iii", first, last, limit)
                 : sql_fetch(store, LAST_READY_SQL, values, 1, &found, "ii", first, last);
  *count = code == OUTBOX_OK && found ? values[1] : 0;
  if (*count > 0) *end = values[0];
  return code;
}

/* --- The leases as they are ------------------------------------------------------------------ */

/* The earlier of two times. 0 is no time. */
static int64_t earlier(int64_t a, int64_t b) {
  return a == 0 || (b != 0 && b < a) ? b : a;
}

static void read_lease(sqlite3_stmt *row, outbox_lease *lease) {
  lease->first_seq = sqlite3_column_int64(row, 0);
  lease->last_seq = sqlite3_column_int64(row, 1);
  lease->processor_id = sql_column(row, 2);
  lease->deadline = sqlite3_column_int64(row, 3);
  lease->claimed_at = sqlite3_column_int64(row, 4);
  lease->batch = sql_column(row, 5);
}

/* The moment after the lease's deadline. */
static int64_t lapses(const outbox_lease *lease) {
  return lease->deadline < INT64_MAX ? lease->deadline + 1 : INT64_MAX;
}

/* The time after which something that was written is from the future: the clock was set back. */
static int64_t future(const claim *c) {
  return c->now + SKEW + c->store->lock_wait.timeout;
}

static int classify(const claim *c, const outbox_lease *lease) {
  if (bytes_equal(lease->processor_id, c->processor_id)) return OWN;
  bool from_the_future = lease->claimed_at > future(c);
  return lease->deadline < c->now || from_the_future ? LAPSED : OTHERS;
}

static int load_lease(claim *c, const outbox_lease *lease) {
  int kind = classify(c, lease);
  if (kind == OTHERS)
    c->lapses_at = earlier(c->lapses_at, lapses(lease));
  else
    c->in_hand |= lease->batch.data != NULL;
  bool added = intervals_append(&c->leases, (interval){lease->first_seq, lease->last_seq, kind});
  return added ? OUTBOX_OK : store_fail_nomem(c->store);
}

/* Charges an attempt to the entries that were in hand when their lease lapsed. */
static int charge(claim *c, const outbox_lease *lease) {
  if (classify(c, lease) == OTHERS) return OUTBOX_OK;
  const char *text = lease->batch.data;
  long long first, last;
  for (int size; text != NULL && sscanf(text, "%lld-%lld%n", &first, &last, &size) == 2;) {
    if (first < lease->first_seq) first = lease->first_seq;
    if (last > lease->last_seq) last = lease->last_seq;
    int code = sql_process(c->store, CHARGE_RANGE_SQL, "ii", (int64_t)first, (int64_t)last);
    if (code != OUTBOX_OK) return code;
    text += size;
    text = *text == ',' ? text + 1 : NULL;
  }
  return OUTBOX_OK;
}

/* Notes when the lease of a processor that has claimed everything lapses. */
static int find_exclusive(claim *c, const outbox_lease *lease) {
  if (classify(c, lease) == OTHERS && lease->last_seq == INT64_MAX)
    c->lapses_at = earlier(c->lapses_at, lapses(lease));
  return OUTBOX_OK;
}

static int for_each_lease(claim *c, int visit(claim *, const outbox_lease *)) {
  sqlite3_stmt *row;
  outbox_lease lease;
  int code = sql_query(c->store, SELECT_LEASES_SQL, &row, "");
  if (code != OUTBOX_OK) return code;
  while ((code = sql_step(c->store, row)) == OUTBOX_ROW) {
    read_lease(row, &lease);
    code = visit(c, &lease);
    if (code == OUTBOX_OK) continue;
    sql_reset(c->store, row);
    return code;
  }
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

static bool any_of_others(const claim *c) {
  for (size_t i = 0; i < c->leases.count; i++)
    if (c->leases.items[i].kind == OTHERS) return true;
  return false;
}

/*
** A live lease counts as lapsed when no entry is left under it and none is due to come back there.
** An exclusive one stays: it awaits entries.
*/
static int sweep(claim *c) {
  for (size_t i = 0; i < c->leases.count; i++) {
    interval *lease = &c->leases.items[i];
    if (lease->kind != OTHERS || lease->last == INT64_MAX) continue;
    int64_t end, count, returning = 0;
    bool found;
    int code = measure(c->store, lease->first, lease->last, 1, &end, &count);
    if (code == OUTBOX_OK && count == 0)
      code = sql_fetch(c->store, FIND_RETURNING_SQL, &returning, 1, &found, "iiii", lease->first,
                       lease->last, c->now, future(c));
    if (code != OUTBOX_OK) return code;
    if (count == 0 && !returning) lease->kind = LAPSED;
  }
  return OUTBOX_OK;
}

/* --- The processor's leases as they will be -------------------------------------------------- */

static int add_mine(claim *c, int64_t first, int64_t last) {
  bool added = intervals_join(&c->mine, (interval){first, last, OWN});
  return added ? OUTBOX_OK : store_fail_nomem(c->store);
}

/*
** With a limit, the processor's own leases come first and are cut to what remains of it. Without
** one they are dropped, because the gaps will cover them.
*/
static int keep_own(claim *c) {
  for (size_t i = 0; i < c->leases.count; i++) {
    interval *lease = &c->leases.items[i];
    if (lease->kind != OWN) continue;
    int64_t count = 0;
    if (c->limited && c->remaining > 0) {
      int code = measure(c->store, lease->first, lease->last, c->remaining, &lease->last, &count);
      if (code != OUTBOX_OK) return code;
    }
    if (count == 0) lease->kind = LAPSED;
    c->remaining -= count;
  }
  return OUTBOX_OK;
}

/* Claims the ready entries from first to last, as far as the limit allows. */
static int take_gap(claim *c, int64_t first, int64_t last) {
  int64_t end, count;
  if (first > last || (c->limited && c->remaining <= 0)) return OUTBOX_OK;
  int code = measure(c->store, first, last, c->limited ? c->remaining : 0, &end, &count);
  if (code == OUTBOX_OK && count > 0) code = add_mine(c, first, end);
  c->remaining -= count;
  return code;
}

/* Claims the gaps between all leases; joins them with the own leases that are kept. */
static int fill_gaps(claim *c) {
  int64_t from;
  bool found;
  int code = sql_fetch(c->store, FIRST_READY_SQL, &from, 1, &found, "");
  if (code != OUTBOX_OK || !found) return code;
  for (size_t i = 0; i < c->leases.count; i++) {
    const interval *lease = &c->leases.items[i];
    if (lease->kind == LAPSED) continue;
    if (from < lease->first) code = take_gap(c, from, lease->first - 1);
    if (code == OUTBOX_OK && lease->kind == OWN) code = add_mine(c, lease->first, lease->last);
    if (code != OUTBOX_OK || lease->last == INT64_MAX) return code;
    if (from <= lease->last) from = lease->last + 1;
  }
  return take_gap(c, from, INT64_MAX);
}

static int save_leases(claim *c) {
  int code = OUTBOX_OK;
  for (size_t i = 0; i < c->leases.count && code == OUTBOX_OK; i++)
    if (c->leases.items[i].kind != OTHERS)
      code = sql_process(c->store, DELETE_LEASE_SQL, "i", c->leases.items[i].first);
  for (size_t i = 0; i < c->mine.count && code == OUTBOX_OK; i++)
    code = sql_process(c->store, INSERT_LEASE_SQL, "iitii", c->mine.items[i].first,
                       c->mine.items[i].last, c->processor_id, c->deadline, c->now);
  return code;
}

/* --- The claim ------------------------------------------------------------------------------- */

/* Charges entries that a crash left in hand, and brings back delayed entries that are due. */
static int prepare(claim *c) {
  int code = c->in_hand ? for_each_lease(c, charge) : OUTBOX_OK;
  return code == OUTBOX_OK
             ? due_restore(c->store, c->now, c->ahead ? future(c) : INT64_MAX, &c->restored)
             : code;
}

/* Claims all entries that no other processor holds; with a limit, at most that many. */
static int claim_share(claim *c) {
  int code = prepare(c);
  if (code == OUTBOX_OK) code = sweep(c);
  if (code == OUTBOX_OK) code = keep_own(c);
  if (code == OUTBOX_OK) code = fill_gaps(c);
  return code == OUTBOX_OK ? save_leases(c) : code;
}

/* Claims everything, future entries too. Changes nothing while another holds a live lease. */
static int claim_all(claim *c, bool *refused) {
  int64_t first;
  bool found;
  int code = sweep(c);
  *refused = any_of_others(c);
  if (code != OUTBOX_OK || *refused) return code;
  code = prepare(c);
  for (size_t i = 0; i < c->leases.count; i++)
    c->leases.items[i].kind = LAPSED;
  if (code == OUTBOX_OK) code = sql_fetch(c->store, FIRST_READY_SQL, &first, 1, &found, "");
  /* From 1, because a retry may come back to a place below the first. */
  if (code == OUTBOX_OK && found) code = add_mine(c, first < 1 ? first : 1, INT64_MAX);
  return code == OUTBOX_OK ? save_leases(c) : code;
}

/*
** Looks without a lock, because idle and standby processors come here at every commit of others.
** The clock may be behind what it sees: it decides only whether to look again inside the lock.
** *idle: there is nothing to claim now, and *claimed is complete.
*/
static int look_first(claim *c, bool exclusive, bool *idle, outbox_claimed *claimed) {
  int64_t values[2] = {0, 0}; /* whether there is work; whether a retry was delayed in the future */
  bool found;
  int code = doorbell_see(c->store);
  if (code == OUTBOX_OK)
    code = sql_fetch(c->store, FIND_WORK_SQL, values, 2, &found, "ii", c->now, future(c));
  c->ahead = values[1] != 0;
  bool work = values[0] != 0 || c->ahead;
  if (code == OUTBOX_OK && exclusive && work) code = for_each_lease(c, find_exclusive);
  if (code != OUTBOX_OK) return code;
  claimed->refused = c->lapses_at != 0;
  claimed->again_at = c->lapses_at;
  *idle = !work || claimed->refused;
  c->lapses_at = 0;
  return work ? OUTBOX_OK
              : sql_fetch(c->store, FIND_DUE_SQL, &claimed->again_at, 1, &found, "i", c->now);
}

int outbox_claim_entries(outbox_store *store, outbox_bytes processor_id, int64_t deadline,
                         int64_t limit, bool exclusive, outbox_claimed *claimed) {
  claim c = {.store = store,
             .processor_id = processor_id,
             .deadline = deadline,
             .limited = limit > 0,
             .remaining = limit,
             .leases.reallocate = reallocate,
             .mine.reallocate = reallocate,
             .restored.from = INT64_MAX};
  bool idle = false, refused = false, found;
  int64_t due_at = 0;
  *claimed = (outbox_claimed){.restored_from = INT64_MAX};
  int code = transaction_enter(store);
  if (code == OUTBOX_OK && c.limited && exclusive)
    code = store_fail(store, OUTBOX_MISUSE, "a claim cannot be exclusive and have a limit");
  if (code == OUTBOX_OK) code = store_now(store, &c.now);
  if (code == OUTBOX_OK) code = look_first(&c, exclusive, &idle, claimed);
  if (code != OUTBOX_OK || idle) return code;

  code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  /* In a transaction that has no lock yet, look_first has fixed what can be seen. */
  code = store_now_inside(store, &c.now);
  if (code == OUTBOX_OK) code = for_each_lease(&c, load_lease);
  if (code == OUTBOX_OK) code = exclusive ? claim_all(&c, &refused) : claim_share(&c);
  if (code == OUTBOX_OK) code = sql_fetch(store, FIND_DUE_SQL, &due_at, 1, &found, "i", c.now);
  code = transaction_end(store, code);
  if (code == OUTBOX_OK)
    *claimed = (outbox_claimed){.any = c.mine.count > 0,
                                .refused = refused,
                                .restored_from = c.restored.from,
                                .again_at = c.restored.more ? c.now : earlier(due_at, c.lapses_at)};
  sqlite3_free(c.leases.items);
  sqlite3_free(c.mine.items);
  return code;
}

int outbox_renew_claim(outbox_store *store, outbox_bytes processor_id, int64_t deadline,
                       bool *renewed) {
  int64_t now;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code == OUTBOX_OK)
    code = sql_process(store, RENEW_LEASES_SQL, "tii", processor_id, deadline, now);
  if (code == OUTBOX_OK) *renewed = sqlite3_changes(store->db) > 0;
  return code;
}

int outbox_release_claim(outbox_store *store, outbox_bytes processor_id) {
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = sql_process(store, RELEASE_LEASES_SQL, "t", processor_id);
  return code;
}

/* --- Reading the leases ---------------------------------------------------------------------- */

int outbox_leases(outbox_store *store) {
  int code = transaction_enter(store);
  if (code != OUTBOX_OK) return code;
  return sql_query(store, SELECT_LEASES_SQL, &store->reading, "");
}

int outbox_next_lease(outbox_store *store, outbox_lease *lease) {
  int code = reading_next(store);
  if (code != OUTBOX_ROW) return code;
  read_lease(store->reading, lease);
  return OUTBOX_ROW;
}

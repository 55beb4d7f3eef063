/*
** Claiming by hand. A claim is a set of intervals of seq, of all namespaces and keys. A processor
** may claim the gaps between the live intervals of others:
**
**     entries       1 2 3 4 . 6 7 8 9 . . 12 13     . is gone
**     claims        [--A--]   [-B-]                 A is alive, B has lapsed
**     C claims                [-------------]       from 6 to 13
**     C, limit 3              [---]                 6, 7 and 8
**
** While a lane holds classes there is no gap, because it may hand out any entry.
*/
#include <stdlib.h>

#include "../columns.h"
#include "../interval.h"
#include "lease.h"

#define MOST_DUE 10000 /* delayed entries that are looked at inside the lock */

/* Read without a lock, because an idle processor must neither write nor keep a writer waiting. */
static const char FIND_WORK_SQL[] = "SELECT EXISTS (SELECT 1 FROM " READY ")"
                                    " OR EXISTS (SELECT 1 FROM @delayed WHERE due_at <= ?1)";

static const char INSERT_INTERVAL_SQL[] =
    "INSERT INTO @claims (processor_id, namespaces, classes, first_seq, last_seq, deadline,"
    " claimed_at) VALUES (?1, '', -1, ?2, ?3, ?4, ?5)";

/* The first statement leaves the index alone. */
#define SET_END "UPDATE @claims SET deadline = ?3, claimed_at = ?4, held = NULL, last_seq = ?2"
static const char MOVE_END_SQL[] = SET_END " WHERE lease = ?1";
static const char MOVE_INTERVAL_SQL[] = SET_END ", first_seq = ?5 WHERE lease = ?1";

/* The ends of what lies from ?1 to ?2, and whether any of it is ready. No row: nothing does. */
#define FROM_READY "SELECT * FROM (SELECT seq, 1 FROM " READY " WHERE seq BETWEEN ?1 AND ?2"
#define FROM_RETRIES                                                                               \
  "SELECT * FROM (SELECT position, 0 FROM @delayed WHERE position BETWEEN ?1 AND ?2"
static const char FIND_ENDS_SQL[] =
    "WITH ends (place, ready) AS (" FROM_READY " ORDER BY seq LIMIT 1)"
    " UNION ALL " FROM_READY " ORDER BY seq DESC LIMIT 1)"
    " UNION ALL " FROM_RETRIES " ORDER BY position LIMIT 1)"
    " UNION ALL " FROM_RETRIES " ORDER BY position DESC LIMIT 1)),"
    " span (low, high, ready) AS (SELECT min(place), max(place), max(ready) FROM ends)"
    " SELECT low, high, ready FROM span WHERE low IS NOT NULL";

/* The same where nothing is delayed. */
static const char FIND_READY_ENDS_SQL[] =
    "SELECT low, high, 1 FROM (SELECT"
    " (SELECT seq FROM " READY " WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq LIMIT 1) AS low,"
    " (SELECT seq FROM " READY " WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq DESC LIMIT 1) AS high)"
    " WHERE low IS NOT NULL";

static const char SELECT_READY_SQL[] =
    "SELECT seq FROM " READY " WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq LIMIT 0 + ?3";

static const char SELECT_DUE_SQL[] =
    "SELECT position FROM (SELECT position FROM @delayed WHERE due_at <= ?1 ORDER BY due_at"
    " LIMIT 0 + ?2) WHERE position IS NOT NULL";

/*
** Whether any entry from ?1 to ?3 can be read. Looks at no more ready ones than ?4, and no more
** delayed ones than ?5.
*/
#define READY_IS_HELD IS_HELD("ready", "ready.seq", "?1")
#define RETRY_IS_HELD IS_HELD("retries", "retries.position", "?1")
static const char FIND_READABLE_SQL[] =
    "SELECT EXISTS (SELECT 1 FROM (SELECT seq, namespace, key FROM " READY
    " WHERE seq BETWEEN ?1 AND ?3 ORDER BY seq LIMIT 0 + ?4) AS ready WHERE NOT " READY_IS_HELD ")"
    " OR EXISTS (SELECT 1 FROM (SELECT position, namespace, key, due_at FROM @delayed"
    " WHERE position BETWEEN ?1 AND ?3 ORDER BY position LIMIT 0 + ?5) AS retries"
    " WHERE retries.due_at <= ?2 AND NOT " RETRY_IS_HELD ")";

/* --- A claim in the making ------------------------------------------------------------------- */

enum kind { OTHERS, OWN, DROPPED };

typedef struct claim {
  outbox_store *store;
  outbox_bytes processor_id;
  int64_t now, deadline;
  bool limited;
  int64_t remaining; /* how many entries may still be claimed, if it is limited */
  bool inside;       /* the write lock; there, what has lapsed is removed */
  intervals live;    /* the intervals as they are, but those that have lapsed */
  intervals mine;    /* the processor's as they will be */
  int64_t *due;      /* the places of retries that are due, ascending; NULL: not read yet */
  size_t due_count;
  bool own, lapsed;  /* there are such claims */
  bool shut;         /* a lane holds classes: there is no gap */
  bool delayed;      /* some entry is delayed */
  bool ahead, more;  /* a retry was delayed in the future; there is more to promote */
  int64_t lapses_at; /* when the first of the others' claims lapses; 0: there is none */
  int64_t due_at;
} claim;

static void *reallocate(void *items, uint64_t size) {
  return sqlite3_realloc64(items, size);
}

static int add(claim *c, intervals *list, interval item) {
  return intervals_append(list, item) ? OUTBOX_OK : store_fail_nomem(c->store);
}

/* --- The claims as they are ------------------------------------------------------------------ */

static int note_lease(void *context, const outbox_lease *lease) {
  claim *c = context;
  bool lane = lease_is_lane(lease),
       own = !lane && bytes_equal(lease->processor_id, c->processor_id);
  interval item = {lease->first_seq, lease->last_seq, own ? OWN : OTHERS, lease->lease};
  if (own) {
    c->own = true;
    /* What is in hand still was cut off. */
    int code = c->inside ? lease_charge(c->store, lease, c->now) : OUTBOX_OK;
    return code == OUTBOX_OK ? add(c, &c->live, item) : code;
  }
  if (lease_has_lapsed(c->store, lease, c->now)) {
    c->lapsed = true;
    return c->inside ? lease_reap(c->store, lease, c->now) : OUTBOX_OK;
  }
  if (lease->classes == 0) return OUTBOX_OK; /* a lane that stands by */
  c->lapses_at = due_earlier(c->lapses_at, lease_lapses_at(lease));
  c->shut |= lane;
  return lane ? OUTBOX_OK : add(c, &c->live, item);
}

static int load_leases(claim *c) {
  c->live.count = 0;
  c->own = c->lapsed = c->shut = false;
  c->lapses_at = 0;
  return lease_each(c->store, note_lease, c);
}

/* --- What lies in an interval ---------------------------------------------------------------- */

static int compare(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

/* Reads the places of the retries that are due. */
static int load_due(claim *c) {
  sqlite3_stmt *row;
  if (c->due != NULL || !c->delayed) return OUTBOX_OK;
  c->due = sqlite3_malloc64(MOST_DUE * sizeof *c->due);
  if (c->due == NULL) return store_fail_nomem(c->store);
  int code = sql_query(c->store, SELECT_DUE_SQL, &row, "ii", c->now, (int64_t)MOST_DUE);
  if (code != OUTBOX_OK) return code;
  while ((code = sql_step(c->store, row)) == OUTBOX_ROW)
    c->due[c->due_count++] = sqlite3_column_int64(row, 0);
  if (c->due_count > 0) qsort(c->due, c->due_count, sizeof *c->due, compare);
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

/* The index of the first due retry whose place is not below. */
static size_t first_due(const claim *c, int64_t place) {
  size_t low = 0, high = c->due_count;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (c->due[middle] < place)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* Narrows a part of seq to all that lies in it. *count: 1; 0 where none of it can be read. */
static int find_ends(claim *c, interval *part, int64_t *count) {
  int64_t ends[3];
  bool found;
  int code = sql_fetch(c->store, c->delayed ? FIND_ENDS_SQL : FIND_READY_ENDS_SQL, ends, 3, &found,
                       "ii", part->first, part->last);
  *count = code == OUTBOX_OK && found && ends[2];
  if (code != OUTBOX_OK || !found) return code;
  part->first = ends[0];
  part->last = ends[1];
  if (*count > 0) return OUTBOX_OK;
  code = load_due(c);
  size_t next = first_due(c, part->first);
  *count = code == OUTBOX_OK && next < c->due_count && c->due[next] <= part->last;
  return code;
}

/* Counts ready entries and due retries, the oldest first, and cuts the part to what may remain. */
static int count_places(claim *c, interval *part, int64_t *count) {
  sqlite3_stmt *row;
  *count = 0;
  int code = load_due(c);
  size_t next = first_due(c, part->first);
  int64_t end = part->last;
  if (code == OUTBOX_OK)
    code =
        sql_query(c->store, SELECT_READY_SQL, &row, "iii", part->first, part->last, c->remaining);
  if (code == OUTBOX_OK) code = sql_step(c->store, row);
  while ((code == OUTBOX_ROW || code == OUTBOX_DONE) && *count < c->remaining) {
    bool due = next < c->due_count && c->due[next] <= part->last, ready = code == OUTBOX_ROW;
    int64_t seq = ready ? sqlite3_column_int64(row, 0) : 0;
    if (!due && !ready) break;
    due = due && (!ready || c->due[next] < seq);
    end = due ? c->due[next++] : seq;
    ++*count;
    if (!due) code = sql_step(c->store, row);
  }
  if (code == OUTBOX_ROW) sql_reset(c->store, row);
  part->last = end;
  return code == OUTBOX_ROW || code == OUTBOX_DONE ? OUTBOX_OK : code;
}

/* Cuts a part of seq to what of it is claimed. *count: how much that is; 0: nothing. */
static int measure(claim *c, interval *part, int64_t *count) {
  int64_t some;
  interval all = *part;
  *count = 0;
  if (part->first > part->last || (c->limited && c->remaining <= 0)) return OUTBOX_OK;
  int code = find_ends(c, &all, &some);
  if (code != OUTBOX_OK || some == 0) return code;
  *part = all;
  *count = some;
  if (!c->limited) return OUTBOX_OK;
  code = count_places(c, part, count);
  c->remaining -= *count;
  return code;
}

/* --- The processor's intervals as they will be ----------------------------------------------- */

/* Joins it to the one before where nothing lies between. From end to end it would be a lane. */
static int add_mine(claim *c, interval item) {
  bool added = intervals_join(&c->mine, item);
  interval *last = added ? &c->mine.items[c->mine.count - 1] : NULL;
  if (last != NULL && last->first == INT64_MIN && last->last == INT64_MAX) {
    last->last--;
    added = intervals_append(&c->mine, (interval){INT64_MAX, INT64_MAX, OWN, 0});
  }
  return added ? OUTBOX_OK : store_fail_nomem(c->store);
}

static void drop_own(claim *c) {
  for (size_t i = 0; i < c->live.count; i++)
    if (c->live.items[i].kind == OWN) c->live.items[i].kind = DROPPED;
}

/* Whether an entry of the own intervals that are kept can be read. */
static int find_readable(claim *c, int64_t limit, int64_t *readable) {
  int code = OUTBOX_OK;
  bool found;
  *readable = 0;
  for (size_t i = 0; i < c->live.count && code == OUTBOX_OK && !*readable; i++) {
    const interval *own = &c->live.items[i];
    if (own->kind != OWN) continue;
    code = sql_fetch(c->store, FIND_READABLE_SQL, readable, 1, &found, "iiiii", own->first, c->now,
                     own->last, limit, (int64_t)MOST_DUE);
  }
  return code;
}

/*
** With a limit, the processor's own intervals come first and are cut to what remains of it. But
** where all of it waits for retries that lie elsewhere they are given back: those come first then.
** Without a limit they are dropped, because the gaps will cover them.
*/
static int keep_own(claim *c) {
  int64_t limit = c->remaining, count, readable;
  int code = OUTBOX_OK;
  if (!c->limited && !c->shut) {
    drop_own(c);
    return OUTBOX_OK;
  }
  for (size_t i = 0; i < c->live.count && code == OUTBOX_OK; i++) {
    interval *own = &c->live.items[i];
    if (own->kind != OWN) continue;
    interval part = *own;
    code = measure(c, &part, &count);
    own->last = part.last;
    if (count == 0) own->kind = DROPPED;
  }
  if (code != OUTBOX_OK || !c->limited || c->remaining > 0) return code;
  code = find_readable(c, limit, &readable);
  if (code != OUTBOX_OK || readable) return code;
  drop_own(c);
  c->remaining = limit;
  return OUTBOX_OK;
}

static int take_gap(claim *c, int64_t first, int64_t last) {
  interval gap = {first, last, OWN, 0};
  int64_t count;
  if (c->shut) return OUTBOX_OK;
  int code = measure(c, &gap, &count);
  if (code != OUTBOX_OK || count == 0) return code;
  const interval *before = c->mine.count > 0 ? &c->mine.items[c->mine.count - 1] : NULL;
  if (before != NULL && before->last < first && before->last + 1 == first) gap.first = first;
  return add_mine(c, gap);
}

/* Claims the gaps between the live intervals; joins them with the own ones that are kept. */
static int fill_gaps(claim *c) {
  int64_t from = INT64_MIN;
  for (size_t i = 0; i < c->live.count; i++) {
    interval lease = c->live.items[i];
    int code = OUTBOX_OK;
    if (lease.kind == DROPPED) continue;
    if (from < lease.first) code = take_gap(c, from, lease.first - 1);
    if (code == OUTBOX_OK && lease.kind == OWN) code = add_mine(c, lease);
    if (code != OUTBOX_OK || lease.last == INT64_MAX) return code;
    if (from <= lease.last) from = lease.last + 1;
  }
  return take_gap(c, from, INT64_MAX);
}

static int insert(claim *c, const interval *item) {
  return sql_process(c->store, INSERT_INTERVAL_SQL, "tiiii", c->processor_id, item->first,
                     item->last, c->deadline, c->now);
}

static int update(claim *c, const interval *before, const interval *item) {
  if (before->first == item->first)
    return sql_process(c->store, MOVE_END_SQL, "iiii", before->id, item->last, c->deadline, c->now);
  return sql_process(c->store, MOVE_INTERVAL_SQL, "iiiii", before->id, item->last, c->deadline,
                     c->now, item->first);
}

/* Writes the intervals into the rows that the processor has, and removes those that are left. */
static int save(claim *c) {
  size_t saved = 0;
  int code = OUTBOX_OK;
  for (size_t i = 0; i < c->live.count && code == OUTBOX_OK; i++) {
    const interval *before = &c->live.items[i];
    if (before->kind == OTHERS) continue;
    code = saved < c->mine.count ? update(c, before, &c->mine.items[saved++])
                                 : lease_remove(c->store, before->id);
  }
  while (saved < c->mine.count && code == OUTBOX_OK)
    code = insert(c, &c->mine.items[saved++]);
  return code;
}

/* --- The claim ------------------------------------------------------------------------------- */

/*
** Looks without a lock, because idle and standby processors come here at every commit of others.
** The clock may be behind what it sees: it decides only whether to look again inside the lock.
** *idle: there is nothing to claim now.
*/
static int look_first(claim *c, bool *idle, bool *work) {
  int64_t any = 0;
  bool found;
  int code = doorbell_see(c->store);
  if (code == OUTBOX_OK) code = load_leases(c);
  if (code != OUTBOX_OK || c->own || c->lapsed) return code;
  code = sql_fetch(c->store, FIND_WORK_SQL, &any, 1, &found, "i", c->now);
  *work = any != 0;
  if (code != OUTBOX_OK || (*work && !c->shut)) return code;
  code = due_look(c->store, c->now, &c->due_at, &c->ahead);
  *idle = c->shut || !c->ahead;
  return code;
}

/* Sees to what is delayed. */
static int follow_the_clock(claim *c) {
  c->due_at = 0;
  int code = due_any(c->store, &c->delayed);
  if (code != OUTBOX_OK || !c->delayed) return code;
  code = due_look(c->store, c->now, &c->due_at, &c->ahead);
  if (code == OUTBOX_OK && !c->shut) code = due_promote_all(c->store, c->now, &c->more);
  return code == OUTBOX_OK && c->ahead ? due_correct(c->store, c->now) : code;
}

static int claim_inside(claim *c) {
  c->inside = true;
  /* In a transaction that has no lock yet, look_first has fixed what can be seen. */
  int code = store_now_inside(c->store, &c->now);
  if (code == OUTBOX_OK) code = load_leases(c);
  if (code == OUTBOX_OK) code = follow_the_clock(c);
  if (code == OUTBOX_OK) code = keep_own(c);
  if (code == OUTBOX_OK) code = fill_gaps(c);
  return code == OUTBOX_OK ? save(c) : code;
}

int outbox_claim_entries(outbox_store *store, outbox_bytes processor_id, int64_t deadline,
                         int64_t limit, outbox_claimed *claimed) {
  claim c = {.store = store,
             .processor_id = processor_id,
             .deadline = deadline,
             .limited = limit > 0,
             .remaining = limit,
             .live.reallocate = reallocate,
             .mine.reallocate = reallocate};
  bool idle = false, work = false;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = store_now(store, &c.now);
  if (code == OUTBOX_OK) code = look_first(&c, &idle, &work);
  if (code == OUTBOX_OK && !idle) code = outbox_begin(store);
  if (code == OUTBOX_OK && !idle) code = transaction_end(store, claim_inside(&c));
  *claimed = (outbox_claimed){.any = c.mine.count > 0,
                              .again_at = due_earlier(c.due_at, idle && !work ? 0 : c.lapses_at)};
  if (c.more) claimed->again_at = c.now;
  sqlite3_free(c.live.items);
  sqlite3_free(c.mine.items);
  sqlite3_free(c.due);
  return code;
}

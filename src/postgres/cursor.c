/*
** The cursor: where a reading of a partition begins.
**
** A place is final once no entry up to it can appear any more. A publisher has the number of its
** transaction before it draws a seq. So whoever had drawn one up to `seq`, when our transaction got
** its number `xid`, is older than that. As soon as no older transaction is active, those seqs are
** final. (The snapshot's xmax would not do: it is the number after the last that has *ended*, and
** younger ones may be active.)
**
** Without it each reading would walk past all that was deleted since the last vacuum. A reading
** must not simply begin where the last one has ended: what is committed late behind that place is
** only found by looking there, and until it is, all that follows in its key must wait.
**
** A transaction that writes and stays open would keep everything from becoming final. So it is left
** out once it has kept us waiting for PATIENCE: it is an open writer, which may have published
** above its `floor`, what was final then. A reading asks, in its own snapshot, which open writers
** have ended, and begins at the floors of those. While one is active nobody sees what it has
** published, so nothing of the same key can come before that.
*/
#include <string.h>

#include "lane.h"

#define PATIENCE 50000 /* microseconds */

/* The transactions that are active, but for those of $1; first, or in their place, the next one. */
static const char ACTIVE_SQL[] =
    "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xid UNION ALL"
    " (SELECT x::text::bigint FROM pg_snapshot_xip(pg_current_snapshot()) AS x"
    " WHERE x::text::bigint <> ALL ($1) ORDER BY 1 LIMIT 64)";

void cursor_forget(lane *lane) {
  lane->final = INT64_MIN;
  lane->mark_count = lane->writer_count = 0;
}

static bool is_stuck(const lane *lane) {
  return lane->mark_count > 0 && clock_monotonic() - lane->marks[0].at > PATIENCE;
}

bool cursor_send(outbox_store *store, array *xids, array *floors) {
  const lane *lane = store->lane;
  if (lane->writer_count == 0 && !is_stuck(lane)) return false;
  for (int i = 0; i < lane->writer_count; i++) {
    array_add_int(xids, lane->writers[i].xid);
    array_add_int(floors, lane->writers[i].floor);
  }
  sql_add(store, ACTIVE_SQL, "I", xids);
  return true;
}

static void set_final(lane *lane, int64_t xmin) {
  int done = 0;
  while (done < lane->mark_count && lane->marks[done].xid <= xmin)
    lane->final = lane->marks[done++].seq;
  lane->mark_count -= done;
  memmove(lane->marks, lane->marks + done, (size_t)lane->mark_count * sizeof *lane->marks);
}

/* Those that have kept the first mark from becoming final. */
static void add_writers(lane *lane, const PGresult *active) {
  for (int i = 1; i < PQntuples(active) && lane->writer_count < WRITERS; i++)
    if (sql_int(active, i, 0) < lane->marks[0].xid)
      lane->writers[lane->writer_count++] = (writer){sql_int(active, i, 0), lane->final};
}

void cursor_mark(lane *lane, int64_t seq, int64_t xid, int64_t xmin, const PGresult *active) {
  if (active != NULL) xmin = sql_int(active, PQntuples(active) > 1, 0);
  set_final(lane, xmin);
  if (active != NULL && is_stuck(lane)) add_writers(lane, active);
  if (xid != 0 && lane->mark_count < MARKS)
    lane->marks[lane->mark_count++] = (mark){seq, xid, clock_monotonic()};
}

int64_t cursor_end_writer(lane *lane, int64_t xid) {
  int i = 0;
  while (i < lane->writer_count && lane->writers[i].xid != xid)
    i++;
  if (i == lane->writer_count) return INT64_MAX;
  int64_t floor = lane->writers[i].floor;
  lane->writers[i] = lane->writers[--lane->writer_count];
  return floor;
}

void cursor_set(lane *lane, int partition, int64_t before, int64_t place) {
  int64_t low = lines_lower(place, lane->final);
  lane->last[partition] = place;
  if (before <= lane->low[partition] && low > lane->low[partition]) lane->low[partition] = low;
}

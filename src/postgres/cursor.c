/*
** The cursor: where a reading of a partition begins.
**
** A place is final once no entry up to it can appear any more. A publisher has the number of its
** transaction before it draws a seq. So whoever had drawn one up to `seq`, when our transaction got
** its number `xid`, is older than that. As soon as no older transaction is active, those seqs are
** final. (The snapshot's xmax would not do: it is the number after the last that has *ended*, and
** younger ones may be active.)
**
** Without it each reading would walk past all that was deleted since the last vacuum. While a
** transaction that writes stays open nothing becomes final, and readings do that. They must not
** begin where the last one has ended: what is committed late behind that place is only found by
** looking there, and until it is, all that follows in its key must wait.
*/
#include <string.h>

#include "lane.h"

void cursor_forget(lane *lane) {
  lane->mark_count = 0;
}

void cursor_mark(lane *lane, int64_t seq, int64_t xid, int64_t xmin) {
  int done = 0;
  while (done < lane->mark_count && lane->marks[done].xid <= xmin)
    lane->final = lane->marks[done++].seq;
  lane->mark_count -= done;
  memmove(lane->marks, lane->marks + done, (size_t)lane->mark_count * sizeof *lane->marks);
  if (xid != 0 && lane->mark_count < MARKS) lane->marks[lane->mark_count++] = (mark){seq, xid};
}

void cursor_set(lane *lane, int partition, int64_t before, int64_t place) {
  int64_t low = lines_lower(place, lane->final);
  lane->last[partition] = place;
  if (before <= lane->low[partition] && low > lane->low[partition]) lane->low[partition] = low;
}

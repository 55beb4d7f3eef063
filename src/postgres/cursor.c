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
** transaction that writes stays open nothing becomes final. Then readings begin where the last one
** has ended, and look back only from time to time. An entry that appears behind is handed out a
** little later; the order of its key is not at risk, because the lock of the class keeps that.
*/
#include <string.h>

#include "lane.h"

#define NEAR 2000          /* seqs: to look back so far costs next to nothing */
#define LEAST_PAUSE 50000  /* microseconds between two looks back */

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

int64_t cursor_start(const lane *lane, int partition, bool back) {
  return back ? lane->low[partition] : lane->last[partition];
}

bool cursor_looks_back(const lane *lane) {
  int64_t far = 0;
  for (int i = 0; i < PARTITIONS; i++)
    if (lane->low[i] != INT64_MIN && lane->last[i] - lane->low[i] > far)
      far = lane->last[i] - lane->low[i];
  return far <= NEAR || clock_monotonic() >= lane->look_back_at;
}

void cursor_looked(lane *lane, int64_t started) {
  int64_t now = clock_monotonic(), pause = 10 * (now - started);
  lane->look_back_at = now + (pause > LEAST_PAUSE ? pause : LEAST_PAUSE);
}

/* What has become final was seen only by a reading that looked back, and began after it had. */
void cursor_set(lane *lane, int partition, int64_t place, bool back) {
  lane->last[partition] = place;
  int64_t low = lines_lower(place, lane->final);
  if (back ? low > lane->low[partition] : place < lane->low[partition]) lane->low[partition] = low;
}

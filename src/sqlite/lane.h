/*
** The lane of a processor: what it serves, what it holds, how far it has read, and what it has left
** behind. Memory only, but for its row in the table of claims.
**
** Three walks look for entries, each with a position of its own: `main` through the ready entries,
** forward only; `lap` through them again, from the lowest place left behind up to main; and `due`
** through the delayed ones. See walk.c.
*/
#ifndef OUTBOX_LANE_H
#define OUTBOX_LANE_H

#include "../box.h"
#include "../heads.h"
#include "../lines.h"
#include "lease.h"

#pragma GCC visibility push(hidden)

/* An entry that is handed out, or is to be. */
typedef struct item {
  outbox_entry entry;   /* its seq is its place, also while it is delayed */
  uint64_t space, line; /* hashes, see ../box.h; a line of 0: it holds nobody back */
  int class;
  bool delayed;
  bool stays; /* in hand, but it is to be handed out again */
} item;

typedef struct block block;

typedef struct items {
  item *items;
  size_t count, room;
  int64_t bytes; /* of the entries */
  block *blocks; /* where these bytes are */
} items;

/* What the claims in the table say. */
typedef struct survey {
  int64_t lapses_at;    /* when the first of the others' lapses; 0: there is none */
  bool own;             /* this processor's is there */
  bool lapsed;          /* there is one that has lapsed */
  bool overlapped;      /* another set, or an interval, with a part of this one is alive */
  int members;          /* processors of the same set, alive, with this one */
  uint64_t mask, taken; /* its own classes; those of the other members */
} survey;

/* What the last one said, at the time `at`; and what tells whether it is still true. */
typedef struct seen {
  survey survey;
  int64_t at, changes; /* changes: of this connection; -1: nothing was seen */
  unsigned version;    /* of the database */
} seen;

#define SWEEPS 64
#define MANY 256 /* delayed entries that a reading remembers */

typedef struct lane {
  outbox_bytes processor_id, namespaces; /* in one allocation, with this */
  enum outbox_ordering ordering;
  int64_t duration;
  int64_t lease, deadline; /* its row; 0: there is none */
  uint64_t mask;           /* the classes that it holds */
  seen seen;
  int64_t floor[BOX_CLASSES]; /* the lowest place where something of a class may lie */
  int64_t main, lap;          /* read up to here; NEVER: no lap is on */
  int64_t due_at, due_seq;
  int64_t next_lap, lap_rows; /* not before this time; how many rows this one has looked at */
  int64_t busy_at;            /* when there was something to do last */
  int64_t checked_at;         /* when the heads of held lines were last looked for */
  int64_t swept_at;           /* when heads of parked namespaces were looked for last */
  int64_t sweep_rows;         /* how many rows may still be looked at for that */
  int64_t swept_from;         /* where the sweep that meets them began */
  uint64_t sweep;             /* its number, from 1 on */
  int64_t swept[SWEEPS];      /* how far the last ones came, by number */
  int64_t paused_at_version;  /* of the database, for which it knows what is paused */
  uint64_t pauses;            /* the sum of the hashes of these namespaces */
  bool main_has_turn, wants_lap, skipped;
  bool left_lap; /* a line that the lap was to serve has left it */
  bool ahead;    /* a retry was skipped because main has not come by its place */
  uint64_t random;
  lines lines;
  items hand;
  int64_t highest;               /* place in hand; INT64_MIN: nothing is */
  outbox_suspect suspects[MANY]; /* that the last reading has met */
  void *suspect_bytes[MANY];
  size_t suspect_count;
  int64_t scheduled[MANY]; /* the same for scheduled entries that are due: their seqs */
  size_t scheduled_count;
} lane;

/* --- share.c --------------------------------------------------------------------------------- */

/*
** Looks at the claims. With `reap`, inside the write lock, charges what was in hand of those that
** have lapsed, and removes them; and looks only where something may have changed since share_note,
** which notes after the commit what a survey has become of it.
*/
int share_survey(outbox_store *store, int64_t now, bool reap, survey *survey);
void share_note(outbox_store *store, int64_t now, const survey *survey);

/* The classes that the processor should hold, by a survey. */
uint64_t share_quota(const lane *lane, const survey *survey);

/* Writes the processor's row, with what it has in hand; with no classes and `drop`, removes it. */
int share_write(outbox_store *store, uint64_t mask, int64_t now, const items *hand, bool drop,
                int64_t *lease);

/* --- walk.c ---------------------------------------------------------------------------------- */

/*
** Reads what is wanted, without the write lock. `delayed`: some entry is. *more: it may have ended
** early.
*/
int walk_read(outbox_store *store, const outbox_want *want, uint64_t mask, int64_t now,
              bool delayed, items *found, bool *more);

/*
** Inside the write lock: drops what is not ours any more or, where others have committed since, has
** changed. *dropped becomes the lowest place of these; NEVER: there is none.
*/
int walk_verify(outbox_store *store, items *found, uint64_t mask, bool changed, int64_t *dropped);

/* --- pause.c --------------------------------------------------------------------------------- */

/* Reads which namespaces are paused. */
int pause_see(outbox_store *store);

/* --- verdict.c ------------------------------------------------------------------------------- */

/* Before anything is read: notes what these verdicts keep back. There must be room for lines. */
void verdict_block(lane *lane, const outbox_verdict *verdicts);

/*
** Writes the verdicts, inside the write lock. If the claim is lost, it deletes what was delivered
** and ignores the rest. `stays` is the place of a ready entry that is there, and stays; INT64_MIN:
** none is known.
*/
int verdict_settle(outbox_store *store, outbox_verdict *verdicts, size_t count, bool lost,
                   int64_t stays, int64_t now);

/* After the commit: what was kept back may go on. */
void verdict_unblock(lane *lane, const outbox_verdict *verdicts, size_t count);

/* --- lane.c ---------------------------------------------------------------------------------- */

bool lane_has(const lane *lane, int64_t place);   /* in hand */
bool lane_keeps(const lane *lane, uint64_t line); /* an entry in hand of this line stays */

/* Adds an entry from a row that has all columns. The place, namespace and key are in *known. */
int lane_add(outbox_store *store, items *list, sqlite3_stmt *row, const item *known);
void lane_empty(items *list);

/* Whether all are of one namespace, and none was tried before. */
bool lane_is_uniform(const items *list);

/* Whether two are of one line; also where that cannot be known. */
bool lane_repeats(const items *list);
uint64_t lane_random(lane *lane);

/* Goes back to the place `from`, or to the lowest left behind. Parked namespaces stay known. */
void lane_begin_anew(lane *lane, int64_t from);

/* Begins a new sweep after a place; how far the sweeps came for a namespace. See sweep.c. */
void lane_begin_sweep(lane *lane, int64_t at);
int64_t lane_swept(const lane *lane, const heads *heads);

/* Whether nothing of a namespace may be handed out, not even by name. */
bool lane_is_paused(const lane *lane, uint64_t space);

/* Whether something was left behind. A namespace that is paused, and empty, is nothing. */
bool lane_is_waiting(const lane *lane);

/* A namespace is handed out only where it is asked for. */
void lane_park(lane *lane, line *line);

/* What kept a line back is gone. */
void lane_release(lane *lane, line *line);

#pragma GCC visibility pop

#endif

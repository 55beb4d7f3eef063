/*
** The lane of a processor: what it serves, what it holds, how far it has read, and what it has left
** behind. Memory only, but for its row in the table of claims and what it has in hand.
**
** Each partition has two places. Up to `last` the processor has looked at all that there was. Up to
** `low`, which is not above it, nothing can appear any more: see cursor.c. A reading begins at
** `low`, or below. What is left behind is either a namespace, which has places of its own (space),
** or entries that a retry holds back: once that retry is gone, its partition is read again from
** there.
*/
#ifndef OUTBOX_PG_LANE_H
#define OUTBOX_PG_LANE_H

#include "../box.h"
#include "../heads.h"
#include "../lines.h"
#include "operations.h"

#pragma GCC visibility push(hidden)

/* An entry that is handed out. Its bytes are in the result that it was read from. */
typedef struct item {
  outbox_entry entry;
  uint64_t space, line; /* hashes, see ../box.h; a line of 0: it holds nobody back */
  int partition;
  bool delayed;
  int64_t tid; /* where its row lies, if it is ready */
} item;

typedef struct items {
  PGresult *result;
  item *items;
  size_t count;
  int64_t number;   /* of its row in the table of batches */
  unsigned session; /* the connection through which it was read */
} items;

/* A namespace of which entries are left behind. */
typedef struct space {
  char *name; /* `size` bytes */
  size_t size;
  uint64_t hash;
  bool parked, paused;      /* by the processor; by an operator */
  bool lagging;             /* neither any more: the lap is to serve it, until it meets main */
  bool joined;              /* it lags, and this lap serves it */
  uint64_t met;             /* partitions in which something of it was left behind: */
  int64_t from[PARTITIONS]; /* above these places */
  heads *heads;             /* as far as they are known, or NULL */
  int64_t at[PARTITIONS];   /* how far they were looked for */
  bool retries;             /* its retries have the next turn */
} space;

/* What the sequence had given before the transaction `xid` began, at a moment: see cursor.c. */
typedef struct mark {
  int64_t seq, xid, at;
} mark;

/* A transaction that stays open, and may have published above `floor`. */
typedef struct writer {
  int64_t xid, floor;
} writer;

#define MARKS 64
#define WRITERS 64
#define MOST_SUSPECTS 256

/* What the claims in the table say. */
typedef struct survey {
  int64_t lapses_at; /* when the first of the others' lapses; 0: there is none */
  bool own;          /* this processor's is there */
  bool overlapped;   /* another set, or a claim by hand, with a part of this one is alive */
  int members;       /* processors of the same set, alive, with this one */
  uint64_t mask, taken;
} survey;

typedef struct lane {
  outbox_bytes processor_id, namespaces; /* in one allocation, with this */
  array names;                           /* of the namespaces, or of those left out */
  bool except;
  enum outbox_ordering ordering;
  int64_t duration;
  int64_t lease, deadline, renewed_at; /* its row; 0: there is none */
  uint64_t mask;                       /* the partitions that it holds */
  survey survey;
  int64_t fingerprint; /* of the claims, when they were surveyed */
  unsigned session;    /* the connection for which the marks hold */
  bool uncertain;      /* nobody knows whether the last round trip was committed */
  bool forgotten;      /* the mask, with what was known of it: it is to be gained anew */
  bool changed;        /* the claims have, or there is something to promote */
  int64_t low[PARTITIONS], last[PARTITIONS];
  int64_t final; /* no entry up to this seq can appear any more, but of the open writers */
  mark marks[MARKS];
  writer writers[WRITERS];
  int mark_count, writer_count;
  int turn;     /* the partition that is read first */
  int64_t look; /* how many rows a careful reading looks at */
  int64_t cap;  /* how many entries of a partition any other takes */
  int64_t lap[PARTITIONS];
  bool has_lap, main_had_turn;
  space *spaces;
  size_t space_count;
  int64_t pauses;     /* what tells whether the pauses have changed */
  lines holders;      /* retries that may hold back others: `first` is the place, `next` the */
  bool holders_lost;  /* partition; there was no room for all of them */
  int64_t checked_at; /* when holders, and what is due, were looked for last */
  bool due;           /* retries that are due may be handed out: there is cause to look; */
  bool any_due;       /* and there are some; */
  bool had_due;       /* they had the last turn */
  bool ahead;         /* one is due to which main has not come yet */
  int64_t due_at;     /* when the next delayed entry falls due; 0: none */
  int64_t busy_at;    /* when there was something to do last */
  int64_t swept_at;   /* heads are not looked for before this moment */
  uint64_t random;
  items hand;
  PGresult *suspect_rows;
  outbox_suspect suspects[MOST_SUSPECTS];
  size_t suspect_count;
} lane;

/* --- lane.c ---------------------------------------------------------------------------------- */

/* Makes items of the rows of a result that have a place. Takes the result. */
int lane_read(outbox_store *store, PGresult *result, items *items);
void lane_empty(items *items);
bool lane_is_uniform(const items *items);
bool lane_repeats(const items *items);
uint64_t lane_random(lane *lane);

/* Works as realloc does; a size of 0 frees. For lines and heads. */
void *lane_reallocate(void *items, uint64_t size);

/* Reads these partitions from the beginning. */
void lane_begin_anew(lane *lane, uint64_t partitions);

/* Reads a partition again, from after a place. */
void lane_rewind(lane *lane, int partition, int64_t place);

/* The same for an entry of a namespace, which may be left behind. */
void lane_rewind_item(lane *lane, const item *item);

/* The namespace, or NULL. lane_add_space makes it; NULL: there is no memory. */
space *lane_find_space(const lane *lane, uint64_t hash);
space *lane_add_space(lane *lane, outbox_bytes name);
void lane_drop_space(lane *lane, space *space);

/* It is neither parked nor paused any more. */
void lane_free_space(lane *lane, space *space);

/* Something of it is left behind in a partition, at a place, and perhaps before the others. */
void lane_leave(space *space, int partition, int64_t place);

/* Above which place something of it may lie. */
int64_t lane_from(const lane *lane, const space *space, int partition);

/* Whether something is left behind. */
bool lane_is_waiting(const lane *lane);

/* Retries that may hold back others. */
void lane_add_holder(lane *lane, int64_t place, int partition);
void lane_drop_holder(lane *lane, int64_t place);

/* --- cursor.c -------------------------------------------------------------------------------- */

/*
** Asks which transactions are active, if anything depends on it. The arrays, which must live until
** the end of the round trip, get the open writers.
*/
bool cursor_send(outbox_store *store, array *xids, array *floors);

/*
** Notes what the sequence had given when the transaction `xid` began, and who is still active: from
** the transaction `xmin` on, or, where that was asked, the `active` ones.
*/
void cursor_mark(lane *lane, int64_t seq, int64_t xid, int64_t xmin, const PGresult *active);
void cursor_forget(lane *lane);

/* An open writer has ended. Returns its floor. */
int64_t cursor_end_writer(lane *lane, int64_t xid);

/*
** A partition was looked through from after the place `before` up to `place`. What has become final
** was seen if that began at `low`.
*/
void cursor_set(lane *lane, int partition, int64_t before, int64_t place);

/* --- share.c --------------------------------------------------------------------------------- */

/*
** Looks at the claims, in a transaction that locks them: removes those that have lapsed, and writes
** the processor's share; with `drop`, removes it. Promotes what is scheduled and due. *lost:
** another has taken over. *more: there may be more to promote.
*/
int share_claim(outbox_store *store, bool join, bool drop, bool *lost, bool *more);

/* Whether the processor should have another share, or may reap something. */
bool share_has_changed(const lane *lane, int64_t fingerprint, int64_t now);

/* --- choose.c, read.c, follow.c -------------------------------------------------------------- */

/* What a round trip reads. */
enum what { READ_NOTHING, READ_MAIN, READ_LAP, READ_DUE, READ_SPACE, READ_PLACE };

typedef struct reading {
  enum what what;
  const outbox_want *want;
  uint64_t space;       /* SPACE; DUE: the hash of the namespace that is meant alone; or 0 */
  int64_t place;        /* PLACE */
  int64_t now, started; /* the time; a moment, by the monotonic clock */
  int64_t limit, cap;   /* entries in all; of a partition, or rows that are looked at */
  bool other;           /* if nothing is found, read again: there is another kind */
  bool careful;
  bool oldest; /* of all partitions, in the order of seq */
  array partitions, lows, bounds, names, left, xids, floors;
  int order[PARTITIONS], count; /* the partitions as they are read */
  int64_t before[PARTITIONS];   /* after which place each is read */
} reading;

/* The columns of a result after those of an entry: partition, delayed, number, kind, seq, tid. */
enum { KIND_ENTRY, KIND_END, KIND_LEFT, KIND_SUSPECT, KIND_REACHED, KIND_ENDED };

/* Chooses what to read. *more: there may be something else. */
int read_choose(outbox_store *store, reading *reading, bool *more);

/*
** Adds the statement to the round trip, and reads its result, which is the last one. `last_value`:
** what the sequence had given before.
*/
void read_send(outbox_store *store, reading *reading);
int read_receive(outbox_store *store, reading *reading, int64_t last_value, items *found,
                 bool *more);
void read_free(reading *reading);

/* The namespaces that the lap has served are main's again. */
void read_end_lap(lane *lane);

/* --- sweep.c, pause.c ------------------------------------------------------------------------ */

/* A known head of a namespace, to be read by its place; NEVER: none is known. *more: look again. */
int sweep_head(outbox_store *store, space *space, const outbox_want *want, int64_t now,
               int64_t *place, bool *more);

/* Reads which namespaces are paused. `before`: where the reading began that has met none. */
int pause_see(outbox_store *store, const int64_t *before, int64_t fingerprint);

#pragma GCC visibility pop

#endif

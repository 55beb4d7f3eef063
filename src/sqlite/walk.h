/*
** A reading under way, and what its walks have in common.
*/
#ifndef OUTBOX_WALK_H
#define OUTBOX_WALK_H

#include "lane.h"

#pragma GCC visibility push(hidden)

#define SECOND 1000000
#define LOOK 10000 /* rows at a time: 2 ms */
#define ROW_NS 200 /* what a row costs a walk */

typedef struct reading {
  outbox_store *store;
  lane *lane;
  const outbox_want *want;
  uint64_t mask;
  int64_t now;
  bool retries; /* some entry waits for a retry */
  bool full;    /* the next entry would not fit */
  items *found;
} reading;

/* The ready entries above ?1, up to ?2, at most ?3: their seq, NULL, namespace and key. */
extern const char take_walk_sql[];

/* The entry at a place, ready or delayed, with all columns. */
extern const char take_ready_sql[], take_delayed_sql[];

/*
** Reads from a row the place of an entry, its namespace and its key, which are the columns 0, 2 and
** 3. Returns whether the processor serves it.
*/
bool take_is_ours(const reading *reading, sqlite3_stmt *row, item *item);

/* Whether an entry is held back by a retry. *head: the place of that. */
int take_is_held(const reading *reading, const item *item, bool *held, int64_t *head);

/* The same, whether or not any retry was seen; of an entry that has a line. */
int take_find_holder(outbox_store *store, const outbox_entry *entry, bool *held, int64_t *head);

/* Adds the entry of a row that has all columns. reading->full: it would not fit, and was not. */
int take_row(reading *reading, sqlite3_stmt *row, const item *item);

/* The same for an entry of which only the place is known. *taken: it is there still, and fitted. */
int take_place(reading *reading, const item *item, bool *taken);

/* Whether the reading has found enough. */
bool take_is_enough(const reading *reading);

/* Hands out one entry by its place, if it is the first of its key. */
int seek_place(reading *reading, int64_t place);

/*
** Hands out the oldest of a namespace that is parked. *unseen: nothing was found among the first
** rows, and it has not looked further.
*/
int seek_oldest(reading *reading, line *space, bool *unseen);

/* The same of its known heads, until there are enough or none is left. *more: it ended early. */
int sweep_heads(reading *reading, line *space, bool *more);

#pragma GCC visibility pop

#endif

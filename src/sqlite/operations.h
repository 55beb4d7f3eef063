/*
** Functions that operations offer to one another and to the floor above them.
*/
#ifndef OUTBOX_OPERATIONS_H
#define OUTBOX_OPERATIONS_H

#include "transaction.h"

#pragma GCC visibility push(hidden)

/*
** How far in the future a claim may have been made and still be alive: busy_timeout and this, in
** microseconds. A clock that is set back by less takes no live claim. It need not allow for a wait,
** because a claim is judged with a clock that was read inside the lock.
*/
#define SKEW 5000000

/* What the text of the entries in hand begins with after overtime. */
#define OVERTIME "!"

/* --- due.c ----------------------------------------------------------------------------------- */

/* The time after which what was written is from the future: the clock was set back since. */
int64_t due_future(const outbox_store *store, int64_t now);

/* The earlier of two times. 0 is no time. */
int64_t due_earlier(int64_t a, int64_t b);

/* Whether any entry is delayed. */
int due_any(outbox_store *store, bool *any);

/*
** When the next delayed entry falls due, 0: never; and whether a retry was delayed in the future.
** Such retries are due now: due_correct writes that, for at most 10,000.
*/
int due_look(outbox_store *store, int64_t now, int64_t *due_at, bool *ahead);
int due_correct(outbox_store *store, int64_t now);

/*
** Makes a scheduled entry ready that is due, at the end. *promoted: it was there, and due.
** due_promote_all does so for at most 1,000; *more: there may be more of them.
*/
int due_promote(outbox_store *store, int64_t seq, int64_t now, bool *promoted);
int due_promote_all(outbox_store *store, int64_t now, bool *more);

/* --- settle.c -------------------------------------------------------------------------------- */

/*
** Writes what became of an entry, where it lies: `delayed` says where to look first. Sets
** verdict->found.
*/
int settle_entry(outbox_store *store, outbox_verdict *verdict, outbox_identity entry, bool delayed,
                 int64_t now);

/*
** Deletes a run of ready entries without gaps, if both ends are there; with `whole`, if all of it
** is. *deleted: how many of them were there.
*/
int settle_run(outbox_store *store, outbox_identity first, outbox_identity last, bool whole,
               int64_t *deleted);

/* Call it before ready entries go, with the highest seq of them: see MARK_SEQ. */
int settle_mark(outbox_store *store, int64_t seq);

/*
** Charges an attempt to the entries in hand at these places, because their processor died; makes
** suspects of them. Under a claim by hand, a retry that is not due was settled before that.
*/
int settle_charge(outbox_store *store, range places, bool lane, int64_t now);
int settle_suspect(outbox_store *store, range places, bool lane, int64_t now);

/* --- reading.c, doorbell.c, copies.c, heartbeat.c -------------------------------------------- */

/* The next row of the reading under way: OUTBOX_ROW, OUTBOX_DONE, or an error. */
int reading_next(outbox_store *store);

/*
** In SQL: whether an entry of `table` waits for an earlier retry of its key. It need not wait for
** one that is due, at the time ?2, in the same interval, from `first` on: that one comes first.
*/
#define IS_HELD(table, place, first)                                                               \
  "EXISTS (SELECT 1 FROM @delayed AS r INDEXED BY @@delayed_key"                                   \
  " WHERE r.namespace = " table ".namespace AND r.key = " table ".key AND r.position < " place     \
  " AND NOT (r.due_at <= ?2 AND r.position >= " first "))"

/* Notes what this connection can see now, so that outbox_wait knows what is new. */
int doorbell_see(outbox_store *store);

/*
** Fails with MOVED when the database's path no longer leads to the file that is open, or the log of
** a store of its own has gone. Asks the system at most once a second.
*/
int doorbell_check(outbox_store *store);
void doorbell_close(outbox_store *store);

/* Where the copies of a message go. `hidden`: they store no id, see derived.h. */
typedef struct copies_place {
  int64_t created_at, seq; /* of the first one */
  bool hidden;
} copies_place;

/*
** Publishes the copies of a message instead of itself: none where the namespace has no
** subscriptions. copies_make_rows does so for COPIES_ROWS messages, where the next seq is one above
** all that are there. Hidden ones are refused where a trigger has taken the seq of one.
*/
#define COPIES_ROWS 16
int copies_make(outbox_store *store, outbox_bytes namespace, const outbox_message *m,
                const copies_place *place);
int copies_make_rows(outbox_store *store, outbox_bytes namespace, const outbox_message *m,
                     const copies_place *places);

/* Ends the heartbeat's thread, if there is one. */
void heartbeat_close(outbox_store *store);

#pragma GCC visibility pop

#endif

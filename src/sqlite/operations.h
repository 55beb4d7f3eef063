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

/* The next row of the reading under way: OUTBOX_ROW, OUTBOX_DONE, or an error. */
int reading_next(outbox_store *store);

/* What due_restore has done. */
typedef struct restored {
  bool more;    /* there may be more to restore */
  int64_t from; /* the lowest place to which a retry came back; else as before */
} restored;

/*
** Makes delayed entries ready again, at most 1,000: those that are due now, and retries that were
** delayed after `future`, because the clock was set back since. INT64_MAX: there are none of these.
*/
int due_restore(outbox_store *store, int64_t now, int64_t future, restored *restored);

/* Notes what this connection can see now, so that outbox_wait knows what is new. */
int doorbell_see(outbox_store *store);

/*
** Fails with MOVED when the database's path no longer leads to the file that is open, or the log of
** a store of its own has gone. Asks the system at most once a second.
*/
int doorbell_check(outbox_store *store);
void doorbell_close(outbox_store *store);

/* Ends the heartbeat's thread, if there is one. */
void heartbeat_close(outbox_store *store);

#pragma GCC visibility pop

#endif

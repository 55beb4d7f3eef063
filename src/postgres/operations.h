/*
** Functions and pieces of SQL that operations offer to one another.
*/
#ifndef OUTBOX_PG_OPERATIONS_H
#define OUTBOX_PG_OPERATIONS_H

#include "schema.h"
#include "text.h"
#include "transaction.h"

#pragma GCC visibility push(hidden)

/* The columns of an entry as every reading gives them; its place comes first. */
#define ENTRY_COLUMNS                                                                              \
  "id, namespace, key, payload, payload_bytes, headers, created_at, attempts, last_error, "        \
  "source_id"

/*
** How far in the future a claim may have been made and still be alive: lock_timeout and this, in
** microseconds. A clock that is set back by less takes no live claim.
*/
#define SKEW 5000000

/* The time after which what was written is from the future. The earlier of two times; 0 is none. */
static inline int64_t time_future(const outbox_store *store, int64_t now) {
  return clock_later(now, SKEW + 1000 * (int64_t)store->busy_timeout);
}

static inline int64_t time_earlier(int64_t a, int64_t b) {
  return a == 0 || (b != 0 && b < a) ? b : a;
}

/* In SQL, of the mask of a claim: whether it has a partition. */
#define HAS_CLASS(classes, partition) "(" classes " >> (" partition ")::int & 1) = 1"

/* In SQL: a number that changes with the claims, but not when one is renewed. */
#define CLAIMS_FINGERPRINT                                                                         \
  "(SELECT coalesce(sum(hashint8extended(lease, classes) >> 8), 0)::bigint FROM @claims)"

/* In SQL: whether nothing of a namespace may be handed out. Asks once if there is any pause. */
#define IS_PAUSED(namespace)                                                                       \
  "((SELECT EXISTS (SELECT FROM @pauses))"                                                         \
  " AND EXISTS (SELECT FROM @pauses AS u WHERE u.namespace = " namespace "))"

/* --- reading.c ------------------------------------------------------------------------------- */

/* Starts a reading with the last result of a round trip. */
void reading_start(outbox_store *store);

/* The next row of the reading under way: OUTBOX_ROW and *row, OUTBOX_DONE, or an error. */
int reading_next(outbox_store *store, const PGresult **result, int *row);

/* Reads an entry from a row whose first columns are its place and ENTRY_COLUMNS. */
void reading_entry(const PGresult *result, int row, outbox_entry *entry);

/* --- settle.c -------------------------------------------------------------------------------- */

/* The entries that a round trip settles, by what becomes of them. */
typedef struct settlement {
  array partitions, tids, delivered_seqs, delivered_ids; /* ready ones, of known partitions */
  array seqs, ids, outcomes, charges, times, errors;     /* the others */
  int missed;                                            /* were not found where they were read */
  bool delays, deletes, buries;                          /* there are such, among the others */
  char **copies;                                         /* of errors that were no text */
  size_t copy_count;
} settlement;

/* Where a ready entry lies; the partition is below 0 where that is not known, or it is delayed. */
typedef struct spot {
  int partition;
  int64_t tid; /* its row, as it was read through this connection; or 0 */
} spot;

/* Adds a verdict of an entry. False: there is no memory. */
bool settle_add(settlement *s, outbox_identity entry, spot spot, outbox_verdict *verdict);

/*
** Adds the statements to the round trip. Failures count only while the claim `lease` is there; 0:
** in any case. settle_results reads, after its end, which verdicts have found their entries. Where
** rows have moved since they were read, some are `missed`: settle_missed looks again.
*/
void settle_send(outbox_store *store, settlement *s, int64_t lease, int64_t now);
void settle_results(outbox_store *store, settlement *s, outbox_verdict *verdicts,
                    const outbox_identity *entries, size_t count);
int settle_missed(outbox_store *store, settlement *s, outbox_verdict *verdicts, size_t count);
void settle_free(settlement *s);

/* --- lease.c --------------------------------------------------------------------------------- */

/* A row of the claims, and what it has in hand. */
typedef struct claim_row {
  int64_t lease, deadline, claimed_at;
  uint64_t classes;
  outbox_bytes processor_id, namespaces;
  bool by_hand, overtime;
} claim_row;

/* Locks the claims; reads them; one row of the result. */
int lease_lock(outbox_store *store);
int lease_read_all(outbox_store *store, PGresult **rows);
claim_row lease_row(const PGresult *rows, int row);

bool lease_has_lapsed(const outbox_store *store, const claim_row *claim, int64_t now);

/*
** Charges what is in hand under a claim, or suspects it after overtime, and forgets it.
** lease_reap does so for a claim that has lapsed, and removes it, unless its processor settles
** just now. *reaped: it is gone.
*/
int lease_charge(outbox_store *store, const claim_row *claim, int64_t now);
int lease_reap(outbox_store *store, const claim_row *claim, int64_t now, bool *reaped);
int lease_remove(outbox_store *store, int64_t lease);

/* --- due.c ----------------------------------------------------------------------------------- */

/* When the next delayed entry falls due; whether a retry was delayed in the future. */
int due_look(outbox_store *store, int64_t now, int64_t *due_at, bool *ahead);
int due_correct(outbox_store *store, int64_t now);

/* Makes scheduled entries ready that are due. *more: there may be more of them. */
int due_promote(outbox_store *store, int64_t now, bool *more);

/* --- wait.c, heartbeat.c --------------------------------------------------------------------- */

/* A processor, or a claim by hand, has looked at all there is; or has found something. */
void bell_see(outbox_store *store, bool found);
void bell_close(outbox_store *store);
void heartbeat_close(outbox_store *store);

#pragma GCC visibility pop

#endif

/*
** The rows of the table of claims, which are boxes: namespaces, classes of keys, and an interval of
** seq. The boxes of live rows never overlap. A processor of lanes has one row, a lane, which is
** the whole of seq; a claim by hand has a row for each interval, of all namespaces and classes.
*/
#ifndef OUTBOX_LEASE_H
#define OUTBOX_LEASE_H

#include "operations.h"

#pragma GCC visibility push(hidden)

/* In SQL: whether a row is an interval, not a lane. */
#define IS_INTERVAL "NOT (first_seq = -9223372036854775808 AND last_seq = 9223372036854775807)"

/* All rows in the order of first_seq; lease_read reads one. */
extern const char lease_select_sql[];
void lease_read(sqlite3_stmt *row, outbox_lease *lease);

/* Calls `visit` for each row, until it fails. It may remove the row that it is given. */
typedef int lease_visitor(void *context, const outbox_lease *lease);
int lease_each(outbox_store *store, lease_visitor *visit, void *context);

bool lease_is_lane(const outbox_lease *lease);

/* Whether a row has lapsed; when it will. */
bool lease_has_lapsed(const outbox_store *store, const outbox_lease *lease, int64_t now);
int64_t lease_lapses_at(const outbox_lease *lease);

/* Inside the write lock: charges what was in hand under a row, or suspects it after overtime. */
int lease_charge(outbox_store *store, const outbox_lease *lease, int64_t now);

/* The same for a row that has lapsed, and removes it. */
int lease_reap(outbox_store *store, const outbox_lease *lease, int64_t now);
int lease_remove(outbox_store *store, int64_t lease);

/*
** Names places that are in hand: "17+3,2" is 17 to 20, and 22. Each number is relative to the last
** place before, which *last keeps; at first 0.
*/
void lease_name(sqlite3_str *text, range places, int64_t *last);

/* Ends such a text. No value where it is empty. The caller frees held->data. Fails with NOMEM. */
int lease_finish(outbox_store *store, sqlite3_str *text, outbox_bytes *held);

#pragma GCC visibility pop

#endif

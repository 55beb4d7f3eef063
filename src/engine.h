/*
** An engine: an implementation of the operations of outbox.h on one database system. Several may be
** in one process, each in a shared object of its own with its own copy of src/, and its symbols
** hidden. What stands above them, the shim, calls the operations only through the struct that each
** engine fills, and does not know which engine it is.
**
** To add an operation, declare it in outbox.h, add it to OUTBOX_OPERATIONS, and define it in each
** engine. Not in the list, because only SQLite has them: outbox_connection, outbox_attach,
** outbox_install, outbox_await_handshake, outbox_shares_sqlite, outbox_code. Nor those that need no
** store, because whoever calls them links a copy: outbox_is_prefix, outbox_next_namespace,
** outbox_code_name, outbox_system_clock, outbox_uuid_v7, outbox_uuid_v4.
*/
#ifndef OUTBOX_ENGINE_H
#define OUTBOX_ENGINE_H

#include "outbox.h"

#pragma GCC visibility push(hidden)

/* The operations that every engine has, in the order of outbox.h: X(open) is outbox_open. */
#define OUTBOX_OPERATIONS(X)                                                                       \
  X(open)                                                                                          \
  X(migrate)                                                                                       \
  X(in_transaction)                                                                                \
  X(now)                                                                                           \
  X(prefix)                                                                                        \
  X(begin)                                                                                         \
  X(commit)                                                                                        \
  X(rollback)                                                                                      \
  X(check_transaction)                                                                             \
  X(execute)                                                                                       \
  X(query)                                                                                         \
  X(next_row)                                                                                      \
  X(column_count)                                                                                  \
  X(column_name)                                                                                   \
  X(column)                                                                                        \
  X(close_rows)                                                                                    \
  X(generate_ids)                                                                                  \
  X(publish)                                                                                       \
  X(subscribe)                                                                                     \
  X(unsubscribe)                                                                                   \
  X(subscriptions)                                                                                 \
  X(next_subscription)                                                                             \
  X(claim_entries)                                                                                 \
  X(get_claimed_entries)                                                                           \
  X(hold_batch)                                                                                    \
  X(renew_claim)                                                                                   \
  X(start_heartbeat)                                                                               \
  X(stop_heartbeat)                                                                                \
  X(release_claim)                                                                                 \
  X(serve)                                                                                         \
  X(advance)                                                                                       \
  X(share)                                                                                         \
  X(batch)                                                                                         \
  X(suspects)                                                                                      \
  X(park)                                                                                          \
  X(recover)                                                                                       \
  X(note_outages)                                                                                  \
  X(next)                                                                                          \
  X(delete_entries)                                                                                \
  X(retry_entry)                                                                                   \
  X(bury_entry)                                                                                    \
  X(is_waiting)                                                                                    \
  X(wait)                                                                                          \
  X(pollfd)                                                                                        \
  X(ready_entries)                                                                                 \
  X(delayed_entries)                                                                               \
  X(dead_entries)                                                                                  \
  X(find_entries)                                                                                  \
  X(requeue_entries)                                                                               \
  X(purge_entries)                                                                                 \
  X(pause)                                                                                         \
  X(resume)                                                                                        \
  X(paused_namespaces)                                                                             \
  X(next_paused)                                                                                   \
  X(count_entries)                                                                                 \
  X(summaries)                                                                                     \
  X(next_summary)                                                                                  \
  X(leases)                                                                                        \
  X(next_lease)                                                                                    \
  X(finish)                                                                                        \
  X(error_message)                                                                                 \
  X(close)

/*
** The version and the size come first in every version of this struct. An engine that was built
** for another version is known by them, and nothing else of it may be read.
*/
typedef struct outbox_engine {
  const char *version;   /* OUTBOX_VERSION */
  size_t size;           /* of this struct */
  const char *name;      /* "sqlite" or "postgres" */
  const char *parameter; /* the first one of the application's SQL: "?" or "$1" */
#define OUTBOX_MEMBER(operation) __typeof__(outbox_##operation) *operation;
  OUTBOX_OPERATIONS(OUTBOX_MEMBER)
#undef OUTBOX_MEMBER
} outbox_engine;

/* The initializer of an engine whose operations are in the same shared object. */
#define OUTBOX_ENGINE(its_name, its_parameter)                                                     \
  {                                                                                                \
    .version = OUTBOX_VERSION, .size = sizeof(outbox_engine), .name = its_name,                    \
    .parameter = its_parameter, OUTBOX_OPERATIONS(OUTBOX_ENTRY)                                    \
  }
#define OUTBOX_ENTRY(operation) .operation = outbox_##operation,

/* Each is in the shared object of its engine alone. */
extern const outbox_engine outbox_sqlite;
extern const outbox_engine outbox_postgres;

#pragma GCC visibility pop

#endif

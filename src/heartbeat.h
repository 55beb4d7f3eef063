/*
** The thread of the heartbeat: when it beats. What a beat writes is the engine's.
*/
#ifndef OUTBOX_HEARTBEAT_H
#define OUTBOX_HEARTBEAT_H

#include "outbox.h"

#pragma GCC visibility push(hidden)

typedef struct heartbeat heartbeat;

/*
** What an engine gives. `write` runs in the thread: it moves the deadline of the processor's claim
** by the time that has passed, or notes that it is overtime. It returns whether that was written;
** if not, the thread tries again soon. `end` frees the context, after the thread has ended.
*/
typedef struct heartbeat_writer {
  bool (*write)(void *context, outbox_bytes processor_id, int64_t passed, bool overtime);
  void (*end)(void *context);
  void *context;
} heartbeat_writer;

/* Starts the thread. Fails with NOMEM, or with ERROR where no thread can be started. */
int heartbeat_make(heartbeat **heartbeat, heartbeat_writer writer);

/* Ends the thread and frees all. */
void heartbeat_end(heartbeat *heartbeat);

/* As outbox_start_heartbeat and outbox_stop_heartbeat. Fails with NOMEM. */
int heartbeat_start(heartbeat *heartbeat, outbox_bytes processor_id, int64_t interval,
                    int64_t max_duration);
void heartbeat_stop(heartbeat *heartbeat);

#pragma GCC visibility pop

#endif

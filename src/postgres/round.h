/*
** The round trip of a processor: settle, renew, read, hold.
*/
#ifndef OUTBOX_PG_ROUND_H
#define OUTBOX_PG_ROUND_H

#include "lane.h"

#pragma GCC visibility push(hidden)

/* An outbox_advance under way. */
typedef struct step {
  outbox_store *store;
  lane *lane;
  const outbox_want *want;
  outbox_verdict *verdicts;
  outbox_identity *entries; /* what the verdicts mean */
  size_t count;             /* of verdicts that are not settled yet */
  int64_t now;
  bool lost, more;
  bool due; /* a retry that was settled just now */
  items found;
} step;

/* The claim is lost: what is in hand, and what was known, is forgotten. */
void round_lose(step *s);

/* Memory follows the verdicts; to do it again changes nothing. */
void round_follow(step *s);

/* Settles what is in hand, renews the claim, and reads the next batch; or reads nothing. */
int round_settle_and_read(step *s);
int round_settle_alone(step *s);

/* The same where there is no claim: what was put off before may still be settled. */
int round_settle_without(step *s);

/* Finds out what became of a settlement whose answer was lost with the connection. */
int round_resolve(step *s);

#pragma GCC visibility pop

#endif

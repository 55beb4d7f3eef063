/*
** A model of the outbox, made of single rows. An entry is nowhere, ready, delayed or dead. One that
** has a place, because it is ready or waits for a retry, is claimed by one processor or by none.
** operations.c applies each operation to a store and to this model, and compares the two.
**
** The model knows an entry by a number, its id, and a processor by a number too. It does not
** compute intervals. It uses those of the store, as they were before, to tell where the gaps are.
*/
#ifndef MODEL_H
#define MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "outbox.h"

enum { IDS = 40, PROCESSORS = 3, NOBODY = PROCESSORS, MAX_DEPTH = 4 };

#define SECOND INT64_C(1000000)
#define NONE INT64_MAX /* no place, no time */

enum place { NOWHERE, READY, DELAYED, DEAD };

typedef struct entry {
  enum place place;
  int owner;        /* if it has a place: who claimed it, even if the claim has lapsed */
  int64_t seq;      /* if delayed: its order among the delayed entries */
  int64_t position; /* if delayed: its place, or NONE */
  int64_t due_at, created_at, attempts;
  int64_t delayed_at; /* if it waits for a retry */
} entry;

/* A list of entries, each given by its seq. */
typedef struct seqs {
  size_t count;
  int64_t items[IDS];
} seqs;

typedef struct processor {
  int64_t deadline, claimed_at; /* all of its intervals have the same times */
  seqs in_hand;                 /* the batch that its claim records */
  bool overtime;                /* their delivery took too long */
} processor;

typedef struct model {
  entry entries[IDS]; /* by id */
  processor processors[PROCESSORS];
  int64_t last_seq, last_delayed;
} model;

/* An interval of the store, as it was before the current step. */
typedef struct lease {
  int64_t first, last; /* seqs */
  int owner;
} lease;

extern model *current; /* the model within the innermost open transaction */
extern int64_t now;    /* the time of the store's clock */
extern lease leases[IDS + 1];
extern size_t lease_count;

/* Empties the model: it has no entries, no claims and no open transaction. */
void model_reset(void);

/* The namespace and the key of an entry. A key of NULL means none. */
outbox_bytes namespace_of(unsigned id);
const char *key_of(unsigned id);

/* The place of an entry, or NONE. */
int64_t place_of(unsigned id);

/* The interval that covers this place, or NULL; its owner, or NOBODY. */
const lease *lease_at(int64_t place);
int lease_owner(int64_t place);

/* Whether a processor has an interval. */
bool has_leases(int owner);

/* Lists the ids of the entries in a place: ready and dead ones by seq, delayed ones by due time.
** Returns how many there are. */
size_t model_list(enum place place, unsigned list[IDS]);

/* Lists the ids of the entries that are ready, or whose retry is due, by their places. */
size_t model_list_readable(unsigned list[IDS]);

/* Whether an entry must wait, in an interval from `first` on, for an earlier retry of its key. */
bool model_is_held_back(unsigned id, int64_t first);

/*
** The operations. Each changes the model in the same way as the core must change its tables.
** Those on an entry return whether it was there.
*/
void model_publish(unsigned id, int64_t deliver_at);
outbox_claimed model_claim(int owner, int64_t deadline, unsigned limit);
void model_exceed(int owner);
void model_hold(int owner, const seqs *batch);
void model_renew(int owner, int64_t deadline);
void model_release(int owner);
bool model_delete(unsigned id);
bool model_delete_at(unsigned id, int64_t seq); /* only the entry that was read at this place */
bool model_retry(unsigned id, int64_t due_at, bool failed);
bool model_bury(unsigned id, bool failed);
bool model_requeue(unsigned id);
bool model_purge(unsigned id);

/* Transactions, nested up to MAX_DEPTH. The last two require a model_depth above 0. */
int model_depth(void);
void model_begin(void);
void model_commit(void);
void model_roll_back(void);

#endif

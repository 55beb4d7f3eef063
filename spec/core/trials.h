/*
** Trials: every operation of a store, each time with one more thing going wrong.
*/
#ifndef TRIALS_H
#define TRIALS_H

#include "support.h"

/* Something that can be made to fail. */
typedef struct trouble {
  int step; /* 1 to try each, 7 to try each seventh */
  int kinds;
  const char *const *names; /* of the kinds */
  int code;                 /* of every failure that comes of it; 0: there are several */
  bool (*lasts)(int kind);  /* whether it makes sense that it fails for ever */
  void (*arm)(int kind, int n, bool for_ever); /* the n-th from now on fails, or it and all after */
  bool (*disarm)(void);                        /* nothing fails any more; whether anything has */
} trouble;

/*
** Runs each operation on a fresh copy of the same database, with the first thing failing, then the
** second, and so on until it has passed untouched. Each time it has succeeded, or failed with a
** reason and changed nothing; the database is whole; the store goes on, or another can be opened;
** no memory and no descriptor is kept. Returns how often something failed.
*/
int try_all(fixture *f, const trouble *trouble);

/* All that the outbox's tables hold, and the application's `orders`; for sqlite3_free. */
char *dump(sqlite3 *db);

/* The same of a file, which must be whole. */
char *dump_file(const char *path);

#endif

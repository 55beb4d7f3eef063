/*
** Trials: run every operation of a store again and again, and make one call or allocation fail in
** each run: first the first one, then the second one, and so on.
*/
#ifndef TRIALS_H
#define TRIALS_H

#include "support.h"

/* A class of calls that can be made to fail. */
typedef struct trouble {
  int step;         /* 1 tries every call, 7 every seventh */
  int migrate_step; /* the same while the tables are made, which takes the most calls by far */
  int kinds;
  const char *const *names; /* of the kinds */
  int code;                 /* that each failure must cause; 0: there are several */
  bool (*lasts)(int kind);  /* whether to try also that all later calls fail */
  void (*arm)(int kind, int n, bool for_ever); /* makes the n-th call fail, or it and all later */
  bool (*disarm)(void);                        /* stops the failures; whether any call has failed */
} trouble;

/*
** Runs each operation on a fresh copy of the same database. The first call fails, then the second
** one, and so on, until the operation ends before the failure. Asserts after each run:
** - The operation has succeeded, or it has failed with an error message and changed nothing.
** - The database is intact.
** - The operation then succeeds on the same store, or on a new one if opening was part of it.
** - No memory and no descriptor has leaked.
** Returns in how many runs a call failed.
*/
int try_all(fixture *f, const trouble *trouble);

/* Returns the contents of the outbox's tables and of the application's table `orders` as a string.
** Free it with sqlite3_free. */
char *dump(sqlite3 *db);

/* The same for a database file. Asserts that the file is intact. */
char *dump_file(const char *path);

#endif

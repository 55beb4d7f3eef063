/*
** Operations: every one of a store, each in a function that can be run again after a failure.
*/
#ifndef OPERATIONS_H
#define OPERATIONS_H

#include "support.h"

typedef struct operation {
  const char *name;
  int (*run)(outbox_store *store, fixture *f);
  int (*prepare)(outbox_store *store, fixture *f); /* comes before it, and never fails; or NULL */
  bool tables;  /* the database has the outbox's tables already */
  bool opening; /* opening the store is part of it */
  bool apart;   /* another store has the error message */
} operation;

extern const operation operations[];
extern const size_t operation_count;

#endif

/*
** An operating system whose calls fail when a test says so: a VFS of SQLite's over the real one.
*/
#ifndef FAULTS_H
#define FAULTS_H

#include <stdbool.h>

/* The calls that can fail, and how. */
enum fault {
  FAULT_OPEN,
  FAULT_READ,
  FAULT_WRITE,
  FAULT_TORN, /* a write, after half of it */
  FAULT_FULL, /* the same for want of room */
  FAULT_SYNC,
  FAULT_TRUNCATE,
  FAULT_SIZE,
  FAULT_DELETE,
  FAULT_LOCK, /* another connection has it */
  FAULT_SHM_MAP,
  FAULT_SHM_LOCK,
  FAULTS
};

extern const char *const FAULT_NAMES[FAULTS];

/* From now on all connections that are opened go through it, until end_faults. */
void begin_faults(void);
void end_faults(void);

/* The n-th call of a kind from now on fails, or with `for_ever` that and all after it. */
void arm_fault(enum fault fault, int n, bool for_ever);

/* No call fails any more; whether any has. */
bool disarm_fault(void);

#endif

/*
** Simulates failing calls to the operating system. This SQLite VFS wraps the real one. The test
** chooses which call fails.
*/
#ifndef FAULTS_H
#define FAULTS_H

#include <stdbool.h>

/* The calls that can fail, and the way in which they fail. */
enum fault {
  FAULT_OPEN,
  FAULT_READ,
  FAULT_WRITE,
  FAULT_TORN, /* a write fails after half of its bytes are written */
  FAULT_FULL, /* likewise, because the disk is full */
  FAULT_SYNC,
  FAULT_TRUNCATE,
  FAULT_SIZE,
  FAULT_DELETE,
  FAULT_LOCK, /* another connection holds the lock */
  FAULT_SHM_MAP,
  FAULT_SHM_LOCK,
  FAULTS
};

extern const char *const FAULT_NAMES[FAULTS];

/* From now on, until end_faults, all new connections use this VFS. */
void begin_faults(void);
void end_faults(void);

/* Makes the n-th call of this kind from now on fail; with `for_ever`, that one and all later
** ones. */
void arm_fault(enum fault fault, int n, bool for_ever);

/* Stops the failures. Returns whether any call has failed. */
bool disarm_fault(void);

#endif

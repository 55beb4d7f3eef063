#include "allocations.h"

#include <sqlite3.h>
#include <stddef.h>

static sqlite3_mem_methods real;

static struct {
  bool armed, for_ever, failed;
  int left;
} plan;

void arm_allocation(int n, bool for_ever) {
  plan.armed = true;
  plan.for_ever = for_ever;
  plan.failed = false;
  plan.left = n;
}

bool disarm_allocation(void) {
  plan.armed = false;
  return plan.failed;
}

bool allocation_fails(void) {
  if (!plan.armed) return false;
  if (plan.left > 0) plan.left--;
  bool now = plan.left == 0 && (plan.for_ever || !plan.failed);
  plan.failed |= now;
  return now;
}

static void *allocate(int size) {
  return allocation_fails() ? NULL : real.xMalloc(size);
}

static void *reallocate(void *memory, int size) {
  return allocation_fails() ? NULL : real.xRealloc(memory, size);
}

void begin_allocations(void) {
  sqlite3_config(SQLITE_CONFIG_GETMALLOC, &real);
  sqlite3_mem_methods failing = real;
  failing.xMalloc = allocate;
  failing.xRealloc = reallocate;
  sqlite3_config(SQLITE_CONFIG_MALLOC, &failing);
  sqlite3_config(SQLITE_CONFIG_LOOKASIDE, 0, 0);
}

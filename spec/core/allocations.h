/*
** A memory that runs out when a test says so: SQLite's allocator, which the core uses as well.
*/
#ifndef ALLOCATIONS_H
#define ALLOCATIONS_H

#include <stdbool.h>

/* To be called before anything else of SQLite's. Its own reserve for small things goes too, or it
** would hardly notice the lack. */
void begin_allocations(void);

/* The n-th allocation from now on fails, or with `for_ever` that and all after it. */
void arm_allocation(int n, bool for_ever);

/* No allocation fails any more; whether any has. */
bool disarm_allocation(void);

/* Whether this one is to fail: for another allocator that takes part. */
bool allocation_fails(void);

#endif

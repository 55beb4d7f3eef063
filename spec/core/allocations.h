/*
** Simulates a lack of memory. The test chooses which allocation fails. This wraps SQLite's
** allocator, which the core uses as well.
*/
#ifndef ALLOCATIONS_H
#define ALLOCATIONS_H

#include <stdbool.h>

/* Call this before any other function of SQLite. It also turns off SQLite's lookaside memory,
** because small allocations would be served from there and would not fail. */
void begin_allocations(void);

/* Makes the n-th allocation from now on fail; with `for_ever`, that one and all later ones. */
void arm_allocation(int n, bool for_ever);

/* Stops the failures. Returns whether any allocation has failed. */
bool disarm_allocation(void);

/* Returns whether the current allocation must fail. Another allocator can call this to take
** part. */
bool allocation_fails(void);

#endif

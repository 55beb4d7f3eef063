/*
** The steps from each version of the schema to the next.
*/
#ifndef OUTBOX_SCHEMA_H
#define OUTBOX_SCHEMA_H

#pragma GCC visibility push(hidden)

#define SCHEMA_SCRIPTS 6 /* of a step, at most */

/* schema_steps[n] has the scripts that bring the tables from version n to n + 1. */
extern const char *const schema_steps[][SCHEMA_SCRIPTS];

/* The version that this library works with: the number of steps. */
extern const int schema_version;

#pragma GCC visibility pop

#endif

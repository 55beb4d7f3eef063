/*
** A disk that remembers every change in order, so that the power can be cut after any of them: a
** VFS of SQLite's over the real one.
*/
#ifndef DISK_H
#define DISK_H

#include <stdbool.h>
#include <stddef.h>

/* From now on all connections that are opened go through it, until end_disk. What it remembers, it
** remembers until it begins again. */
void begin_disk(void);
void end_disk(void);

/* How many changes there have been so far, and whether the n-th was the end of a sync. */
int disk_changes(void);
bool is_sync(int n);

/*
** Leaves in a directory what a disk holds when the power is cut after so many changes. What was
** synced is there; of what was not, nothing, or with a `seed` above 0 some at random: each write
** whole, in part, or not at all, in any order of the files.
*/
void cut_power(int changes, unsigned seed, const char *directory);

#endif

/*
** Simulates power cuts. This SQLite VFS wraps the real one and records every change of the disk in
** order. A test can then cut the power after any of them.
*/
#ifndef DISK_H
#define DISK_H

#include <stdbool.h>
#include <stddef.h>

/* From now on, until end_disk, all new connections use this VFS. The recorded changes stay
** available until the next begin_disk. */
void begin_disk(void);
void end_disk(void);

/* How many changes have been recorded so far. */
int disk_changes(void);

/* Whether the n-th change, counted from 1, was the end of a sync. */
bool is_sync(int n);

/*
** Writes into `directory` the files that the disk holds after a power cut. The cut comes after the
** first `changes` changes. Changes that were synced by then are always there. If `seed` is 0, all
** other changes are missing. If it is above 0, each of them is present as a whole, in part or not
** at all, at random and independently of the order in which the files were written.
*/
void cut_power(int changes, unsigned seed, const char *directory);

#endif

/*
** A VFS of SQLite's around the real one, for those that want to see its calls, or make them fail.
** One at a time.
*/
#ifndef WRAPPER_H
#define WRAPPER_H

#include <sqlite3.h>
#include <stddef.h>

/* What each of its files begins with. */
typedef struct wrapped_file {
  sqlite3_file base;
  sqlite3_file *real;
} wrapped_file;

/* Methods of a file that all pass the call on. */
extern const sqlite3_io_methods PASS_ON;

/*
** From now on all connections that are opened go through `vfs`, until end_wrapper: a copy of the
** real one, with files of `file_size` bytes before the real ones, and two methods of its own.
*/
void begin_wrapper(sqlite3_vfs *vfs, const char *name, size_t file_size,
                   int (*open)(sqlite3_vfs *, const char *, sqlite3_file *, int, int *),
                   int (*delete)(sqlite3_vfs *, const char *, int));
void end_wrapper(sqlite3_vfs *vfs);

/* The real one, meanwhile. */
sqlite3_vfs *real_vfs(void);

/* Opens the real file behind one of ours, which is to be given methods if this succeeds. */
int open_real(sqlite3_vfs *vfs, const char *name, sqlite3_file *f, int flags, int *given);

/* The file of the real VFS's behind one of ours, and a call of one of its methods. */
#define REAL(f) (((wrapped_file *)(f))->real)
#define PASS(f, method, ...) REAL(f)->pMethods->method(REAL(f), __VA_ARGS__)

#endif

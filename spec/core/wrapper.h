/*
** A SQLite VFS that wraps the real one. disk.c uses it to record calls, and faults.c to make them
** fail. There can be only one at a time.
*/
#ifndef WRAPPER_H
#define WRAPPER_H

#include <sqlite3.h>
#include <stddef.h>

/* The header of each file of such a VFS. */
typedef struct wrapped_file {
  sqlite3_file base;
  sqlite3_file *real;
} wrapped_file;

/* File methods that pass each call on to the real file. */
extern const sqlite3_io_methods PASS_ON;

/*
** From now on, until end_wrapper, all new connections use `vfs`. It becomes a copy of the real VFS
** with its own methods `open` and `delete`. Each of its files has `file_size` bytes in front of the
** real file.
*/
void begin_wrapper(sqlite3_vfs *vfs, const char *name, size_t file_size,
                   int (*open)(sqlite3_vfs *, const char *, sqlite3_file *, int, int *),
                   int (*delete)(sqlite3_vfs *, const char *, int));
void end_wrapper(sqlite3_vfs *vfs);

/* The real VFS, between begin_wrapper and end_wrapper. */
sqlite3_vfs *real_vfs(void);

/* Opens the real file behind `f`. If this succeeds, the caller sets the methods of `f`. */
int open_real(sqlite3_vfs *vfs, const char *name, sqlite3_file *f, int flags, int *given);

/* REAL is the real file behind `f`. PASS calls one of the real file's methods. */
#define REAL(f) (((wrapped_file *)(f))->real)
#define PASS(f, method, ...) REAL(f)->pMethods->method(REAL(f), __VA_ARGS__)

#endif

#include "wrapper.h"

static sqlite3_vfs *real;

/* --- Files ----------------------------------------------------------------------------------- */

static int close_file(sqlite3_file *f) {
  return REAL(f)->pMethods->xClose(REAL(f));
}

static int read_file(sqlite3_file *f, void *bytes, int size, sqlite3_int64 at) {
  return PASS(f, xRead, bytes, size, at);
}

static int write_file(sqlite3_file *f, const void *bytes, int size, sqlite3_int64 at) {
  return PASS(f, xWrite, bytes, size, at);
}

static int truncate_file(sqlite3_file *f, sqlite3_int64 size) {
  return PASS(f, xTruncate, size);
}

static int sync_file(sqlite3_file *f, int flags) {
  return PASS(f, xSync, flags);
}

static int file_size(sqlite3_file *f, sqlite3_int64 *size) {
  return PASS(f, xFileSize, size);
}

static int lock_file(sqlite3_file *f, int level) {
  return PASS(f, xLock, level);
}

static int unlock_file(sqlite3_file *f, int level) {
  return PASS(f, xUnlock, level);
}

static int check_reserved(sqlite3_file *f, int *reserved) {
  return PASS(f, xCheckReservedLock, reserved);
}

static int control_file(sqlite3_file *f, int operation, void *argument) {
  return PASS(f, xFileControl, operation, argument);
}

static int sector_size(sqlite3_file *f) {
  return REAL(f)->pMethods->xSectorSize(REAL(f));
}

static int characteristics(sqlite3_file *f) {
  return REAL(f)->pMethods->xDeviceCharacteristics(REAL(f));
}

static int map_shm(sqlite3_file *f, int page, int size, int extend, void volatile **memory) {
  return PASS(f, xShmMap, page, size, extend, memory);
}

static int lock_shm(sqlite3_file *f, int offset, int count, int flags) {
  return PASS(f, xShmLock, offset, count, flags);
}

static void barrier_shm(sqlite3_file *f) {
  REAL(f)->pMethods->xShmBarrier(REAL(f));
}

static int unmap_shm(sqlite3_file *f, int delete) {
  return PASS(f, xShmUnmap, delete);
}

const sqlite3_io_methods PASS_ON = {
    2,         close_file,  read_file,      write_file,   truncate_file, sync_file,       file_size,
    lock_file, unlock_file, check_reserved, control_file, sector_size,   characteristics, map_shm,
    lock_shm,  barrier_shm, unmap_shm,      NULL,         NULL};

/* --- The VFS --------------------------------------------------------------------------------- */

void begin_wrapper(sqlite3_vfs *vfs, const char *name, size_t file_size,
                   int (*open)(sqlite3_vfs *, const char *, sqlite3_file *, int, int *),
                   int (*delete)(sqlite3_vfs *, const char *, int)) {
  if (real != NULL) return; /* a test failed before its end_wrapper */
  real = sqlite3_vfs_find(NULL);
  *vfs = *real;
  vfs->zName = name;
  vfs->szOsFile = (int)file_size + real->szOsFile;
  vfs->xOpen = open;
  vfs->xDelete = delete;
  vfs->pNext = NULL;
  sqlite3_vfs_register(vfs, 1);
}

void end_wrapper(sqlite3_vfs *vfs) {
  sqlite3_vfs_unregister(vfs);
  sqlite3_vfs_register(real, 1);
  real = NULL;
}

sqlite3_vfs *real_vfs(void) {
  return real;
}

int open_real(sqlite3_vfs *vfs, const char *name, sqlite3_file *f, int flags, int *given) {
  f->pMethods = NULL;
  REAL(f) = (sqlite3_file *)((char *)f + vfs->szOsFile - real->szOsFile);
  return real->xOpen(real, name, REAL(f), flags, given);
}

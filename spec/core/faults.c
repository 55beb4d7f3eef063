#include <assert.h>
#include <sqlite3.h>
#include <stddef.h>

#include "faults.h"

const char *const FAULT_NAMES[FAULTS] = {"open",   "read", "write",    "torn write",
                                         "full",   "sync", "truncate", "size",
                                         "delete", "lock", "shm map",  "shm lock"};

/* A file of the real VFS's, behind one of ours. */
typedef struct file {
  sqlite3_file base;
  sqlite3_file real; /* as large as the real VFS wants it */
} file;

static sqlite3_vfs faulty, *real_vfs;

static struct {
  bool armed, for_ever, failed;
  enum fault fault;
  int left;
} plan;

void arm_fault(enum fault fault, int n, bool for_ever) {
  plan.armed = true;
  plan.failed = false;
  plan.for_ever = for_ever;
  plan.fault = fault;
  plan.left = n;
}

bool disarm_fault(void) {
  plan.armed = false;
  return plan.failed;
}

/* Whether this call is to fail. */
static bool fails(enum fault fault) {
  if (!plan.armed || plan.fault != fault) return false;
  if (plan.left > 0) plan.left--;
  bool now = plan.left == 0 && (plan.for_ever || !plan.failed);
  plan.failed |= now;
  return now;
}

static sqlite3_file *real(sqlite3_file *f) {
  return &((file *)f)->real;
}

/* --- Files ----------------------------------------------------------------------------------- */

static int close_file(sqlite3_file *f) {
  return real(f)->pMethods->xClose(real(f));
}

static int read_file(sqlite3_file *f, void *bytes, int size, sqlite3_int64 at) {
  if (fails(FAULT_READ)) return SQLITE_IOERR_READ;
  return real(f)->pMethods->xRead(real(f), bytes, size, at);
}

static int write_file(sqlite3_file *f, const void *bytes, int size, sqlite3_int64 at) {
  if (fails(FAULT_WRITE)) return SQLITE_IOERR_WRITE;
  bool torn = fails(FAULT_TORN), full = fails(FAULT_FULL);
  if (torn || full) {
    real(f)->pMethods->xWrite(real(f), bytes, size / 2, at);
    return full ? SQLITE_FULL : SQLITE_IOERR_WRITE;
  }
  return real(f)->pMethods->xWrite(real(f), bytes, size, at);
}

static int truncate_file(sqlite3_file *f, sqlite3_int64 size) {
  if (fails(FAULT_TRUNCATE)) return SQLITE_IOERR_TRUNCATE;
  return real(f)->pMethods->xTruncate(real(f), size);
}

/* Nobody cuts the power here: to wait for the disk would only take long. */
static int sync_file(sqlite3_file *f, int flags) {
  (void)f;
  (void)flags;
  return fails(FAULT_SYNC) ? SQLITE_IOERR_FSYNC : SQLITE_OK;
}

static int file_size(sqlite3_file *f, sqlite3_int64 *size) {
  if (fails(FAULT_SIZE)) return SQLITE_IOERR_FSTAT;
  return real(f)->pMethods->xFileSize(real(f), size);
}

static int lock_file(sqlite3_file *f, int level) {
  if (fails(FAULT_LOCK)) return SQLITE_BUSY;
  return real(f)->pMethods->xLock(real(f), level);
}

static int unlock_file(sqlite3_file *f, int level) {
  return real(f)->pMethods->xUnlock(real(f), level);
}

static int check_reserved(sqlite3_file *f, int *reserved) {
  return real(f)->pMethods->xCheckReservedLock(real(f), reserved);
}

static int control_file(sqlite3_file *f, int operation, void *argument) {
  return real(f)->pMethods->xFileControl(real(f), operation, argument);
}

static int sector_size(sqlite3_file *f) {
  return real(f)->pMethods->xSectorSize(real(f));
}

static int characteristics(sqlite3_file *f) {
  return real(f)->pMethods->xDeviceCharacteristics(real(f));
}

static int map_shm(sqlite3_file *f, int page, int size, int extend, void volatile **memory) {
  if (fails(FAULT_SHM_MAP)) return SQLITE_IOERR_SHMMAP;
  return real(f)->pMethods->xShmMap(real(f), page, size, extend, memory);
}

static int lock_shm(sqlite3_file *f, int offset, int count, int flags) {
  if ((flags & SQLITE_SHM_LOCK) != 0 && fails(FAULT_SHM_LOCK)) return SQLITE_BUSY;
  return real(f)->pMethods->xShmLock(real(f), offset, count, flags);
}

static void barrier_shm(sqlite3_file *f) {
  real(f)->pMethods->xShmBarrier(real(f));
}

static int unmap_shm(sqlite3_file *f, int delete) {
  return real(f)->pMethods->xShmUnmap(real(f), delete);
}

static const sqlite3_io_methods METHODS = {
    2,         close_file,  read_file,      write_file,   truncate_file, sync_file,       file_size,
    lock_file, unlock_file, check_reserved, control_file, sector_size,   characteristics, map_shm,
    lock_shm,  barrier_shm, unmap_shm,      NULL,         NULL};

/* --- The VFS --------------------------------------------------------------------------------- */

static int open_file(sqlite3_vfs *vfs, const char *name, sqlite3_file *f, int flags, int *given) {
  (void)vfs;
  f->pMethods = NULL;
  if (fails(FAULT_OPEN)) return SQLITE_CANTOPEN;
  int code = real_vfs->xOpen(real_vfs, name, real(f), flags, given);
  if (code == SQLITE_OK) f->pMethods = &METHODS;
  return code;
}

static int delete_file(sqlite3_vfs *vfs, const char *name, int sync_directory) {
  (void)vfs;
  if (fails(FAULT_DELETE)) return SQLITE_IOERR_DELETE;
  return real_vfs->xDelete(real_vfs, name, sync_directory);
}

/* All else is the real one's. */
void begin_faults(void) {
  if (real_vfs != NULL) return; /* a test that failed has not ended them */
  real_vfs = sqlite3_vfs_find(NULL);
  faulty = *real_vfs;
  faulty.zName = "faulty";
  faulty.szOsFile = (int)offsetof(file, real) + real_vfs->szOsFile;
  faulty.xOpen = open_file;
  faulty.xDelete = delete_file;
  faulty.pNext = NULL;
  sqlite3_vfs_register(&faulty, 1);
}

void end_faults(void) {
  sqlite3_vfs_unregister(&faulty);
  sqlite3_vfs_register(real_vfs, 1);
  real_vfs = NULL;
}

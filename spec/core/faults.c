#include "faults.h"

#include "wrapper.h"

const char *const FAULT_NAMES[FAULTS] = {"open",   "read", "write",    "torn write",
                                         "full",   "sync", "truncate", "size",
                                         "delete", "lock", "shm map",  "shm lock"};

static sqlite3_vfs faulty;
static sqlite3_io_methods methods;

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

/* Returns whether the current call must fail. */
static bool fails(enum fault fault) {
  if (!plan.armed || plan.fault != fault) return false;
  if (plan.left > 0) plan.left--;
  bool now = plan.left == 0 && (plan.for_ever || !plan.failed);
  plan.failed |= now;
  return now;
}

/* --- Files ----------------------------------------------------------------------------------- */

static int read_file(sqlite3_file *f, void *bytes, int size, sqlite3_int64 at) {
  if (fails(FAULT_READ)) return SQLITE_IOERR_READ;
  return PASS(f, xRead, bytes, size, at);
}

static int write_file(sqlite3_file *f, const void *bytes, int size, sqlite3_int64 at) {
  if (fails(FAULT_WRITE)) return SQLITE_IOERR_WRITE;
  bool torn = fails(FAULT_TORN), full = fails(FAULT_FULL);
  if (torn || full) {
    PASS(f, xWrite, bytes, size / 2, at);
    return full ? SQLITE_FULL : SQLITE_IOERR_WRITE;
  }
  return PASS(f, xWrite, bytes, size, at);
}

static int truncate_file(sqlite3_file *f, sqlite3_int64 size) {
  if (fails(FAULT_TRUNCATE)) return SQLITE_IOERR_TRUNCATE;
  return PASS(f, xTruncate, size);
}

/* Does not really sync: no test cuts the power here, and waiting for the disk would take long. */
static int sync_file(sqlite3_file *f, int flags) {
  (void)f;
  (void)flags;
  return fails(FAULT_SYNC) ? SQLITE_IOERR_FSYNC : SQLITE_OK;
}

static int file_size(sqlite3_file *f, sqlite3_int64 *size) {
  if (fails(FAULT_SIZE)) return SQLITE_IOERR_FSTAT;
  return PASS(f, xFileSize, size);
}

static int lock_file(sqlite3_file *f, int level) {
  if (fails(FAULT_LOCK)) return SQLITE_BUSY;
  return PASS(f, xLock, level);
}

static int map_shm(sqlite3_file *f, int page, int size, int extend, void volatile **memory) {
  if (fails(FAULT_SHM_MAP)) return SQLITE_IOERR_SHMMAP;
  return PASS(f, xShmMap, page, size, extend, memory);
}

static int lock_shm(sqlite3_file *f, int offset, int count, int flags) {
  if ((flags & SQLITE_SHM_LOCK) != 0 && fails(FAULT_SHM_LOCK)) return SQLITE_BUSY;
  return PASS(f, xShmLock, offset, count, flags);
}

/* --- The VFS --------------------------------------------------------------------------------- */

static int open_file(sqlite3_vfs *vfs, const char *name, sqlite3_file *f, int flags, int *given) {
  f->pMethods = NULL;
  if (fails(FAULT_OPEN)) return SQLITE_CANTOPEN;
  int code = open_real(vfs, name, f, flags, given);
  if (code == SQLITE_OK) f->pMethods = &methods;
  return code;
}

static int delete_file(sqlite3_vfs *vfs, const char *name, int sync_directory) {
  (void)vfs;
  if (fails(FAULT_DELETE)) return SQLITE_IOERR_DELETE;
  return real_vfs()->xDelete(real_vfs(), name, sync_directory);
}

void begin_faults(void) {
  methods = PASS_ON;
  methods.xRead = read_file;
  methods.xWrite = write_file;
  methods.xTruncate = truncate_file;
  methods.xSync = sync_file;
  methods.xFileSize = file_size;
  methods.xLock = lock_file;
  methods.xShmMap = map_shm;
  methods.xShmLock = lock_shm;
  begin_wrapper(&faulty, "faulty", sizeof(wrapped_file), open_file, delete_file);
}

void end_faults(void) {
  end_wrapper(&faulty);
}

#include "disk.h"

#include <assert.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wrapper.h"

/* A disk writes a sector as a whole or not at all. SECTOR is its size in bytes. */
enum { SECTOR = 512, MAX_NAMES = 4, MAX_FILES = 64 };

typedef enum kind { CREATE, DELETE, WRITE, TRUNCATE, SYNC, SYNC_DIRECTORY } kind;

typedef struct change {
  kind kind;
  int name;
  int file; /* each creation has a new number, even if the name existed before */
  sqlite3_int64 at;
  int size;
  void *bytes;
  int synced_at; /* number of the sync that made this change durable; INT_MAX: none yet */
} change;

static struct {
  change *changes;
  int count, room;
  char names[MAX_NAMES][24]; /* file names without the directory */
  int files[MAX_NAMES];      /* by name: number of the last file that was created with it */
  int files_count;
} disk;

typedef struct file {
  wrapped_file wrapped;
  int name;           /* -1: a temporary file, which a power cut removes */
  bool new_in_folder; /* created since the directory was last synced */
} file;

static sqlite3_vfs recording;
static sqlite3_io_methods methods;

/* --- Recording ------------------------------------------------------------------------------- */

static int number_of(const char *path) {
  const char *last = strrchr(path, '/');
  last = last == NULL ? path : last + 1;
  int i = 0;
  while (disk.names[i][0] != '\0' && strcmp(disk.names[i], last) != 0)
    i++;
  assert(i < MAX_NAMES && strlen(last) < sizeof disk.names[i]);
  strcpy(disk.names[i], last);
  return i;
}

static bool is_of_directory(kind kind) {
  return kind == CREATE || kind == DELETE;
}

static void note_synced(const change *sync) {
  for (int i = 0; i < disk.count; i++) {
    change *c = &disk.changes[i];
    bool covered = sync->kind == SYNC_DIRECTORY
                       ? is_of_directory(c->kind)
                       : !is_of_directory(c->kind) && c->file == sync->file;
    if (covered && c->synced_at == INT_MAX) c->synced_at = disk.count;
  }
}

static void record(kind kind, int name, sqlite3_int64 at, int size, const void *bytes) {
  if (name < 0) return;
  if (disk.count == disk.room) {
    disk.room = disk.room == 0 ? 1024 : 2 * disk.room;
    disk.changes = realloc(disk.changes, (size_t)disk.room * sizeof *disk.changes);
    assert(disk.changes != NULL);
  }
  if (kind == CREATE) disk.files[name] = disk.files_count++;
  assert(disk.files_count <= MAX_FILES);
  change *c = &disk.changes[disk.count];
  *c = (change){.kind = kind, .name = name, .file = disk.files[name], .at = at, .size = size};
  c->synced_at = INT_MAX;
  if (bytes != NULL) {
    c->bytes = malloc((size_t)size);
    assert(c->bytes != NULL);
    memcpy(c->bytes, bytes, (size_t)size);
  }
  disk.count++;
  if (kind >= SYNC) note_synced(c);
}

int disk_changes(void) {
  return disk.count;
}

bool is_sync(int n) {
  return disk.changes[n - 1].kind >= SYNC;
}

/* --- Files ----------------------------------------------------------------------------------- */

static int write_file(sqlite3_file *f, const void *bytes, int size, sqlite3_int64 at) {
  record(WRITE, ((file *)f)->name, at, size, bytes);
  return PASS(f, xWrite, bytes, size, at);
}

static int truncate_file(sqlite3_file *f, sqlite3_int64 size) {
  record(TRUNCATE, ((file *)f)->name, size, 0, NULL);
  return PASS(f, xTruncate, size);
}

/* Like the real VFS, the first sync of a journal or log also syncs its directory. */
static int sync_file(sqlite3_file *base, int flags) {
  (void)flags;
  file *f = (file *)base;
  record(SYNC, f->name, 0, 0, NULL);
  if (f->new_in_folder) record(SYNC_DIRECTORY, f->name, 0, 0, NULL);
  f->new_in_folder = false;
  return SQLITE_OK;
}

static int open_file(sqlite3_vfs *vfs, const char *name, sqlite3_file *base, int flags,
                     int *given) {
  file *f = (file *)base;
  int there = 1;
  f->name = -1;
  f->new_in_folder = false;
  if (name != NULL && (flags & SQLITE_OPEN_CREATE) != 0)
    real_vfs()->xAccess(real_vfs(), name, SQLITE_ACCESS_EXISTS, &there);
  int code = open_real(vfs, name, base, flags, given);
  if (code != SQLITE_OK) return code;
  base->pMethods = &methods;
  if (name != NULL && (flags & SQLITE_OPEN_DELETEONCLOSE) == 0) f->name = number_of(name);
  if (!there) {
    record(CREATE, f->name, 0, 0, NULL);
    f->new_in_folder = (flags & (SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_WAL)) != 0;
  }
  return SQLITE_OK;
}

static int delete_file(sqlite3_vfs *vfs, const char *name, int sync_directory) {
  (void)vfs;
  int code = real_vfs()->xDelete(real_vfs(), name, 0);
  if (code != SQLITE_OK) return code;
  record(DELETE, number_of(name), 0, 0, NULL);
  if (sync_directory) record(SYNC_DIRECTORY, number_of(name), 0, 0, NULL);
  return SQLITE_OK;
}

static void discard_records(void) {
  for (int i = 0; i < disk.count; i++)
    free(disk.changes[i].bytes);
  free(disk.changes);
  memset(&disk, 0, sizeof disk);
}

void begin_disk(void) {
  discard_records();
  methods = PASS_ON;
  methods.xWrite = write_file;
  methods.xTruncate = truncate_file;
  methods.xSync = sync_file;
  begin_wrapper(&recording, "recording", sizeof(file), open_file, delete_file);
}

void end_disk(void) {
  end_wrapper(&recording);
}

/* --- Cutting the power ----------------------------------------------------------------------- */

/* A random number below `limit`. Each cut has its own seed, so that it does not affect other random
** sequences. */
static int chance(unsigned *seed, int limit) {
  *seed = *seed * 1103515245u + 12345u;
  return (int)((*seed >> 16) % (unsigned)limit);
}

/* The contents of a file after the cut. */
typedef struct image {
  char *bytes;
  sqlite3_int64 size;
} image;

static void resize(image *m, sqlite3_int64 size) {
  m->bytes = realloc(m->bytes, (size_t)size + 1);
  assert(m->bytes != NULL);
  if (size > m->size) memset(m->bytes + m->size, 0, (size_t)(size - m->size));
  m->size = size;
}

static void apply_write(image *m, const change *c, int size) {
  if (size == 0) return;
  if (c->at + size > m->size) resize(m, c->at + size);
  memcpy(m->bytes + c->at, c->bytes, (size_t)size);
}

/* How many bytes of a write reached the disk. A partial write ends at the end of a sector. */
static int torn(const change *c, unsigned *seed) {
  sqlite3_int64 end = c->at + chance(seed, c->size + 1);
  end -= end % SECTOR;
  return end <= c->at ? 0 : (int)(end - c->at);
}

static void apply(image *m, const change *c, int size) {
  if (c->kind == WRITE) apply_write(m, c, size);
  if (c->kind == TRUNCATE && c->at < m->size) resize(m, c->at);
}

void cut_power(int changes, unsigned seed, const char *directory) {
  enum { NOTHING, ALL, PART, OUTCOMES };
  image images[MAX_FILES] = {{NULL, 0}};
  int files[MAX_NAMES];
  bool random = seed > 0;
  for (int i = 0; i < MAX_NAMES; i++)
    files[i] = -1;
  for (int i = 0; i < changes; i++) {
    const change *c = &disk.changes[i];
    int outcome = c->synced_at <= changes ? ALL : random ? chance(&seed, OUTCOMES) : NOTHING;
    if (outcome == NOTHING) continue;
    if (is_of_directory(c->kind))
      files[c->name] = c->kind == CREATE ? c->file : -1;
    else
      apply(&images[c->file], c, outcome == PART ? torn(c, &seed) : c->size);
  }
  for (int i = 0; i < MAX_NAMES && disk.names[i][0] != '\0'; i++) {
    char path[80];
    snprintf(path, sizeof path, "%s/%s", directory, disk.names[i]);
    remove(path);
    if (files[i] < 0) continue;
    const image *m = &images[files[i]];
    FILE *f = fopen(path, "wb");
    assert(f != NULL);
    if (m->size > 0) fwrite(m->bytes, 1, (size_t)m->size, f);
    fclose(f);
  }
  for (int i = 0; i < MAX_FILES; i++)
    free(images[i].bytes);
}

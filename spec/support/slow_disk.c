/*
** A slow disk, for the specs; loaded with LD_PRELOAD. If the environment has OUTBOX_SYNCED, it does
** not slow down, but appends the path of each synchronized file to the file of that name.
*/
#define _DEFAULT_SOURCE

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int note(const char *log, int fd) {
  char link[64], path[4096] = "";
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  if (readlink(link, path, sizeof path - 1) < 0) return -1;
  FILE *file = fopen(log, "a");
  if (!file) return -1;
  fprintf(file, "%s\n", path);
  return fclose(file);
}

static int sync_slowly(int fd) {
  const char *log = getenv("OUTBOX_SYNCED");
  return log ? note(log, fd) : usleep(300000);
}

int fsync(int fd) {
  return sync_slowly(fd);
}

int fdatasync(int fd) {
  return sync_slowly(fd);
}

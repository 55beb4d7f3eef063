/*
** A disk that takes its time, for the specs: to be preloaded.
*/
#define _DEFAULT_SOURCE

#include <unistd.h>

static int sync_slowly(int fd) {
  (void)fd;
  return usleep(300000);
}

int fsync(int fd) {
  return sync_slowly(fd);
}

int fdatasync(int fd) {
  return sync_slowly(fd);
}

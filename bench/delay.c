/*
** A distant server, for the benchmarks: passes bytes on between a port of this machine and a Unix
** socket, and holds them for a while each way. Prints the port. Ends when its input does.
**
**     delay SOCKET MICROSECONDS
*/
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CHUNK 65536
#define CHUNKS 1024 /* under way in one direction; then nothing more is read */

typedef struct chunk {
  double due;
  ssize_t size;
  char data[CHUNK];
} chunk;

typedef struct direction {
  int from, to;
  unsigned first, next; /* chunks under way, counted from the start */
  chunk *chunks;
} direction;

static void check(bool ok, const char *what) {
  if (ok) return;
  perror(what);
  exit(1);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Returns false at the end. */
static bool take(direction *d, double delay) {
  chunk *chunk = &d->chunks[d->next % CHUNKS];
  chunk->size = read(d->from, chunk->data, CHUNK);
  chunk->due = now() + delay;
  if (chunk->size > 0) d->next++;
  return chunk->size > 0;
}

static bool give(direction *d) {
  for (; d->first != d->next && d->chunks[d->first % CHUNKS].due <= now(); d->first++) {
    chunk *chunk = &d->chunks[d->first % CHUNKS];
    for (ssize_t done = 0, n; done < chunk->size; done += n) {
      n = write(d->to, chunk->data + done, (size_t)(chunk->size - done));
      if (n <= 0) return false;
    }
  }
  return true;
}

static void wait_for(struct pollfd *fds, const direction *directions) {
  double until = now() + 1;
  for (int i = 0; i < 2; i++) {
    const direction *d = &directions[i];
    bool full = d->next - d->first == CHUNKS;
    fds[i] = (struct pollfd){.fd = full ? -1 : d->from, .events = POLLIN};
    if (d->first != d->next && d->chunks[d->first % CHUNKS].due < until)
      until = d->chunks[d->first % CHUNKS].due;
  }
  double left = until - now();
  struct timespec time = {0};
  if (left > 0) time = (struct timespec){(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};
  ppoll(fds, 2, &time, NULL);
}

static void pass_on(int client, int server, double delay) {
  direction directions[2] = {{.from = client, .to = server}, {.from = server, .to = client}};
  struct pollfd fds[2];
  bool open = true;
  for (int i = 0; i < 2; i++) {
    directions[i].chunks = malloc(CHUNKS * sizeof(chunk));
    check(directions[i].chunks != NULL, "malloc");
  }
  while (open) {
    wait_for(fds, directions);
    for (int i = 0; i < 2 && open; i++)
      if (fds[i].revents != 0) open = take(&directions[i], delay);
    for (int i = 0; i < 2 && open; i++)
      open = give(&directions[i]);
  }
}

static int reach(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  int server = socket(AF_UNIX, SOCK_STREAM, 0);
  snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
  check(connect(server, (struct sockaddr *)&address, sizeof address) == 0, path);
  return server;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  signal(SIGCHLD, SIG_IGN);
  check(bind(listener, (struct sockaddr *)&address, size) == 0, "bind");
  check(listen(listener, 16) == 0, "listen");
  check(getsockname(listener, (struct sockaddr *)&address, &size) == 0, "getsockname");
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);
  for (;;) {
    struct pollfd fds[2] = {{.fd = listener, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    char byte;
    poll(fds, 2, -1);
    if (fds[1].revents != 0 && read(0, &byte, 1) <= 0) return 0;
    if ((fds[0].revents & POLLIN) == 0) continue;
    int client = accept(listener, NULL, NULL);
    if (client < 0) continue;
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (fork() == 0) {
      close(listener);
      pass_on(client, reach(argv[1]), atof(argv[2]) / 1e6);
      _exit(0);
    }
    close(client);
  }
}

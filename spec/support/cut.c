/*
** Cuts connections to a PostgreSQL server at a point of their protocol, for the specs. A proxy in a
** process of its own is between the specs and the server.
**
**     pid = cut.proxy(socket, server)   between the path of a socket and that of the server's
**     cut.arm(way, n [, again])   cuts at the n-th point, and so many points after that again
**     was_cut, ends, left = cut.look()   ends: of round trips; left: the server is not done yet
**
** The points are the start of a connection, each statement, and the end of each round trip, at
** which the server commits. Below 0, n counts the ends alone.
*/
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */

#include <lauxlib.h>
#include <lua.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum way {
  PASS,
  BEFORE, /* the server does not get the message */
  AFTER,  /* the server has done it, and the client gets nothing of the answer */
  HALF,   /* the client gets the answer, but not the end of the round trip */
  LEAVE,  /* the client has lost the connection while the server ends the round trip */
  KILL    /* the server's process is ended while it is at work */
};
static const char *const WAYS[] = {"pass", "before", "after", "half", "leave", "kill", NULL};

/* In memory that the proxy and its children see, too. */
static struct control { atomic_int points, ends, at, again, way, was_cut, left; } * control;

typedef struct passage {
  int client, server, backend; /* two sockets; the server's process */
  int statements, answered;    /* in this round trip */
  bool leaves;                 /* it is to be left at its end */
  char *message;               /* its type, its length, the rest; at the start there is no type */
  size_t size;
} passage;

static size_t number(const char *at) {
  const unsigned char *n = (const unsigned char *)at;
  return (size_t)n[0] << 24 | (size_t)n[1] << 16 | (size_t)n[2] << 8 | n[3];
}

static bool take(passage *p, int from, size_t header) {
  char head[5];
  if (recv(from, head, header, MSG_WAITALL) != (ssize_t)header) return false;
  size_t rest = number(head + header - 4) - 4;
  p->size = header + rest;
  p->message = realloc(p->message, p->size);
  if (p->message == NULL) return false;
  memcpy(p->message, head, header);
  return rest == 0 || recv(from, p->message + header, rest, MSG_WAITALL) == (ssize_t)rest;
}

/* The messages are small: a socket takes each as a whole. */
static bool give(int to, const passage *p) {
  return send(to, p->message, p->size, MSG_NOSIGNAL) == (ssize_t)p->size;
}

static enum way arrive(bool ends) {
  int point = ++control->points, end = ends ? ++control->ends : 0;
  if (control->at != point && (!ends || control->at != -end)) return PASS;
  int again = atomic_exchange(&control->again, 0);
  control->at = again > 0 ? point + again : 0;
  control->was_cut = true;
  return (enum way)control->way;
}

/* Takes a message of the server's. An answer that was flushed ends with that of the statement. */
static bool hear(passage *p, bool flushed, bool *last) {
  if (!take(p, p->server, 5)) return false;
  char type = p->message[0];
  if (type == 'K') p->backend = (int)number(p->message + 5);
  if (strchr("CIE", type) != NULL) p->answered++; /* a statement is complete, or has failed */
  *last = type == 'Z' || (flushed && (type == 'E' || p->answered == p->statements));
  if (type == 'Z') p->statements = p->answered = 0;
  return true;
}

/* Passes the answer on, as far as the client is to get it. Returns whether the connection lives. */
static bool answer(passage *p, enum way way, bool flushed) {
  bool last = false;
  control->left |= way == LEAVE;
  if (way == LEAVE) shutdown(p->client, SHUT_RDWR);
  while (!last || way == KILL) {
    if (way == KILL && p->backend != 0) {
      if (kill(p->backend, SIGTERM) != 0) return false;
      p->backend = 0;
    }
    if (!hear(p, flushed, &last)) break;
    bool hides = way == AFTER || way == LEAVE || (way == HALF && last && !flushed);
    if (!hides && !give(p->client, p)) return false;
  }
  if (way == LEAVE) control->left = false;
  return way == PASS && last;
}

/* Passes a message of the client's on, and what the server answers. */
static bool ask(passage *p, bool starts) {
  if (!take(p, p->client, starts ? 4 : 5)) return false;
  char type = p->message[0];
  bool ends = starts || type == 'Q' || type == 'S', executes = !starts && type == 'E';
  enum way way = ends || executes ? arrive(ends) : PASS;
  p->statements += executes;
  p->leaves |= way == LEAVE;
  if (p->leaves) way = ends ? LEAVE : PASS;
  if (way == BEFORE || !give(p->server, p)) return false;
  if (ends) return answer(p, way, false);
  return way == PASS ||
         (send(p->server, "H\0\0\0\4", 5, MSG_NOSIGNAL) == 5 && answer(p, way, true));
}

static void pass_on(passage *p) {
  bool open = ask(p, true), last;
  while (open) {
    struct pollfd fds[] = {{p->client, POLLIN, 0}, {p->server, POLLIN, 0}};
    poll(fds, 2, -1);
    if (fds[0].revents != 0)
      open = ask(p, false);
    else /* a notification, or why the connection ends */
      open = hear(p, false, &last) && give(p->client, p);
  }
}

static int make_socket(const char *path, struct sockaddr_un *address) {
  *address = (struct sockaddr_un){.sun_family = AF_UNIX};
  snprintf(address->sun_path, sizeof address->sun_path, "%s", path);
  return socket(AF_UNIX, SOCK_STREAM, 0);
}

/* Ends with the process of the specs, too. */
static void run(int listener, const char *server, pid_t specs) {
  struct sockaddr_un address;
  struct pollfd fd = {.fd = listener, .events = POLLIN};
  signal(SIGCHLD, SIG_IGN);
  while (getppid() == specs) {
    if (poll(&fd, 1, 1000) <= 0) continue;
    passage p = {.client = accept(listener, NULL, NULL)};
    if (fork() == 0) {
      close(listener);
      p.server = make_socket(server, &address);
      if (connect(p.server, (struct sockaddr *)&address, sizeof address) == 0) pass_on(&p);
      _exit(0);
    }
    close(p.client);
  }
  _exit(0);
}

static int cut_proxy(lua_State *L) {
  struct sockaddr_un address;
  const char *server = luaL_checkstring(L, 2);
  int listener = make_socket(luaL_checkstring(L, 1), &address);
  pid_t specs = getpid();
  control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (control == MAP_FAILED || bind(listener, (struct sockaddr *)&address, sizeof address) != 0 ||
      listen(listener, 9) != 0)
    return luaL_error(L, "there can be no proxy");
  pid_t pid = fork();
  if (pid == 0) run(listener, server, specs);
  close(listener);
  lua_pushinteger(L, pid);
  return 1;
}

static int cut_arm(lua_State *L) {
  control->way = luaL_checkoption(L, 1, NULL, WAYS);
  control->again = (int)luaL_optinteger(L, 3, 0);
  control->points = control->ends = control->was_cut = control->left = 0;
  control->at = (int)luaL_checkinteger(L, 2);
  return 0;
}

static int cut_look(lua_State *L) {
  lua_pushboolean(L, control->was_cut);
  lua_pushinteger(L, control->ends);
  lua_pushboolean(L, control->left);
  return 3;
}

int luaopen_cut(lua_State *L);

int luaopen_cut(lua_State *L) {
  static const luaL_Reg FUNCTIONS[] = {
      {"proxy", cut_proxy}, {"arm", cut_arm}, {"look", cut_look}, {NULL, NULL}};
  luaL_newlib(L, FUNCTIONS);
  return 1;
}

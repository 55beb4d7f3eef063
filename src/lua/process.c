/*
** This process: its name, and the signals that end it. For the processor and the command.
*/
#define _DEFAULT_SOURCE
#define _DARWIN_C_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/select.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

/***
Returns a name of this process for people to read: the host's name, "-", and the process id.
@function process_name
@treturn string
*/
static int process_name(lua_State *L) {
  char host[256];
  if (gethostname(host, sizeof host) != 0) host[0] = '\0';
  host[sizeof host - 1] = '\0';
  lua_pushfstring(L, "%s-%d", host, (int)getpid());
  return 1;
}

/* --- Signals --------------------------------------------------------------------------------- */

static const struct {
  int number;
  const char *name;
} ENDING[] = {{SIGINT, "SIGINT"}, {SIGTERM, "SIGTERM"}, {SIGHUP, "SIGHUP"}};
#define ENDINGS ((int)(sizeof ENDING / sizeof *ENDING))

#define GRACE_NS INT64_C(2000000000) /* see handle() */

static volatile sig_atomic_t caught;
static struct timespec caught_at;
static int ends[2] = {-1, -1}; /* a pipe: a signal just before a sleep must end that sleep too */

static pid_t owner;                      /* the process that catches; not one that it has forked */
static int users;                        /* calls of catch_signals that were not released */
static struct sigaction former[ENDINGS]; /* what was done before, */
static bool taken[ENDINGS];              /* where it was something else */
static struct sigaction former_pipe;     /* and at SIGPIPE */

static int64_t since_caught(const struct timespec *now) {
  return (int64_t)(now->tv_sec - caught_at.tv_sec) * 1000000000 + now->tv_nsec - caught_at.tv_nsec;
}

/*
** The program acts on the first signal itself. A signal that comes two seconds later, or more, ends
** the program. Not one that comes at once, because some senders send two: `timeout` to its child
** and then to the whole group.
*/
static void handle(int number) {
  int error = errno;
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (getpid() == owner && caught == 0) {
    caught = number;
    caught_at = now;
    while (write(ends[1], "", 1) < 0 && errno == EINTR)
      continue;
  } else if (getpid() != owner || since_caught(&now) >= GRACE_NS) {
    signal(number, SIG_DFL);
    raise(number);
  }
  errno = error;
}

static void ignore(int number) {
  (void)number;
}

/* Leaves signals alone that are ignored: nohup, for example, has its reason. */
static void take(int i) {
  struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART}, old;
  for (int other = 0; other < ENDINGS; other++)
    sigaddset(&action.sa_mask, ENDING[other].number);
  if (sigaction(ENDING[i].number, NULL, &old) != 0 || old.sa_handler == SIG_IGN ||
      old.sa_handler == handle)
    return;
  former[i] = old;
  taken[i] = sigaction(ENDING[i].number, &action, NULL) == 0;
}

static void give_back(int i) {
  struct sigaction now;
  if (taken[i] && sigaction(ENDING[i].number, NULL, &now) == 0 && now.sa_handler == handle)
    sigaction(ENDING[i].number, &former[i], NULL);
  taken[i] = false;
}

static void ignore_broken_pipes(void) {
  struct sigaction action = {.sa_handler = ignore, .sa_flags = SA_RESTART}, old;
  if (sigaction(SIGPIPE, NULL, &old) != 0 || old.sa_handler == SIG_IGN || old.sa_handler == ignore)
    return;
  former_pipe = old;
  sigaction(SIGPIPE, &action, NULL);
}

static void close_ends(void) {
  for (int i = 0; i < 2 && ends[i] >= 0; i++) {
    close(ends[i]);
    ends[i] = -1;
  }
}

/* Before this code is unloaded, at the end of a Lua state: a signal after that must not call it. */
__attribute__((destructor)) static void give_all_back(void) {
  struct sigaction now;
  for (int i = 0; i < ENDINGS; i++)
    give_back(i);
  if (sigaction(SIGPIPE, NULL, &now) == 0 && now.sa_handler == ignore)
    sigaction(SIGPIPE, &former_pipe, NULL);
  close_ends();
}

/* In a process that was forked, forgets what belongs to the one that has forked it. */
static void own(void) {
  if (owner == getpid()) return;
  close_ends();
  caught = 0;
  users = 0;
  owner = getpid();
}

static void push_caught(lua_State *L) {
  for (int i = 0; i < ENDINGS; i++)
    if (caught == ENDING[i].number) {
      lua_pushstring(L, ENDING[i].name);
      return;
    }
  lua_pushnil(L);
}

/***
Catches signals that end a process, unless they are ignored. From now on the first of them does not
end this process, and `await_signal` returns its name. A signal that comes two seconds later, or
more, ends the process all the same. Child processes are not affected.
@function catch_signals
@tparam[opt] string ... their names: "SIGINT", "SIGTERM" or "SIGHUP". Without a name: all three, and
SIGPIPE no longer ends this process either: a write to a pipe that nobody reads fails instead
@raise what the system says, when no pipe can be made
*/
static int catch_signals(lua_State *L) {
  bool wanted[ENDINGS] = {false};
  static const char *const NAMES[] = {"SIGINT", "SIGTERM", "SIGHUP", NULL};
  for (int argument = 1; argument <= lua_gettop(L); argument++)
    wanted[luaL_checkoption(L, argument, NULL, NAMES)] = true;
  own();
  if (ends[0] < 0 && shim_pipe(ends) != 0) return luaL_error(L, "%s", strerror(errno));
  for (int i = 0; i < 2; i++)
    fcntl(ends[i], F_SETFL, O_NONBLOCK);
  for (int i = 0; i < ENDINGS; i++)
    if (lua_gettop(L) == 0 || wanted[i]) take(i);
  if (lua_gettop(L) == 0) ignore_broken_pipes();
  users++;
  return 0;
}

/***
Undoes one call of `catch_signals`. With the last of them the signals do again what they did before,
and the signal that was caught is forgotten.
@function release_signals
@treturn ?string the name of the first signal that was caught; nil without one
*/
static int release_signals(lua_State *L) {
  if (owner == getpid() && users > 0 && --users == 0)
    for (int i = 0; i < ENDINGS; i++)
      give_back(i);
  push_caught(L);
  if (users == 0) {
    char bytes[8];
    caught = 0;
    while (ends[0] >= 0 && read(ends[0], bytes, sizeof bytes) > 0)
      continue;
  }
  return 1;
}

static void wait_precisely(int a, int b, int64_t microseconds) {
  struct timespec time = {.tv_sec = microseconds / 1000000,
                          .tv_nsec = microseconds % 1000000 * 1000};
  fd_set wanted;
  FD_ZERO(&wanted);
  if (a >= 0) FD_SET(a, &wanted);
  if (b >= 0) FD_SET(b, &wanted);
  pselect(FD_SETSIZE, &wanted, NULL, NULL, &time, NULL);
}

/* The same to a millisecond: select() knows only the lowest descriptors. */
static void wait_for_many(int a, int b, int64_t microseconds) {
  struct pollfd wanted[] = {{.fd = a, .events = POLLIN}, {.fd = b, .events = POLLIN}};
  poll(wanted, 2, (int)((microseconds + 999) / 1000));
}

/***
Sleeps until `catch_signals` catches a signal. Returns at once if it has caught one before.
@function await_signal
@tparam number seconds how long to sleep at most; one hour where this is more
@tparam[opt] integer fd a descriptor; the sleep also ends when it becomes readable
@treturn ?string the name of the first signal that was caught; nil without one
*/
static int await_signal(lua_State *L) {
  static const int64_t HOUR = INT64_C(3600000000);
  int64_t left = shim_check_microseconds(L, 1);
  lua_Integer fd = luaL_optinteger(L, 2, -1);
  left = left < 0 ? 0 : left < HOUR ? left : HOUR;
  if (ends[0] < FD_SETSIZE && fd < FD_SETSIZE)
    wait_precisely(ends[0], (int)fd, left);
  else
    wait_for_many(ends[0], (int)fd, left);
  push_caught(L);
  return 1;
}

/***
Returns the descriptor that is readable from when `catch_signals` has caught a signal until the last
`release_signals`.
@function signal_fd
@treturn ?integer nil where this process catches none
*/
static int signal_fd(lua_State *L) {
  if (owner == getpid() && users > 0)
    lua_pushinteger(L, ends[0]);
  else
    lua_pushnil(L);
  return 1;
}

static const luaL_Reg FUNCTIONS[] = {
    {"process_name", process_name},       {"catch_signals", catch_signals},
    {"await_signal", await_signal},       {"signal_fd", signal_fd},
    {"release_signals", release_signals}, {NULL, NULL}};

void shim_open_process(lua_State *L) {
  luaL_setfuncs(L, FUNCTIONS, 0);
}

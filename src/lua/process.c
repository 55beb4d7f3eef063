/*
** This process: its name, and the signals that end it. For the processor and the command.
*/
#define _DEFAULT_SOURCE
#define _DARWIN_C_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
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

static const int ENDING[] = {SIGINT, SIGTERM, SIGHUP};
#define ENDINGS (sizeof ENDING / sizeof *ENDING)

static volatile sig_atomic_t caught;
static struct timespec caught_at;
static int ends[2] = {-1, -1}; /* a pipe: a signal just before a sleep must end that sleep too */

/*
** The program acts on the first signal itself. A signal that comes two seconds later, or more, ends
** the program. Not one that comes at once, because some senders send two: `timeout` to its child
** and then to the whole group.
*/
static void handle(int number) {
  int error = errno;
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (caught == 0) {
    caught = number;
    caught_at = now;
    while (write(ends[1], "", 1) < 0 && errno == EINTR)
      continue;
  } else if (now.tv_sec - caught_at.tv_sec > 1) {
    signal(number, SIG_DFL);
    raise(number);
  }
  errno = error;
}

static void ignore(int number) {
  (void)number;
}

static void set_handler(int number, const struct sigaction *action) {
  struct sigaction old;
  if (sigaction(number, NULL, &old) == 0 && old.sa_handler != SIG_IGN)
    sigaction(number, action, NULL);
}

/***
Catches SIGINT, SIGTERM and SIGHUP, unless they are ignored. From now on the first of them does not
end this process, and `await_signal` returns its name. A signal that comes two seconds later, or
more, ends the process all the same. SIGPIPE no longer ends it either: a write to a pipe that nobody
reads fails instead. Child processes are not affected.
@function catch_signals
@raise what the system says, when no pipe can be made
*/
static int catch_signals(lua_State *L) {
  if (ends[0] < 0 && pipe(ends) != 0) return luaL_error(L, "%s", strerror(errno));
  for (int i = 0; i < 2; i++)
    fcntl(ends[i], F_SETFD, FD_CLOEXEC);
  struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
  struct sigaction nothing = {.sa_handler = ignore, .sa_flags = SA_RESTART};
  for (size_t i = 0; i < ENDINGS; i++)
    sigaddset(&action.sa_mask, ENDING[i]);
  for (size_t i = 0; i < ENDINGS; i++)
    set_handler(ENDING[i], &action);
  set_handler(SIGPIPE, &nothing);
  return 0;
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
  struct timespec time = {.tv_sec = left / 1000000, .tv_nsec = left % 1000000 * 1000};
  fd_set wanted;
  FD_ZERO(&wanted);
  if (ends[0] >= 0 && ends[0] < FD_SETSIZE) FD_SET(ends[0], &wanted);
  if (fd >= 0 && fd < FD_SETSIZE) FD_SET((int)fd, &wanted);
  pselect(FD_SETSIZE, &wanted, NULL, NULL, &time, NULL);
  if (caught == 0) return 0;
  lua_pushstring(L, caught == SIGINT ? "SIGINT" : caught == SIGTERM ? "SIGTERM" : "SIGHUP");
  return 1;
}

static const luaL_Reg FUNCTIONS[] = {{"process_name", process_name},
                                     {"catch_signals", catch_signals},
                                     {"await_signal", await_signal},
                                     {NULL, NULL}};

void shim_open_process(lua_State *L) {
  luaL_setfuncs(L, FUNCTIONS, 0);
}

/***
This process: its name, the signals that end it, its terminal. For the processor and the command.
@module outbox.core
*/
#define _DEFAULT_SOURCE
#define _DARWIN_C_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

/***
This process's name for people: the host's and its number.
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
** The first signal is for the program to act on. One that comes later ends it; not at once, for
** some send two: `timeout` to its child and then to the whole group.
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
From now on SIGINT, SIGTERM and SIGHUP, unless they are ignored, do not end this process: what has
come, `await_signal` tells. One that comes a while after the first ends it all the same. And a write
to a pipe that nobody reads fails instead of ending it; its children are not concerned.
@function catch_signals
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
Sleeps until a signal is caught; not at all if one was caught before.
@function await_signal
@tparam number seconds at most that long
@tparam[opt] integer fd a descriptor; sleeps no longer than until it is readable
@treturn ?string the signal's name
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

/***
The size of the terminal that a file is.
@function terminal_size
@tparam file file
@treturn ?integer columns, nil where it is no terminal; 0 where that does not know
@treturn ?integer rows
*/
static int terminal_size(lua_State *L) {
  luaL_Stream *stream = luaL_checkudata(L, 1, LUA_FILEHANDLE);
  struct winsize size;
  if (stream->closef == NULL || ioctl(fileno(stream->f), TIOCGWINSZ, &size) != 0) return 0;
  lua_pushinteger(L, size.ws_col);
  lua_pushinteger(L, size.ws_row);
  return 2;
}

static const luaL_Reg FUNCTIONS[] = {{"process_name", process_name},
                                     {"catch_signals", catch_signals},
                                     {"await_signal", await_signal},
                                     {"terminal_size", terminal_size},
                                     {NULL, NULL}};

void shim_open_process(lua_State *L) {
  luaL_setfuncs(L, FUNCTIONS, 0);
}

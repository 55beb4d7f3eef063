/*
** Worker processes of the command: starts them, reads their pipes, stops them, waits for them.
*/
#define _DEFAULT_SOURCE
#define _DARWIN_C_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "shim.h"

static int close_stream(lua_State *L) {
  luaL_Stream *stream = luaL_checkudata(L, 1, LUA_FILEHANDLE);
  return luaL_fileresult(L, fclose(stream->f) == 0, NULL);
}

/* A worker ends by itself when its parent does: it gets a SIGTERM, where the system knows how. */
static void follow(pid_t parent) {
#ifdef __linux__
  prctl(PR_SET_PDEATHSIG, SIGTERM);
#endif
  if (getppid() != parent) raise(SIGTERM);
}

/***
Forks this process. The child, called a worker, has a pipe to its parent, which no program that it
starts inherits. On Linux it gets a SIGTERM when its parent dies.

No store may be open: the child could not open any.
@function fork
@treturn integer the worker's process id; 0 in the worker
@treturn integer|file the end of the pipe: the descriptor to `read_pipe` from; in the worker, an
unbuffered file to write to
@raise what the system says
*/
static int fork_worker(lua_State *L) {
  int ends[2];
  pid_t parent = getpid();
  luaL_Stream *stream = lua_newuserdatauv(L, sizeof *stream, 0);
  stream->closef = NULL; /* closed */
  luaL_setmetatable(L, LUA_FILEHANDLE);
  fflush(NULL); /* because both would write what lies in the buffers */
  if (shim_pipe(ends) != 0) return luaL_error(L, "%s", strerror(errno));
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  pid_t pid = fork();
  int error = errno;
  lua_pushinteger(L, pid);
  if (pid != 0) close(ends[1]);
  if (pid <= 0) close(ends[0]);
  if (pid < 0) return luaL_error(L, "%s", strerror(error));
  if (pid > 0) {
    lua_pushinteger(L, ends[0]);
    return 2;
  }
  follow(parent);
  stream->f = fdopen(ends[1], "w");
  if (stream->f == NULL) _exit(1);
  setvbuf(stream->f, NULL, _IONBF, 0);
  stream->closef = close_stream;
  lua_insert(L, -2);
  return 2;
}

/***
Reads what lies in a worker's pipe. Does not wait.
@function read_pipe
@tparam integer fd
@treturn ?string nil when the worker has ended, and there is nothing more
*/
static int read_pipe(lua_State *L) {
  char bytes[4096];
  ssize_t size;
  int fd = (int)luaL_checkinteger(L, 1);
  do
    size = read(fd, bytes, sizeof bytes);
  while (size < 0 && errno == EINTR);
  if (size == 0 || (size < 0 && errno != EAGAIN)) return 0;
  lua_pushlstring(L, bytes, size > 0 ? (size_t)size : 0);
  return 1;
}

/***
Waits until something can be read from one of some pipes, or other descriptors.
@function await_pipes
@tparam number seconds how long to wait at most; one hour where this is more
@tparam ?integer ... descriptors; nil is none
*/
static int await_pipes(lua_State *L) {
  static const int64_t HOUR = INT64_C(3600000000);
  int64_t left = shim_check_microseconds(L, 1);
  int count = lua_gettop(L) - 1;
  struct pollfd *wanted = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *wanted, 0);
  for (int i = 0; i < count; i++)
    wanted[i] = (struct pollfd){.fd = (int)luaL_optinteger(L, i + 2, -1), .events = POLLIN};
  left = left < 0 ? 0 : left < HOUR ? left : HOUR;
  poll(wanted, (nfds_t)count, (int)((left + 999) / 1000));
  return 0;
}

/***
Closes a worker's pipe.
@function close_pipe
@tparam integer fd
*/
static int close_pipe(lua_State *L) {
  close((int)luaL_checkinteger(L, 1));
  return 0;
}

/***
Sends a worker a SIGTERM, which tells it to stop.
@function stop_worker
@tparam integer pid
*/
static int stop_worker(lua_State *L) {
  kill((pid_t)luaL_checkinteger(L, 1), SIGTERM);
  return 0;
}

/***
Waits until a worker has ended.
@function await_worker
@tparam integer pid
@treturn string "exit" or "signal"
@treturn integer the exit status, or the number of the signal that has ended it
*/
static int await_worker(lua_State *L) {
  int status;
  pid_t ended, pid = (pid_t)luaL_checkinteger(L, 1);
  do
    ended = waitpid(pid, &status, 0);
  while (ended < 0 && errno == EINTR);
  if (ended < 0) return luaL_error(L, "%s", strerror(errno));
  lua_pushstring(L, WIFEXITED(status) ? "exit" : "signal");
  lua_pushinteger(L, WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
  return 2;
}

static const luaL_Reg FUNCTIONS[] = {{"fork", fork_worker},
                                     {"read_pipe", read_pipe},
                                     {"await_pipes", await_pipes},
                                     {"close_pipe", close_pipe},
                                     {"stop_worker", stop_worker},
                                     {"await_worker", await_worker},
                                     {NULL, NULL}};

void shim_open_worker(lua_State *L) {
  luaL_setfuncs(L, FUNCTIONS, 0);
}

/*
** Processes, for the specs: Lua cannot fork.
**
**     pid = process.fork(fn)      a child that runs fn and exits: 0, or 1 if fn raised
**     code, pid = process.wait([pid])   its exit code, or minus the signal that ended it;
**                                       without a pid, that of the first child to end
**     process.kill(pid [, signal])      by default SIGKILL
**     process.on_term(fn)         has SIGTERM run fn, as lua5.4 has SIGINT raise: by a hook
**     ended = process.ended(pid)  whether that child has ended; for wait to tell how
**     pid = process.pid()         this one's
**     gate = process.gate()       gate:wait() blocks, in children, until gate:open() in the parent
*/
#define _POSIX_C_SOURCE 200809L

#include <lauxlib.h>
#include <lua.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define GATE "process.gate"

static lua_State *terminated; /* where the signal goes, as in lua.c */

static int process_fork(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  fflush(NULL);
  lua_gc(L, LUA_GCCOLLECT); /* closes stores that nobody holds: a child must not inherit them */
  lua_gc(L, LUA_GCCOLLECT);
  pid_t pid = fork();
  if (pid < 0) return luaL_error(L, "fork failed");
  if (pid == 0) {
    int status = lua_pcall(L, 0, 0, 0);
    if (status != LUA_OK) fprintf(stderr, "child: %s\n", luaL_tolstring(L, -1, NULL));
    fflush(NULL);
    if (getenv("OUTBOX_LINES") != NULL) exit(status != LUA_OK); /* gcov's counts are written then */
    _exit(status != LUA_OK);
  }
  lua_pushinteger(L, pid);
  return 1;
}

static int process_wait(lua_State *L) {
  int status;
  pid_t pid = waitpid((pid_t)luaL_optinteger(L, 1, -1), &status, 0);
  if (pid < 0) return luaL_error(L, "no such child");
  lua_pushinteger(L, WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status));
  lua_pushinteger(L, pid);
  return 2;
}

static int process_kill(lua_State *L) {
  int signal = (int)luaL_optinteger(L, 2, SIGKILL);
  if (kill((pid_t)luaL_checkinteger(L, 1), signal) != 0) return luaL_error(L, "kill failed");
  return 0;
}

static int process_ended(lua_State *L) {
  siginfo_t info = {.si_pid = 0};
  if (waitid(P_PID, (id_t)luaL_checkinteger(L, 1), &info, WEXITED | WNOHANG | WNOWAIT) != 0)
    return luaL_error(L, "no such child");
  lua_pushboolean(L, info.si_pid != 0);
  return 1;
}

static void run_handler(lua_State *L, lua_Debug *debug) {
  (void)debug;
  lua_sethook(L, NULL, 0, 0);
  lua_getfield(L, LUA_REGISTRYINDEX, "process.on_term");
  lua_call(L, 0, 0);
}

static void handle(int signal) {
  (void)signal;
  lua_sethook(terminated, run_handler, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 1);
}

static int process_on_term(lua_State *L) {
  struct sigaction action = {.sa_handler = handle};
  luaL_checktype(L, 1, LUA_TFUNCTION);
  lua_setfield(L, LUA_REGISTRYINDEX, "process.on_term");
  terminated = L;
  if (sigaction(SIGTERM, &action, NULL) != 0) return luaL_error(L, "sigaction failed");
  return 0;
}

static int process_pid(lua_State *L) {
  lua_pushinteger(L, getpid());
  return 1;
}

static int process_gate(lua_State *L) {
  int *ends = lua_newuserdatauv(L, 2 * sizeof *ends, 0);
  if (pipe(ends) != 0) return luaL_error(L, "pipe failed");
  luaL_setmetatable(L, GATE);
  return 1;
}

static int gate_wait(lua_State *L) {
  int *ends = luaL_checkudata(L, 1, GATE);
  char byte;
  close(ends[1]);
  while (read(ends[0], &byte, 1) > 0)
    continue;
  return 0;
}

static int gate_open(lua_State *L) {
  int *ends = luaL_checkudata(L, 1, GATE);
  close(ends[0]);
  close(ends[1]);
  return 0;
}

int luaopen_process(lua_State *L);

int luaopen_process(lua_State *L) {
  static const luaL_Reg GATE_METHODS[] = {{"wait", gate_wait}, {"open", gate_open}, {NULL, NULL}};
  static const luaL_Reg FUNCTIONS[] = {{"fork", process_fork},       {"wait", process_wait},
                                       {"kill", process_kill},       {"pid", process_pid},
                                       {"gate", process_gate},       {"ended", process_ended},
                                       {"on_term", process_on_term}, {NULL, NULL}};
  luaL_newmetatable(L, GATE);
  luaL_newlib(L, GATE_METHODS);
  lua_setfield(L, -2, "__index");
  luaL_newlib(L, FUNCTIONS);
  return 1;
}

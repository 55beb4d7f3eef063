/*
** Processes, for the specs, because Lua cannot fork.
**
**     pid = process.fork(fn)      forks a child that runs fn and exits with 0, or 1 if fn raised
**     code, pid = process.wait([pid])   waits for a child, or without a pid for any; returns its
**                                       exit code, or minus the signal that ended it
**     process.kill(pid [, signal])      sends a signal, by default SIGKILL
**     process.on_term(fn)         makes SIGTERM run fn in a hook, as lua5.4 handles SIGINT
**     ended = process.ended(pid)  whether that child has ended; wait still returns how
**     pid = process.pid()         the id of this process
**     gate = process.gate()       gate:wait() blocks in children until the parent calls gate:open()
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

static lua_State *terminated; /* the state in which SIGTERM runs its function, as in lua.c */

static int process_fork(lua_State *L) {
  luaL_checktype(L, 1, LUA_TFUNCTION);
  fflush(NULL);
  lua_gc(L, LUA_GCCOLLECT); /* closes unreferenced stores, which a child must not inherit */
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
  ends[1] = -1; /* see gate_open */
  while (read(ends[0], &byte, 1) > 0)
    continue;
  return 0;
}

static int gate_open(lua_State *L) {
  int *ends = luaL_checkudata(L, 1, GATE);
  close(ends[0]);
  close(ends[1]);
  ends[0] = ends[1] = -1; /* the next time nothing is closed that has the same number by then */
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

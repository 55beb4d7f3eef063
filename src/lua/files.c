/*
** Files: what Lua's io library does not have. For the publishers and the command.
*/
#define _DEFAULT_SOURCE
#define _DARWIN_C_SOURCE

#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "shim.h"

/***
Writes a file's contents through to the disk.
@function sync
@tparam file file an open file of Lua's io library
@treturn boolean true; or nil, an error message and its number, as that library returns them
*/
static int sync_file(lua_State *L) {
  luaL_Stream *stream = luaL_checkudata(L, 1, LUA_FILEHANDLE);
  luaL_argcheck(L, stream->closef != NULL, 1, "closed file");
  return luaL_fileresult(L, fflush(stream->f) == 0 && fsync(fileno(stream->f)) == 0, NULL);
}

/***
Returns the size of a terminal.
@function terminal_size
@tparam file file of Lua's io library
@treturn ?integer columns; 0 where the terminal does not know; nil where the file is no terminal
@treturn ?integer rows, likewise
*/
static int terminal_size(lua_State *L) {
  luaL_Stream *stream = luaL_checkudata(L, 1, LUA_FILEHANDLE);
  struct winsize size;
  if (stream->closef == NULL || ioctl(fileno(stream->f), TIOCGWINSZ, &size) != 0) return 0;
  lua_pushinteger(L, size.ws_col);
  lua_pushinteger(L, size.ws_row);
  return 2;
}

int shim_pipe(int ends[2]) {
  if (pipe(ends) != 0) return -1;
  for (int i = 0; i < 2; i++) {
    int own = fcntl(ends[i], F_DUPFD_CLOEXEC, 3);
    close(ends[i]);
    ends[i] = own;
  }
  if (ends[0] >= 0 && ends[1] >= 0) return 0;
  for (int i = 0; i < 2; i++) {
    if (ends[i] >= 0) close(ends[i]);
    ends[i] = -1;
  }
  return -1;
}

static const luaL_Reg FUNCTIONS[] = {
    {"sync", sync_file}, {"terminal_size", terminal_size}, {NULL, NULL}};

void shim_open_files(lua_State *L) {
  luaL_setfuncs(L, FUNCTIONS, 0);
}

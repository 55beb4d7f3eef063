-- Loads a module of another rock that few users need, or that the command alone needs. So the
-- module `outbox` works without it.

--- Returns the module. `user` says which part of outbox needs which client; `rock` is the name of
-- the rock to install; `package` the name of Debian's package for Lua 5.4, if there is one. Raises
-- one line that says how to install the module if it is not installed.
return function(module, user, rock, package)
  local ok, loaded = pcall(require, module)
  if ok then
    return loaded
  elseif tostring(loaded):find(("module '%s' not found"):format(module), 1, true) then
    local version = _VERSION:match("[%d.]+")
    local debian = package and version == "5.4" and (" (Debian: %s)"):format(package) or ""
    error(("%s: luarocks --lua-version %s install %s%s"):format(user, version, rock, debian), 0)
  end
  error(loaded, 0) -- it is installed but does not load: its own error says why
end

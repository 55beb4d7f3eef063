-- Loads a module of another rock. Most users do not need these modules, so our rock does not depend
-- on their rocks.

--- Returns the module. `user` says which part of outbox needs which client; `rock` is the name of
-- the rock to install. Raises one line that names the rock if the module is not installed.
return function(module, user, rock)
  local ok, loaded = pcall(require, module)
  if ok then
    return loaded
  elseif tostring(loaded):find(("module '%s' not found"):format(module), 1, true) then
    error(("%s: luarocks install %s"):format(user, rock), 0)
  end
  error(loaded, 0) -- it is installed but does not load: its own error says why
end

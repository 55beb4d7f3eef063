-- Loads a module of another rock, for what most users do not need: it is no dependency of ours.

--- `what` says who needs which; `rock` is what to install.
return function(module, what, rock)
  local ok, loaded = pcall(require, module)
  if ok then
    return loaded
  elseif tostring(loaded):find(("module '%s' not found"):format(module), 1, true) then
    error(("%s: luarocks install %s"):format(what, rock), 0)
  end
  error(loaded, 0) -- it is there and does not load: the reason says why
end

-- outbox list, outbox show, outbox dead.

local outbox = require("outbox")
local database = require("outbox.command.database")
local format = require("outbox.command.format")
local problem = require("outbox.problem")

local PAGE = 100

local function state_of(entry)
  return entry.died_at and "dead" or entry.due_at and "delayed" or "ready"
end

-- The entries that are asked for, one by one, read a page at a time.
local function each(store, options)
  return coroutine.wrap(function()
    local after = options.after
    repeat
      local page = store[options.state .. "_entries"](store, {
        namespace = options.namespace,
        reverse = options.reverse,
        limit = math.min(PAGE, options.limit or PAGE),
        after = after,
      })
      for _, entry in ipairs(page) do
        after = entry.seq
        if not options.key or entry.key == options.key then
          coroutine.yield(entry)
        end
      end
    until #page == 0
  end)
end

--- Listing ------------------------------------------------------------------------------------

local TIMES = { delayed = "due_at", dead = "died_at" }

local function header(state)
  local row = { "SEQ", "ID", "NAMESPACE", "KEY", "BYTES", "AGE", "ATTEMPTS", "LAST ERROR" }
  if TIMES[state] then
    table.insert(row, 7, state == "dead" and "DIED" or "DUE")
  end
  return row
end

local function row_of(entry, state, now)
  local row = {
    format.number(entry.seq), format.cell(entry.id), format.cell(entry.namespace),
    format.cell(entry.key), entry.payload and format.number(#entry.payload) or "-",
    format.span(now - entry.created_at), format.number(entry.attempts),
    format.cell(entry.last_error),
  }
  if TIMES[state] then
    table.insert(row, 7, format.from_now(entry[TIMES[state]], now))
  end
  return row
end

local function list(options)
  local store <close> = database.open(options)
  local shown, last, more, now = 0, nil, false, outbox.clock.now()
  local rows = { header(options.state) }
  for entry in each(store, options) do
    more = shown == options.limit
    if more then
      break
    end
    shown, last = shown + 1, entry.seq
    if options.json then
      format.write(format.json(format.stamp(entry)), "\n")
    else
      rows[#rows + 1] = row_of(entry, options.state, now)
    end
    if #rows > PAGE then
      format.table(rows)
      rows = {}
    end
  end
  if shown > 0 and not options.json then
    format.table(rows)
  end
  format.flush()
  if more then
    io.stderr:write(("more: --after %d\n"):format(last))
  end
end

--- Showing ------------------------------------------------------------------------------------

-- The claim that covers an entry, if there is one that is alive.
local function find_lease(store, entry, now)
  for _, lease in ipairs(store:stats().leases) do
    if lease.first_seq <= entry.seq and entry.seq <= lease.last_seq and lease.deadline >= now then
      return lease
    end
  end
end

local function show_text(store, entry)
  local now, state, rows = outbox.clock.now(), state_of(entry), {}
  local function add(name, text)
    rows[#rows + 1] = { name, text }
  end
  local function add_time(name, time)
    if time then
      add(name, ("%s, %s"):format(format.time(time), format.from_now(time, now)))
    end
  end
  add("id", format.cell(entry.id))
  add("state", state)
  add("seq", format.number(entry.seq))
  add("namespace", format.cell(entry.namespace))
  add("key", format.cell(entry.key))
  add_time("created", entry.created_at)
  add_time("due", entry.due_at)
  add_time("died", entry.died_at)
  local lease = state == "ready" and find_lease(store, entry, now)
  if lease then
    add("claimed", ("by %s, until %s"):format(format.line(lease.processor_id),
      format.time(lease.deadline)))
  end
  add("attempts", format.number(entry.attempts))
  add("last error", format.cell(entry.last_error))
  local headers = entry.headers
  if type(headers) == "string" then
    add("headers", format.line(headers))
  else
    local names = {}
    for name in pairs(headers or {}) do
      names[#names + 1] = name
    end
    table.sort(names)
    for _, name in ipairs(names) do
      local value = headers[name] -- plain SQL may have published anything
      add("header", format.line(name) .. ": "
        .. (type(value) == "string" and format.line(value) or format.json(value)))
    end
  end
  add("payload", entry.payload and ("%d bytes"):format(#entry.payload) or "-")
  format.table(rows)
  if entry.payload and entry.payload ~= "" then
    format.write("\n", format.lines(entry.payload), entry.payload:sub(-1) == "\n" and "" or "\n")
  end
end

local function show(options)
  local store <close> = database.open(options)
  local found = store:find_entries(options.id)
  if not found[1] then
    error(problem.new("missing", "no entry has the id " .. format.line(options.id)), 0)
  elseif options.raw then
    format.write(found[1].payload or "")
    return
  end
  for i, entry in ipairs(found) do
    if options.json then
      entry.state = state_of(entry)
      format.write(format.json(format.stamp(entry)), "\n")
    else
      format.write(i > 1 and "\n" or "")
      show_text(store, entry)
    end
  end
end

--- Dead letters -------------------------------------------------------------------------------

-- Requeues or purges dead letters, in one transaction, each with no harm to the others; adds up.
local function move(store, method, ids, result)
  local done = 0
  store:transaction(function()
    for _, id in ipairs(ids) do
      local ok, count = pcall(store[method], store, id)
      if ok and count == 1 then
        done = done + 1
      elseif ok then
        result.status = 3
        io.stderr:write("outbox: no dead letter has the id ", format.line(id), "\n")
      elseif type(count) == "table" and count.code == "duplicate" then
        result.status = math.max(result.status, 1)
        io.stderr:write("outbox: ", format.line(id), ": ", count.message, " (duplicate)\n")
      else
        error(count, 0)
      end
    end
  end)
  result.done = result.done + done
end

-- All dead letters there are, but not those that die meanwhile.
local function move_all(store, method, options, result)
  local ids, now = {}, outbox.clock.now()
  for entry in each(store, { state = "dead", namespace = options.namespace }) do
    if entry.died_at <= now then
      ids[#ids + 1] = entry.id
    end
    if #ids == PAGE then
      move(store, method, ids, result)
      ids = {}
    end
  end
  move(store, method, ids, result)
end

local function dead(method, done)
  return function(options)
    local wrong
    if options.all == (options.ids[1] ~= nil) then
      wrong = "name the ids of dead letters, or say --all"
    elseif options.namespace and not options.all then
      wrong = "--namespace needs --all"
    elseif options.all and options.yes == false then
      wrong = "this deletes dead letters for good: say --yes as well"
    end
    if wrong then
      error(problem.new("usage", wrong), 0)
    end
    local store <close> = database.open(options)
    local result = { done = 0, status = 0 }
    if options.all then
      move_all(store, method, options, result)
    else
      move(store, method, options.ids, result)
    end
    format.write(("%s %d\n"):format(done, result.done))
    return result.status
  end
end

--- Arguments ----------------------------------------------------------------------------------

local function define_list(command, convert)
  command:option("--namespace", "Only those of one namespace."):argname("NAME")
  command:option("--key", "Only those with one key; looks through all."):argname("KEY")
  command:option("--limit", "At most that many."):argname("COUNT"):default("50")
    :convert(convert.count)
  command:option("--after", "Go on after the entry with that seq: the next page."):argname("SEQ")
    :convert(convert.integer)
  command:flag("--reverse", "From the last to the first.")
  command:flag("--json", "Each entry as a line of JSON.")
end

local function define_ids(command, wording)
  command:argument("ID", "Ids of dead letters."):target("ids"):argname("ID"):args("*")
  command:flag("--all", wording .. " all there are."):init(false)
  command:option("--namespace", "With --all, only those of one namespace."):argname("NAME")
end

return function(parser, convert)
  local command = parser:command("list")
    :summary("List entries.")
    :description("Lists entries in the order of their commits. Where there are more, the end of "
      .. "standard error says how to go on.")
    :action(function(options)
      options.state = options.state or "ready"
      options.run = list
    end)
  database.define(command)
  command:argument("STATE", "ready (the default), delayed or dead."):target("state")
    :choices({ "ready", "delayed", "dead" }):args("?")
  define_list(command, convert)

  command = parser:command("show")
    :summary("Show all there is to know of an entry.")
    :description("Shows all there is to know of an entry, wherever it lies. Of the payload, what a "
      .. "terminal would act upon is shown in hexadecimal.")
    :action(function(options)
      options.run = show
    end)
  database.define(command)
  command:argument("ID", "Its id."):target("id"):argname("ID")
  command:mutex(
    command:flag("--json", "As a line of JSON."),
    command:flag("--raw", "The payload alone, byte for byte."))

  local group = parser:command("dead")
    :summary("List, requeue or purge dead letters.")
    :description("Looks after dead letters: what failed too often, or for good.")
  command = group:command("list")
    :summary("List dead letters.")
    :description("Lists dead letters, as `outbox list DB dead` does.")
    :action(function(options)
      options.state = "dead"
      options.run = list
    end)
  database.define(command)
  define_list(command, convert)
  command = group:command("requeue")
    :summary("Put dead letters back, to be delivered again.")
    :description("Puts dead letters back at the end of the outbox, with no attempts counted.")
    :action(function(options)
      options.run = dead("requeue_entries", "requeued")
    end)
  database.define(command)
  define_ids(command, "Put back")
  command = group:command("purge")
    :summary("Delete dead letters for good.")
    :description("Deletes dead letters for good.")
    :action(function(options)
      options.run = dead("purge_entries", "purged")
    end)
  database.define(command)
  define_ids(command, "Delete")
  command:flag("--yes", "With --all: yes, all of them."):init(false)
end

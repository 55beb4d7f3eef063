-- outbox move: moves what waits in an SQLite file to PostgreSQL
--
-- Two databases have no common transaction. So the move has three steps, of which each can be
-- repeated after a crash, and at no moment can both deliver an entry:
--
--    1. begin    In the source, one transaction: refuses while a claim is alive, makes triggers
--                that refuse any claim from now on, and notes the move, with a random name, at
--                batch 0. From here on the source delivers nothing.
--    2. batches  In the source, a transaction for each batch, which holds the write lock: reads the
--                first rows; writes them, with the batch's number, to a table of the target that no
--                processor reads, and commits there; deletes them here, counts the batch, commits.
--                If it dies between the two commits, the rows are still in the source, and the
--                target has a batch whose number is too high: the next run deletes that first. The
--                transaction that finds nothing more seals the source: triggers refuse whatever is
--                published there from then on.
--    3. publish  In the target, one transaction: makes entries of all these rows, and notes that
--                the move is over. From here on the target delivers.
--
-- It is safe because both commits wait for the disk, that of the target before that of the source.

local core = require("outbox.core")
local database = require("outbox.command.common.database")
local errors = require("outbox.error")
local new_source = require("outbox.command.move.source")
local new_target = require("outbox.command.move.target")
local outbox = require("outbox")
local format = require("outbox.command.common.format")
local url = require("outbox.command.common.url")

local M = {
  summary = "Move what waits from an SQLite file to PostgreSQL.",
  description = "Moves all that waits in an SQLite file to a PostgreSQL database: entries that are "
    .. "ready, delayed or dead, with their ids and their order. Copies pauses and subscriptions. "
    .. "Stop the processors of the file first. Whatever stops the move, nothing is lost and "
    .. "nothing is delivered by both: run the same command again, which finishes it. After that "
    .. "the file takes no more messages.",
}

function M.define(command)
  database.argument(command, "SOURCE", "source", "The SQLite file, which is emptied.")
  database.argument(command, "TARGET", "target", "The URL of the PostgreSQL database. Tables are "
    .. "created there if there are none.")
  database.define_prefix(command)
end

-- Seconds between two lines of the progress: on a terminal, where it is one line, and in a log.
local ON_TERMINAL, IN_LOG = 0.2, 10

local function new_progress(all)
  local on_terminal = core.terminal_size(io.stderr) ~= nil
  local done, next_at = 0, core.clock.now() + (on_terminal and 0 or IN_LOG)
  return function(count)
    done = done + count
    local now = core.clock.now()
    if now >= next_at then
      next_at = now + (on_terminal and ON_TERMINAL or IN_LOG)
      io.stderr:write(on_terminal and "\r" or "", ("outbox: %d of %d moved"):format(done, all),
        on_terminal and "\27[K" or "\n")
    end
  end, function()
    io.stderr:write(on_terminal and "\r\27[K" or "")
  end
end

-- Steps 2 and 3. Returns how many entries of each state were moved, or nil if the move was over.
local function finish(source, target, move, batch)
  if not target:open(move, batch) then
    return nil
  end
  local tick, clear = new_progress(source:count())
  repeat
    local count = source:next_batch(function(rows, number)
      target:write(move, rows, number)
    end)
    tick(count or 0)
  until not count
  clear()
  return target:publish(move, source:settings())
end

local function run(source, target)
  source:check()
  target:prepare()
  local move, batch = source:begin()
  local ok, result = pcall(finish, source, target, move, batch)
  if not ok then
    io.stderr:write("outbox: the move is not over: run the same command again to finish it\n")
    error(result, 0)
  end
  return result
end

function M.run(options)
  if url.is_url(options.source) or not url.is_url(options.target) then
    error(errors.new("usage", "SOURCE must be an SQLite file, and TARGET the URL of a PostgreSQL "
      .. "database: nothing else can be moved"), 0)
  end
  local from <close> = outbox.open(options.source, { prefix = options.prefix, mode = "write" })
  from:stats() -- raises if the tables are missing
  local to <close> = outbox.open(options.target, { prefix = options.prefix })
  local moved = run(new_source(from), new_target(to))
  if moved then
    format.write(("moved %d ready, %d delayed, %d dead\n"):format(moved.ready, moved.delayed,
      moved.dead))
  else
    format.write("moved before\n")
  end
end

return M

-- Credentials of NATS: an operator signs accounts, and an account signs users (JWT with keys of
-- Ed25519). The keys are made by openssl.

local cjson = require("cjson")
local mime = require("mime")

local M = {}

local OPERATOR, ACCOUNT, USER, SEED = 14 << 3, 0, 20 << 3, 18 << 3

local function run(command, ...)
  local pipe <close> = assert(io.popen(command:format(...)))
  return pipe:read("a")
end

local function base32(bytes)
  local digits, number, bits = {}, 0, 0
  for byte in bytes:gmatch(".") do
    number, bits = number << 8 | byte:byte(), bits + 8
    while bits >= 5 do
      bits = bits - 5
      local digit = number >> bits & 31
      digits[#digits + 1] = ("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"):sub(digit + 1, digit + 1)
    end
    number = number & (1 << bits) - 1
  end
  if bits > 0 then
    local digit = number << (5 - bits) & 31
    digits[#digits + 1] = ("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"):sub(digit + 1, digit + 1)
  end
  return table.concat(digits)
end

local function crc16(bytes)
  local crc = 0
  for byte in bytes:gmatch(".") do
    crc = crc ~ byte:byte() << 8
    for _ = 1, 8 do
      crc = (crc & 0x8000 ~= 0 and crc << 1 ~ 0x1021 or crc << 1) & 0xffff
    end
  end
  return crc
end

local function encode(bytes)
  return base32(bytes .. ("<I2"):pack(crc16(bytes)))
end

-- A new pair of keys: `path` of the private one, `public` and `seed` as NATS writes them.
local function new_key(folder, kind)
  local path = os.tmpname()
  os.remove(path)
  path = folder .. path:match("/[^/]+$")
  run("openssl genpkey -algorithm ed25519 -out %s", path)
  local public = run("openssl pkey -in %s -pubout -outform DER", path):sub(-32)
  local seed = run("openssl pkey -in %s -outform DER", path):sub(-32)
  return { path = path, public = encode(string.char(kind) .. public),
    seed = encode(string.char(SEED | kind >> 5, (kind & 31) << 3) .. seed) }
end

local function base64url(bytes)
  return (mime.b64(bytes):gsub("[+/=]", { ["+"] = "-", ["/"] = "_", ["="] = "" }))
end

-- A claim about a key, signed by another one.
local function sign(issuer, subject, claim)
  claim.version = 2
  local text = base64url('{"typ":"JWT","alg":"ed25519-nkey"}') .. "." .. base64url(cjson.encode({
    jti = "x", iat = os.time(), iss = issuer.public, sub = subject.public, name = "test",
    nats = claim }))
  local file <close> = assert(io.open(subject.path .. ".claim", "w"))
  file:write(text)
  file:close()
  return text .. "." .. base64url(run("openssl pkeyutl -sign -inkey %s -rawin -in %s.claim",
    issuer.path, subject.path))
end

--- Makes an operator, two accounts, of which one is the server's own, and a user. Returns the
-- configuration of a server and the text of the user's file. The keys are kept in a folder.
function M.new(folder)
  local operator = new_key(folder, OPERATOR)
  local account, system = new_key(folder, ACCOUNT), new_key(folder, ACCOUNT)
  local user = new_key(folder, USER)
  local limits = { subs = -1, data = -1, payload = -1, imports = -1, exports = -1, conn = -1,
    leaf = -1, wildcards = true }
  local config = ("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: { %s: %s, "
    .. "%s: %s }"):format(sign(operator, operator, { type = "operator" }), system.public,
    account.public, sign(operator, account, { type = "account", limits = limits }),
    system.public, sign(operator, system, { type = "account", limits = limits }))
  return config, ("-----BEGIN NATS USER JWT-----\n%s\n------END NATS USER JWT------\n\n"
    .. "-----BEGIN USER NKEY SEED-----\n%s\n------END USER NKEY SEED------\n"):format(
    sign(account, user, { type = "user", subs = -1, data = -1, payload = -1 }), user.seed)
end

return M

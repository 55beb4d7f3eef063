-- A processor of one's own as a service: it delivers until it is told to stop. SIGTERM, as a
-- supervisor sends it, and SIGINT (Ctrl-C) let it finish the batch in hand and give its claim back,
-- so a restart charges no attempt.
--
--   lua5.4 examples/service.lua DATABASE
--
-- Under systemd:
--
--   # /etc/systemd/system/shop-messages.service
--   [Unit]
--   Description=Delivers the messages of the shop
--   StartLimitIntervalSec=0
--
--   [Service]
--   User=shop
--   ExecStart=/usr/bin/lua5.4 /srv/shop/service.lua /var/lib/shop/shop.db
--   Restart=always
--   RestartSec=1
--   # SIGTERM is for this process alone, not for the programs that its publisher has started.
--   KillMode=mixed
--   # More than one call of the publisher may take.
--   TimeoutStopSec=90
--
--   [Install]
--   WantedBy=multi-user.target

local outbox = require("outbox")

local store <close> = outbox.open(arg[1] or "shop.db", { synchronous = "normal" })
store:migrate()

local processor = outbox.processor({
  store = store,
  publisher = function(messages, namespace)
    for _, message in ipairs(messages) do
      io.write(namespace, "\t", message.payload or "", "\n") -- here goes your own code
    end
    io.flush()
  end,
})

local signal = processor:run({ signals = true })
io.stderr:write("stopped by ", signal, "\n")

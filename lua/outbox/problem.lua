return require("outbox.error")

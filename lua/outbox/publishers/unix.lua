return require("outbox.publishers.redis")

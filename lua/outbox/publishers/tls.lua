return require("outbox.publishers.nats")

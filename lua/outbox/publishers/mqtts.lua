return require("outbox.publishers.mqtt")

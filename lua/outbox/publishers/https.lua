return require("outbox.publishers.http")

return require("outbox.publishers.file")

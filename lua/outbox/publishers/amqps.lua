return require("outbox.publishers.amqp")

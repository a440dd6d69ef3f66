//! The message bus: one handle over Redis Streams or an embedded durable log.

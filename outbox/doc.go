// Package outbox keeps events and their deliveries in PostgreSQL.
//
// A module that changes something writes an event in the same transaction,
// with [Append], a plain INSERT INTO outbox.event or the function outbox.emit.
// A trigger adds one delivery for each registered sync that wants the event's
// type. Package relay takes deliveries from there to the external systems.
//
// Events of one key are delivered in the order of their sequence numbers. That
// is the order of the commits if a writer changes or locks its own row of the
// key before it inserts the event; outbox.emit takes a lock for writers that
// have no such row.
//
// A key with open work has one row in outbox.lane: its queue. Only the relay that
// has the claim on a lane may send its first delivery.
//
// [Store] is the relay's side: all SQL of the hot path stands in this package,
// beside the function that runs it, and whole in testdata. arrivals.go finds what is new
// and opens lanes, claim.go claims them, record.go writes down what came of it and
// closes them. Every write about a delivery carries the
// token of the claim, so whoever lost its claim changes nothing. Due times and
// leases are computed by the database's clock.
package outbox

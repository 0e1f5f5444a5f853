// Package outbox keeps events and their deliveries in PostgreSQL.
//
// # Writers
//
// A module that changes something writes an event in the same transaction, with
// [Append], a plain INSERT INTO outbox.event or the function outbox.emit. A trigger adds
// one delivery for each registered sync that takes the type of the event.
//
// Events of one key are delivered in the order of their seq. This is the order of the
// commits if a writer changes or locks its own row of the key before it inserts the
// event. For writers without such a row, outbox.emit takes a lock on the key.
//
// # Relays
//
// [Store] is the side of the relay; its example shows the whole way. The relay registers
// its syncs, and completes a [Backfill] for each new one. Then it claims deliveries, sends
// them and records the results, again and again. An [Arrivals] for each sync keeps what
// is new. A recording may return the next deliveries of the same keys.
//
// A key with open deliveries has one row in outbox.lane, its queue. Only the relay that
// has the claim of a lane may send its first delivery, until the lease ends. Each write
// about a delivery carries the token of the claim: a relay that has lost its claim
// changes nothing. The clock of the database computes due times and leases.
//
// A [Hold] stops a whole sync or one scope of it. A [Probe] is the right to send one
// delivery in spite of a hold.
//
// # Where to look
//
// arrivals.go finds what is new. lane.go has the statements that open, claim and settle
// lanes, claim.go reads the deliveries of claimed lanes, record.go records results and
// missing.go finds results whose recording was not answered. hold.go, supersede.go,
// register.go and backfill.go say what their names say. The statements of the hot path
// are whole in testdata, with names for their parameters.
package outbox

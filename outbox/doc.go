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
// Package relay is a complete relay. Use [Store] directly only to write another one: the
// example of Store shows each call. A relay registers its syncs, and completes a
// [Backfill] for each new one. Then it repeats three steps: it claims deliveries with
// [Store.Claim], sends them, and records the results with [Store.Record]. It keeps one
// [Arrivals] per sync, which remembers the deliveries that were read already. A recording
// may return the next deliveries of the same keys.
//
// A key with open deliveries has one row in outbox.lane, its queue. Only the relay that
// has the claim of a lane may send its first delivery, until the lease ends. Each write
// about a delivery carries the token of the claim: a relay that has lost its claim
// changes nothing. The clock of the database computes due times and leases.
//
// A [Hold] stops a whole sync or one scope of it. A [Probe] is the right to send one
// delivery in spite of a hold.
//
// The words of this package, such as lane, claim and scope, are in docs/glossary.md.
//
// # Where to look
//
// arrivals.go finds new deliveries. lane.go has the statements that open, claim and settle
// lanes. claim.go reads the deliveries of claimed lanes. record.go records results, and
// missing.go finds out about results whose recording was not answered. The files hold.go,
// supersede.go, register.go and backfill.go are about the things that they are named for.
// The directory testdata has each statement of the hot path in full, with names for its
// parameters.
package outbox

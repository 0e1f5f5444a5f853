// Package relay takes events from the outbox to external systems. It claims lanes,
// maps the first delivery of each, lets an adapter make one attempt and records the
// result.
//
// A delivery is the open work for one event and one sync. Its states live in
// the database, so another relay can take over everything that this one has claimed:
//
//	queued: behind an earlier delivery of its key
//	 │
//	 │  the earlier one is finished
//	 ▼
//	pending ◀──────────────┐
//	 │                     │ released, never sent
//	 │ its lane is claimed │
//	 ▼                     │        due again
//	sending ───────────────┘ ◀─────────────────┐
//	 │  │  │                                   │
//	 │  │  └──────────────────────────────▶ retry
//	 │  │        temporary failure
//	 │  └─────────▶ failed ──▶ pending, by an operator's requeue
//	 │   gave up          └──▶ gone, discarded or superseded
//	 ▼
//	gone: delivered, duplicate, accepted or filtered, with its row in the log
//
// A lane is the queue of one key in one sync. A relay claims lanes. Only the relay
// that has a lane's claim may send its first delivery. So at most one delivery of a key is in
// flight, and the next is sent only after the one before is recorded as finished.
// The relay keeps a lane for its next delivery while no other lane waits, and for a
// quarter of a second while others do. Then it gives the lane back. A sync with a rate
// limit gives it back after each delivery. A claim ends by itself with its lease. Every
// write carries the claim's token, so a relay that was stopped for too long changes
// nothing. The schedule (schedule.go) decides which lanes are claimed next.
//
// Each sync has a pipeline of its own: one goroutine claims, several send, one sends
// suspects, two record. A suspect is a delivery during which two relays died. A court
// that hangs holds up only its own senders. Busy syncs share the workers equally, and
// so do the destinations of a sync, such as its hosts (destinations.go).
//
// [Relay.Reload] gives a running relay other mappings, adapters and limits. It replaces
// the settings of a pipeline between two deliveries. An attempt under way ends with the
// settings that it began with.
//
// While the database is away, loops pause for up to two seconds after each error. The
// log counts repeated errors instead of repeating them.
package relay

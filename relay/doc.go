// Package relay takes events from the outbox to external systems: it claims
// lanes, maps the first delivery of each, lets an adapter make one attempt and records
// what came of it.
//
// A delivery is the open work for one event and one sync. Its states live in
// the database; a relay holds nothing that another could not take over:
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
// A lane is kept while nobody else waits, or for a turn; then it is given back. Under a
// rate limit of the sync it is given back after each delivery. A
// claim ends by itself after the lease; every write carries the claim's token, so a
// relay that was away too long changes nothing. What is claimed next, and for how
// long it is kept, is decided in schedule.go.
//
// Each sync has a pipeline of its own: one goroutine claims, some send, one sends
// what two relays died of, two record. A court that hangs holds only its own
// senders, and syncs that are busy share the workers equally. The destinations
// of a sync, such as its hosts, are kept apart in the same way, see destinations.go.
// [Relay.Reload] gives a running relay other mappings, adapters and limits: it replaces
// a pipeline's settings between two deliveries. An attempt under way ends with those
// that it began with.
//
// While the database is away, loops pause for up to two seconds after each error,
// and the log counts repetitions instead of repeating them.
package relay

// Package relay sends events from the outbox to external systems. It claims lanes, maps
// the first delivery of each, lets an adapter make one attempt and records the result.
//
// # Embedding
//
// To run a relay in your own service, apply the schema (package migrations, or lockstep
// migrate up), open a store with [outbox.Open], make a relay with [New], and call
// [Relay.Run] in a goroutine. Run returns after its context has ended and the attempts in
// flight are finished. The example shows all of it. [Config] has the settings, and their
// defaults. [Relay.Ready] is for a health check, and an [Observer] for metrics. The
// packages under adapters have an adapter for each protocol. Implement adapters.Adapter for
// another one.
//
// Run registers the syncs that the database does not know. It does not change the events
// and the policy of a known sync: outbox.Store.Apply does.
//
// # Deliveries
//
// A delivery is the open work for one event and one sync. Its state is in the database, so
// another relay can take over everything that this one has claimed:
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
// with the claim of a lane may send its first delivery. So at most one delivery of a key is
// in flight, and the next is sent only after the one before is recorded as finished.
// The relay keeps a lane for its next delivery while no other lane waits, and for a
// quarter of a second while others wait. Then it releases the lane. A sync with a rate
// limit releases it after each delivery. A claim ends with its lease. Every write tests
// the claim's token, so a relay that was stopped for too long changes nothing. The schedule
// (schedule.go) decides which lanes are claimed next.
//
// Each sync has its own pipeline: one goroutine claims, several send, one sends suspects,
// two record. A suspect is a delivery during which two relays died. If a receiver does
// not answer, only its own senders wait. Busy syncs share the workers equally, and so do
// the destinations of a sync, such as its hosts (destinations.go).
//
// [Relay.Reload] gives a running relay other mappings, adapters and limits. It replaces
// the settings of a pipeline between two deliveries. An attempt in flight ends with the
// settings that it began with.
//
// While the database cannot be reached, loops pause for up to two seconds after each
// error. The log has the number of repeated errors instead of each of them.
package relay

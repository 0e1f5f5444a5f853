// Package adapters is the contract between the relay and an adapter, the code that
// speaks the protocol of one receiver.
//
// To write an adapter, implement [Adapter]: its Deliver sends a [Message] once and
// returns a [Receipt] or an error. Mark the error with its class, for example
// [Permanent], [Throttled] or [Unknown]. The class decides what the relay does next.
// An error without a mark is transient, and the relay tries again later. The example
// of this package is a whole adapter.
//
// Some methods are optional. The relay, lockstep config check and lockstep map use
// them if the adapter has them:
//
//   - AttemptTimeout() time.Duration returns the longest time of one attempt. The
//     relay's lease must be at least twice as long. Default: 15 seconds.
//   - Close() error frees what the adapter holds, when no attempt uses it any more.
//   - [Reader] reads back what the receiver has, after a conflict and after a lost answer.
//   - [Lister] lists what the receiver has, for lockstep reconcile.
//   - [Bounded] says how many deliveries can be in flight.
//   - [Addresser] names the host to which a message goes.
//   - [Previewer] shows what the adapter would send.
//   - [FieldUser] names the mapped fields that the configuration uses.
//   - [Learner] names the values of answers that it keeps.
//   - [Router] sends messages by different routes, each perhaps with its own mapping.
//
// Pass the adapter to relay.Sync, or give it a kind in the YAML file. lockstep config
// check builds the adapter too, so its constructor must not contact the receiver. Package
// adaptertest is the conformance suite that every adapter should pass. See also
// docs/write-an-adapter.md, and docs/adapters.md for the rules.
//
// All functions and types of this package are safe for concurrent use.
package adapters

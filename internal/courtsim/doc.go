// Package courtsim is a simulated court: a calendar, over REST and over SOAP,
// that does what its fault script says, and a ledger of every request it read.
//
// The ledger is the oracle of the tests. An entry is appended before the answer
// is written, so a request whose answer was lost on the way stands in it too.
// A request counts as accepted once the calendar holds it, whatever the caller
// was told; at most one request of an idempotency key is ever accepted.
//
// The SOAP face, at /soap/calendar, takes the operations NotifyHearing and
// CancelHearing of the namespace urn:example:calendar in SOAP 1.1 and 1.2. It
// knows a message by its wsa:MessageID and answers a repetition with the result
// DUPLICATE.
//
// It uses the standard library only and is meant for tests and demonstrations.
// It keeps everything in memory.
package courtsim

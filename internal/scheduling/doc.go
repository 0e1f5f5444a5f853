// Package scheduling is the reference writer of the outbox: a small module that
// books, reschedules and cancels hearings, with an HTTP API for clerks.
//
// Every change is one transaction that changes the hearing's row first and then
// appends one event whose key is the hearing's id and whose version is the
// row's. The row lock makes commit order the order of the events of a hearing,
// and either both are committed or neither.
//
// A hearing has a wall time, an IANA zone and the instant they mean. Wall times
// that do not exist are refused, ambiguous ones need a choice.
//
// Case names may hold names of parties. They are kept in the hearing's row and
// shown by the API, but stand in no event, log line, error or URL.
package scheduling

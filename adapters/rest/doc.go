// Package rest delivers messages to a REST API: one HTTP request with a JSON
// body for each attempt.
//
// The body is [adapters.Message.Body] as it is, on every method, DELETE
// included. Every request carries Idempotency-Key as a quoted string, the same
// on every attempt. What statuses mean, which waits are honoured and what is
// recorded of an answer is described in docs/adapters/rest.md.
//
// There is no read-back: a conflict (409, 412) is final unless
// [Config.Outcomes] says otherwise.
package rest

// Package rest delivers messages to a REST API: one HTTP request with a JSON
// body for each attempt.
//
// The body is [adapters.Message.Body], unchanged, with every method, also with
// DELETE. Every request has the header Idempotency-Key as a quoted string, the same
// on every attempt. docs/adapters/rest.md says what statuses mean, which waits are
// obeyed, and what is recorded of an answer.
//
// There is no read-back: a conflict (409, 412) is final unless
// [Config.Outcomes] says otherwise.
package rest

// Package rest delivers messages to a REST API: one HTTP request for each attempt.
//
// The body is [adapters.Message.Body], unchanged, unless [Config.Body] says otherwise.
// [Config.Routes] and [Config.Known] choose method, URL, headers, body and the meaning of
// answers by the type of the event, and by whether the receiver's id is known.
//
// Every request has the header Idempotency-Key as a quoted string, the same on every
// attempt. docs/adapters/rest.md says what statuses mean, which waits are obeyed, and what
// is recorded of an answer.
//
// There is no read-back: a conflict (409, 412) is final unless
// [Config.Outcomes] says otherwise.
package rest

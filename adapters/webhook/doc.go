// Package webhook delivers messages as signed webhooks: one POST for each
// attempt, as Standard Webhooks 1.0.0 describes it.
//
// Receivers may rely on these headers:
//
//   - webhook-id is the message's idempotency key, the same on every attempt.
//   - webhook-timestamp is the time of the attempt.
//   - webhook-signature has one signature for each secret, over the id, the timestamp
//     and the body. So either side can change its secret while messages are sent.
//
// The body has the same bytes on every attempt, and has the mapped fields in it byte
// for byte. It has one of four forms, two of which are CloudEvents 1.0: see [Payload].
//
// docs/adapters/webhook.md says what statuses mean. There is no read-back, and nothing
// is kept from an answer.
package webhook

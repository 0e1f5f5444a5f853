// Package webhook delivers messages as signed webhooks: one POST for each
// attempt, as Standard Webhooks 1.0.0 describes it.
//
// Receivers may rely on this: webhook-id is the message's idempotency key, the
// same on every attempt; webhook-timestamp is the time of the attempt;
// webhook-signature holds one signature for each secret, over the two and the
// body, so that either side can change secrets without a gap. The body is the
// same bytes on every attempt, and holds the mapped fields byte for byte. It has one of
// four forms, two of them CloudEvents 1.0: see [Payload].
//
// docs/adapters/webhook.md says what statuses mean. There is no read-back, and nothing
// of an answer is kept.
package webhook

// Package webhook delivers messages as signed webhooks: one POST for each
// attempt, as Standard Webhooks 1.0.0 describes it.
//
// Receivers may rely on this: webhook-id is the message's idempotency key, the
// same on every attempt; webhook-timestamp is the time of the attempt;
// webhook-signature holds one signature for each secret, over the two and the
// body, so that either side can change secrets without a gap. The body is the
// same bytes on every attempt, and the mapped fields stand in it byte for byte.
// It has one of four forms, two of them CloudEvents 1.0: see [Payload].
//
// What statuses mean is described in docs/adapters/webhook.md. There is no read-back,
// and nothing is kept of an answer.
package webhook

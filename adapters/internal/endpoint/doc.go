// Package endpoint is what all adapters that speak HTTP share beside the
// exchange itself: URLs and headers with placeholders, credentials, and which
// hosts data may name.
//
// Callers may rely on this: data makes no scheme, no path segment, no query, no
// header and, unless the operator listed it, no host; the idempotency key and a
// valid trace context are sent with every request; a token is fetched once for
// all deliveries that wait for it and dropped when the receiver refuses it; and
// errors name the option at fault and show no secret and no value.
package endpoint

// Package endpoint holds what all adapters that speak HTTP share, besides the exchange
// itself: URLs and headers with placeholders, credentials, and which hosts data may
// name.
//
// Callers may rely on this:
//
//   - data makes no scheme, no path segment, no query, no header and, unless the
//     operator listed it, no host
//   - every request has the idempotency key and a valid trace context
//   - a token is fetched once for all deliveries that wait for it, and dropped when the
//     receiver refuses it
//   - errors name the option at fault and show no secret and no value
package endpoint

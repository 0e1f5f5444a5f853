// Package endpoint has the parts that all HTTP adapters share, except the exchange
// itself: URLs and headers with placeholders, credentials, and the hosts that data may
// name.
//
// Callers may rely on this:
//
//   - data cannot add a scheme, a path segment, a query or a header, and it can name
//     only hosts that the operator listed
//   - every request has the idempotency key and a valid trace context
//   - a token is fetched once for all deliveries that wait for it, and dropped if the
//     receiver refuses it
//   - errors name the wrong option, and show no secret and no value
package endpoint

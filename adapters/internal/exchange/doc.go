// Package exchange makes the one HTTP exchange of an attempt, for every adapter
// that speaks HTTP.
//
// Callers may rely on this:
//
//   - one call is at most one request on the wire, even if net/http would send it again
//   - redirects are not followed
//   - an answer is read up to [MaxAnswer] bytes after decompression
//   - the call ends with its timeout or its context, whichever ends first
//   - an error says whether the receiver may have got the request ([adapters.Unknown])
//     or cannot have got it (transient)
//   - no error text has a header value, a query value or a value of the payload, and the
//     receiver's text is cleaned
package exchange

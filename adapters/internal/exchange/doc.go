// Package exchange makes the one HTTP exchange of an attempt, for every adapter
// that speaks HTTP.
//
// Callers may rely on this:
//
//   - one call is at most one request on the wire, also where net/http would send it again
//   - redirects are not followed
//   - an answer is read up to [MaxAnswer] bytes after decompression
//   - the call ends with its timeout or its context, whichever is first
//   - an error says whether the receiver may have got the request ([adapters.Unknown])
//     or cannot have got it (transient)
//   - no error text holds a header value, a query value or a value of the payload, and
//     what the receiver sent is cleaned
package exchange

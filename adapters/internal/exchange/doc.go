// Package exchange makes the one HTTP exchange of an attempt, for every adapter
// that speaks HTTP.
//
// Callers may rely on this: one call is at most one request on the wire, also
// where net/http would quietly send it again; redirects are not followed; an
// answer is read up to [MaxAnswer] bytes after decompression; the call ends
// with its timeout or its context, whichever is first; an error says whether
// the receiver may have got the request ([adapters.Unknown]) or cannot have
// got it (transient); and no error text holds a header value, a query value,
// a value of the body, or anything the receiver sent that was not cleaned.
package exchange

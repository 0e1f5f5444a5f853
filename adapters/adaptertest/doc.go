// Package adaptertest is the conformance suite for adapters that speak HTTP.
//
// An adapter's test says in a [Harness] how to build the adapter and how its
// protocol writes an answer, and calls [Run]. The suite plays receivers that
// answer well, badly, slowly, endlessly or not at all, and judges what Deliver
// makes of them: class, wait, bounds, what stands in the error text, and what
// was on the wire.
package adaptertest

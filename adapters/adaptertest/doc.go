// Package adaptertest is the conformance suite for adapters.
//
// An adapter that speaks HTTP says in a [Harness] how it is built and how its
// protocol writes an answer, and calls [Run]. The suite plays receivers that
// answer well, badly, slowly, endlessly or not at all, and judges what Deliver
// makes of them: class, wait, bounds, the error text, and the bytes on the wire.
//
// Any other adapter brings a [Receiver] of its own, one that can be looked into
// and taken out of reach, and calls [RunWith]. That checks what holds for every
// protocol. The adapter's own tests check how it can fail.
package adaptertest

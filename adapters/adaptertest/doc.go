// Package adaptertest is the conformance suite for adapters.
//
// The test of an adapter that speaks HTTP calls [Run] with a [Harness], which says how
// to build the adapter and how its protocol writes an answer. The suite plays receivers
// that answer well, badly, slowly, endlessly or not at all. It checks the results of
// Deliver: class, wait, bounds, error text, and the bytes on the wire. Of an adapter that
// reads back or lists, it checks Read and List too.
//
// The test of any other adapter calls [RunWith] with its own [Receiver], whose content
// can be read, which can be made unreachable, and which can lose its answers. RunWith
// checks the rules that apply to every protocol. The adapter's own tests check its other
// failures.
package adaptertest

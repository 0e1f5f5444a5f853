// Package adapters is the contract between the relay and the protocols of
// external systems: [Adapter] makes one attempt, [Message] is what it sends,
// [Receipt] and the error classes are its result. All functions and types are safe for
// concurrent use.
//
// A whole adapter takes some thirty lines: see the package's example,
// docs/adapters.md for the rules in plain words, and docs/write-an-adapter.md.
//
// Each protocol has a package of its own below this one; package adaptertest
// is the conformance suite that all of them run.
package adapters

// Package config reads Lockstep's configuration: one YAML or JSON file.
//
// Reading has three steps. The file becomes a tree of values with positions, in
// which ${NAME}, ${NAME:-default} and ${file:/path} are replaced, so that what
// is put in can never become structure. The tree is decoded into structs whose
// tags hold every key's default, bounds and description; the JSON Schema, the
// printed configuration and the defaults come from the same tags. Then each sync
// is checked as a whole, and its mapping compiled.
//
// All problems that can be found are reported at once, as [Problems], each with
// file, line and column and what to do. Values that were put in from outside
// never appear in a message.
package config

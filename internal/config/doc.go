// Package config reads Lockstep's configuration: one YAML or JSON file.
//
// Reading has three steps:
//
//  1. The file becomes a tree of values with positions. Then ${NAME},
//     ${NAME:-default} and ${file:/path} are replaced in its texts, so that their
//     values never become structure.
//  2. The tree is decoded into structs. Their tags have every key's default, bounds
//     and description. The JSON Schema and the printed configuration use the same tags,
//     and so does docs/configuration-reference.md.
//  3. Each sync is checked as a whole, and its mapping is compiled.
//
// All problems are reported at once, as [Problems]. Each has file, line and column, and
// says what to do. No message shows the value of a ${…}.
package config

// Package mapping makes the receiver's fields from an event. A [Mapping] compiles to a
// [Mapper], which renders the fields as one JSON object. A [Filter] decides whether the
// event is sent at all. A [Scope] names the part of the receiver that the event goes to.
//
// To embed a relay you need only [Mapping] and its parts, as relay.Sync takes them: the
// relay compiles them. Use the functions of this package to test a mapping.
//
//	mapper, err := mapping.Mapping{
//		Fields:  []mapping.Field{{From: "hearingId", To: "case_reference"}},
//		Compute: []mapping.Computed{{To: "title", Expr: `"Hearing " + event.hearingId`}},
//	}.Compile()
//	…
//	body, err := mapper.Map(event, mapping.Sending{}, nil)
//
// All three are pure functions of the event: the same event gives the same bytes on every
// machine and at every attempt. They are safe for concurrent use. A number that an
// expression does not compute with keeps its digits. If an event cannot be mapped, the error
// is a [*FieldError]. It names a field and a kind of problem, and never contains a value of
// the payload.
//
// # Bounds
//
// All expressions of an event together may take 67 million steps, which is about a second
// of a processor. They may make 8 MiB of text, lists and objects, plus 16 bytes for each
// byte of the payload. The compiler rewrites each expression to count its cost, by these
// rules:
//
//   - An operator or a function pays for the size of its operands before it runs: a step
//     for each part at any depth, for 4 digits of a number and for 16 bytes of text. The
//     rate is higher for functions that sum, copy or sort. A part that is reached several
//     times counts each time.
//   - A round of a predicate pays for the nodes of the predicate.
//   - Text, lists and objects pay for their memory when they are made.
//   - Operators that only read a part, such as event.a or first(list), are free.
//   - The operators matches, uniq, trim with letters, in, repeat, replace and join count
//     their own cost, because the size of their operands does not show it.
//
// Steps are counted, and time is not measured. So an event that passes on one machine passes
// on every machine. A [Watcher] can end an evaluation earlier.
package mapping

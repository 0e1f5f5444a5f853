// Package mapping decides what a receiver is told of an event. A [Mapping] compiles
// to a [Mapper], which renders the receiver's fields as one JSON object. A [Filter]
// decides whether the receiver is told at all, a [Scope] names the part of the
// receiver that the event goes to.
//
//	mapper, err := mapping.Mapping{
//		Fields:  []mapping.Field{{From: "hearingId", To: "case_reference"}},
//		Compute: []mapping.Computed{{To: "title", Expr: `"Hearing " + event.hearingId`}},
//	}.Compile()
//	…
//	body, err := mapper.Map(event, nil)
//
// All three are pure functions of the event: the same event gives the same bytes on
// every machine and at every attempt. They are safe for concurrent use. A number
// that is only passed on keeps its digits. An event that cannot be mapped gives a
// [*FieldError], which names a field and a kind of problem and never holds a value
// of the payload.
//
// # Bounds
//
// All expressions of an event together may take 67 million steps, about a second of
// a processor, and make 8 MiB of text, lists and objects, and 16 bytes more for each
// byte of the payload. While an expression is compiled it is rewritten, so that
// everything is counted by four rules. An operator or a function pays for the size
// of its operands before it runs: a step for each part at any depth, for 4 digits of
// a number and for 16 bytes of text, times a rate that is higher for functions that
// sum, copy or sort. A part that is shared counts each time that it is reached. A
// round of a predicate pays for the nodes of the predicate. Text, lists and objects
// pay for their memory as soon as they are made. Operators that only fetch a part,
// such as event.a or first(list), are free, and a few that take longer than the size
// of their operands says, or make much of little, count for themselves: matches,
// uniq, trim with letters, in, repeat, replace and join. Steps are counted and not
// measured, so that an event that passes on one machine passes on every machine. A
// [Watcher] can end an evaluation earlier.
package mapping

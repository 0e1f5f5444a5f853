package adapters

// FieldUser is implemented by adapters whose configuration uses single mapped fields,
// such as {fields.courtroom} in a URL.
type FieldUser interface {
	// Fields returns the names of these fields, in any order. A dotted name reaches
	// into objects. lockstep config check refuses a mapping that does not make one of
	// them.
	Fields() []string
}

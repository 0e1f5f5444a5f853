package adapters

// FieldUser is implemented by adapters whose configuration asks for single
// mapped fields, such as {fields.courtroom} in a URL.
type FieldUser interface {
	// Fields returns the names of these fields, dotted where they reach into
	// objects, in any order. A configuration whose mapping makes none of that
	// name is refused.
	Fields() []string
}

package mapping

// Watcher lets another goroutine watch an evaluation and end it. The evaluation calls its
// methods from its own goroutine. They must return at once.
type Watcher interface {
	// Begin is called before the expression of a field is evaluated.
	Begin(field string)
	// Continue is called every few thousand steps. If it returns false, the evaluation ends.
	Continue() bool
}

package mapping

// Watcher lets the goroutine that waits for an evaluation follow it and end it.
// The evaluation calls it from its own goroutine.
type Watcher interface {
	// Begin says that the expression of a field is evaluated from now on.
	Begin(field string)
	// Continue is called every few thousand steps. False ends the evaluation.
	Continue() bool
}

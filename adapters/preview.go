package adapters

// Previewer is implemented by adapters that can tell what they would send.
type Previewer interface {
	// Preview returns what Deliver would ask of the receiver for msg, and asks
	// nothing. Secrets are masked, freshness fields are examples. With an error,
	// which is what Deliver would fail with, Method may be set all the same.
	Preview(msg Message) (Preview, error)
}

// Preview is a request that was not made.
type Preview struct {
	Method      string
	URL         string // without its query
	ContentType string
	Body        []byte
}

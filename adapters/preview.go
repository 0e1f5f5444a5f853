package adapters

// Previewer is implemented by adapters that can show what they would send.
type Previewer interface {
	// Preview returns the request that Deliver would make for msg. It sends nothing.
	// Secrets are masked, and fields that change with each attempt, such as a nonce,
	// are examples. An error is the one with which Deliver would fail; Method may be
	// set then too.
	Preview(msg Message) (Preview, error)
}

// Preview is a request that was not made.
type Preview struct {
	Method      string
	URL         string            // without its query
	Headers     map[string]string // by canonical name; credentials are masked
	ContentType string
	Body        []byte
}

package adapters

// Previewer is implemented by adapters that can show what they would send.
type Previewer interface {
	// Preview returns the request that Deliver would make for msg. It sends nothing.
	// Secrets are masked, and fields that change with each attempt, such as a nonce,
	// are examples. An error is the one with which Deliver would fail; Method may be
	// set then too.
	Preview(msg Message) (Preview, error)
}

// Preview is a request that was not made. A protocol without methods or URLs leaves them
// out, or writes its own: the type of a message, the address of the receiver.
type Preview struct {
	Method      string            // such as PUT, or SIU^S12
	URL         string            // credentials in its query are masked; or another address, such as mllp://clinic.example.org:2575
	Headers     map[string]string // by name, spelt as it is sent; credentials are masked
	ContentType string
	Body        []byte
	Skipped     string // as [Receipt.Skipped]
}

package adapters

import "encoding/json"

// The values of the option require: what an answer that reports success must have.
const (
	// RequireID is the receiver's id, always. Otherwise the result is [Unclear].
	// Without require, it depends on the adapter.
	RequireID = "external_id"

	// RequireNothing accepts a success without the id, and does not warn.
	RequireNothing = "nothing"
)

// Answer gives answers of an HTTP API a class by what is in their bodies. An answer
// must meet all conditions of an entry. The first entry that matches decides, before the
// table of statuses. An entry without conditions matches every 2xx, and must be the
// last one.
type Answer struct {
	// Path is a JSON Pointer (RFC 6901) into the answer, such as /success. A segment *
	// is any element of a list or any member of an object. Default: the body does not
	// matter.
	Path string `yaml:"path" pattern:"^/" doc:"JSON Pointer into the body."`

	// Equals is the value that Path must have: a string, a number, true, false or null,
	// as JSON. Default: any value, but it must exist.
	Equals json.RawMessage `yaml:"equals" doc:"Value that must be at path. Without it, path must exist."`

	// Status is the HTTP status that the answer must have. Default: any with Path,
	// otherwise any 2xx.
	Status int `yaml:"status" doc:"Status of the answer. Default: any with path, otherwise any 2xx."`

	// Class is the class of such an answer, such as duplicate. Required.
	Class string `yaml:"class" required:"adapter" oneof:"delivered|duplicate|accepted|transient|throttled|auth|forbidden|permanent|conflict|unknown" doc:"What the answer means."`

	// Reason is a JSON Pointer to a text that may be shown: it must name nobody.
	// Default: the reason of the configuration, otherwise that of the known forms.
	Reason string `yaml:"reason" pattern:"^/" doc:"JSON Pointer of the reason."`
}

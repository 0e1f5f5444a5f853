package relay

import "github.com/hms-mkt/lockstep/adapters"

// maxError bounds the text of an error in the database, in bytes.
const maxError = 1000

// redact removes values of the payload from a text about a delivery, see [adapters.Redact].
func redact(text string, payload []byte) string { return adapters.Redact(text, maxError, payload) }

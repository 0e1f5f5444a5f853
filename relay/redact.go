package relay

import "github.com/hms-mkt/lockstep/adapters"

// maxError bounds the text of an error in the database, in bytes.
const maxError = 1000

// redact is [adapters.Redact] for a text about a delivery, as it is recorded.
func redact(text string, payload []byte) string { return adapters.Redact(text, maxError, payload) }

package relay

import "github.com/hms-mkt/lockstep/adapters"

// maxError bounds the text of an error in the database, in bytes.
const maxError = 1000

// textOf returns the text of an adapter's error, without values of the payload.
func textOf(err error, payload []byte) string {
	if adapters.IsRedacted(err) {
		return adapters.Clean(err.Error(), maxError)
	}
	return redact(err.Error(), payload)
}

// redact hides a text that repeats a value of the payload, see [adapters.Redact].
func redact(text string, payload []byte) string { return adapters.Redact(text, maxError, payload) }

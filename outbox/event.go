package outbox

import (
	"encoding/json"
	"time"
)

// Event is one fact that a module writes in its own transaction. It never changes after
// the commit.
type Event struct {
	ID         string            // idempotency key, a UUID; if empty, the database creates one
	Seq        int64             // order of insertion; set by the database
	Type       string            // such as scheduling:updated; at most 200 bytes
	Key        string            // what the event is about; events of one key are delivered in order; at most 512 bytes
	Version    *int64            // rising per key, from the writer's own row; nil if it has none
	Payload    json.RawMessage   // a JSON object of at most 1 MiB
	Headers    map[string]string // W3C traceparent, tenant, …
	OccurredAt time.Time         // when the fact happened; zero means now, by the database clock
}

// OperatorEvents is how the types of the events begin that tell people about the relay's own
// work, such as lockstep:failed. Only the database's function outbox.raise_alerts writes
// them. A sync takes them by a pattern with the same beginning: * does not match them.
const OperatorEvents = "lockstep:"

// OperatorEventTypes returns the types of operator events.
func OperatorEventTypes() []string {
	return []string{"lockstep:failed", "lockstep:held", "lockstep:resumed", "lockstep:escalated"}
}

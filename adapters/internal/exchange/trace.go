package exchange

import (
	"net/http"
	"regexp"
	"strings"
)

var traceparent = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// maxTracestate is the length that every system must forward (W3C Trace Context,
// 3.3.1.5).
const maxTracestate = 512

// Trace copies a valid trace context (W3C Trace Context) from an event's headers to h.
// It leaves out invalid values, because a trace is no reason to fail a delivery.
func Trace(h http.Header, event map[string]string) {
	parent := event["traceparent"]
	if !traceparent.MatchString(parent) || strings.HasPrefix(parent, "ff") ||
		parent[3:35] == strings.Repeat("0", 32) || parent[36:52] == strings.Repeat("0", 16) {
		return
	}
	h.Set("Traceparent", parent)
	state := event["tracestate"]
	printable := !strings.ContainsFunc(state, func(r rune) bool { return r < 0x20 || r > 0x7e })
	if state != "" && len(state) <= maxTracestate && printable {
		h.Set("Tracestate", state)
	}
}

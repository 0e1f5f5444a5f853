package relay

import (
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
)

// The status of a span has the error of the delivery log, unless the error has the key.
func TestStatusOfASpan(t *testing.T) {
	const key = "H-4711"
	for name, c := range map[string]struct {
		result outbox.Result
		want   sdktrace.Status
	}{
		"success":          {outbox.Result{Outcome: outbox.Delivered}, sdktrace.Status{}},
		"failure":          {outbox.Result{Outcome: outbox.Retry, Class: "transient", Error: "HTTP 502"}, sdktrace.Status{Code: codes.Error, Description: "HTTP 502"}},
		"an error has it":  {outbox.Result{Outcome: outbox.Failed, Class: "permanent", Error: "no hearing h-4711"}, sdktrace.Status{Code: codes.Error, Description: adapters.Hidden}},
		"the relay panics": {outbox.Result{}, sdktrace.Status{Code: codes.Error, Description: "panic"}},
	} {
		t.Run(name, func(t *testing.T) {
			spans := tracetest.NewSpanRecorder()
			_, span := newTracer(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))).Start(t.Context(), "deliver")
			endSpan(span, &outbox.Delivery{Key: key}, &c.result)
			if ended := spans.Ended(); len(ended) != 1 || ended[0].Status() != c.want {
				t.Errorf("the spans are %+v, want one with %+v", ended, c.want)
			}
		})
	}
}

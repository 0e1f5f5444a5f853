package relay

import (
	"context"
	"strings"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
)

// tracer is the name under which relays make spans.
const tracer = "github.com/hms-mkt/lockstep/relay"

func newTracer(provider trace.TracerProvider) trace.Tracer {
	if provider == nil {
		provider = otel.GetTracerProvider()
	}
	return provider.Tracer(tracer)
}

// startSpan starts the span of an attempt, by the messaging conventions of OpenTelemetry.
// The first attempt is a child of the writer's span. A later one may come hours after it, so
// it is a trace of its own with a link to the writer's. The span has no key and nothing of
// the payload.
func (p *pipeline) startSpan(ctx context.Context, d *outbox.Delivery) (context.Context, trace.Span) {
	if _, off := p.relay.tracer.(noop.Tracer); off {
		return ctx, noop.Span{}
	}
	writer := propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier(d.Event.Headers))
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindConsumer)}
	if d.Total == 0 {
		ctx = writer
	} else {
		options = append(options, trace.WithNewRoot())
		if link := trace.LinkFromContext(writer); link.SpanContext.IsValid() {
			options = append(options, trace.WithLinks(link))
		}
	}
	ctx, span := p.relay.tracer.Start(ctx, "deliver "+p.sync.Name, options...)
	if span.IsRecording() {
		span.SetAttributes(
			attribute.String("messaging.system", "lockstep"),
			attribute.String("messaging.operation.name", "deliver"),
			attribute.String("messaging.operation.type", "process"),
			attribute.String("messaging.destination.name", p.sync.Name),
			attribute.String("messaging.message.id", d.Event.ID),
			attribute.Int("messaging.message.body.size", len(d.Body)),
			attribute.String("lockstep.event.type", d.Event.Type),
			attribute.Int("lockstep.attempt", d.Total+1),
		)
	}
	return ctx, span
}

// endSpan ends the span of an attempt with what the delivery log will say of it. The log
// names the key, so its errors may have it; the span does not show such an error. A result
// without an outcome, after a panic of the relay, is an error.
func endSpan(span trace.Span, d *outbox.Delivery, r *outbox.Result) {
	if !span.IsRecording() {
		return
	}
	defer span.End()
	if r.Outcome == "" {
		span.SetAttributes(attribute.String("error.type", string(adapters.ClassUnknown)))
		span.SetStatus(codes.Error, errPanic.Error())
		return
	}
	span.SetAttributes(attribute.String("lockstep.outcome", string(r.Outcome)))
	if r.Code != "" {
		span.SetAttributes(attribute.String("lockstep.code", r.Code))
	}
	if r.Class != "" {
		text := r.Error
		if strings.Contains(text, d.Key) || adapters.Repeats(text, nil, d.Key) {
			text = adapters.Hidden
		}
		span.SetAttributes(attribute.String("error.type", r.Class))
		span.SetStatus(codes.Error, text)
	}
}

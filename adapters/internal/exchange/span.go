package exchange

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/hms-mkt/lockstep/adapters"
)

// tracer is the name under which this package makes spans.
const tracer = "github.com/hms-mkt/lockstep/adapters"

// startSpan starts the span of a request, by the conventions for HTTP clients of
// OpenTelemetry. It makes none, and the request stays as it is, unless the attempt has a
// span. Otherwise the request says the trace context of its span instead of the writer's.
// The span has no query and no value of the data: its template is that of the
// configuration.
func startSpan(ctx context.Context, r *Request) (context.Context, trace.Span) {
	attempt := trace.SpanFromContext(ctx)
	if !isOurs(attempt) {
		return ctx, trace.SpanFromContext(context.Background()) // which does nothing
	}
	port, _ := strconv.Atoi(r.URL.Port())
	attributes := []attribute.KeyValue{
		attribute.String("http.request.method", r.Method), attribute.String("server.address", r.URL.Hostname()), attribute.String("url.template", r.Target),
	}
	if port != 0 {
		attributes = append(attributes, attribute.Int("server.port", port))
	}
	ctx, span := attempt.TracerProvider().Tracer(tracer).Start(ctx, r.Method+" "+r.Target, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attributes...))
	r.Header = maps.Clone(r.Header)
	if r.Header == nil {
		r.Header = http.Header{}
	}
	r.Header.Del("Tracestate")
	propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(r.Header))
	return ctx, span
}

// StartSpan starts the span of an exchange with host and port of address, in a protocol that
// is not HTTP. The caller ends it with the result. It makes none unless the attempt has a
// span.
func StartSpan(ctx context.Context, name, address string) (_ context.Context, end func(error)) {
	attempt := trace.SpanFromContext(ctx)
	if !isOurs(attempt) {
		return ctx, func(error) {}
	}
	host, port, _ := net.SplitHostPort(address)
	number, _ := strconv.Atoi(port)
	ctx, span := attempt.TracerProvider().Tracer(tracer).Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attribute.String("server.address", host), attribute.Int("server.port", number)))
	return ctx, func(err error) {
		if err != nil {
			class := string(adapters.ClassOf(err))
			span.SetAttributes(attribute.String("error.type", class))
			span.SetStatus(codes.Error, class)
		}
		span.End()
	}
}

// isOurs reports whether this process made the span. Without a tracer, the writer's is in
// its place.
func isOurs(span trace.Span) bool {
	return span.SpanContext().IsValid() && !span.SpanContext().IsRemote()
}

// endSpan ends the span of a request with its answer, or with why there is none.
func endSpan(span trace.Span, answer Answer, err error) {
	if !span.IsRecording() {
		return
	}
	switch {
	case err != nil:
		class := string(adapters.ClassOf(err))
		span.SetAttributes(attribute.String("error.type", class))
		span.SetStatus(codes.Error, class)
	case answer.Status >= 400:
		span.SetAttributes(attribute.Int("http.response.status_code", answer.Status), attribute.String("error.type", strconv.Itoa(answer.Status)))
		span.SetStatus(codes.Error, "")
	default:
		span.SetAttributes(attribute.Int("http.response.status_code", answer.Status))
	}
	span.End()
}

// tokenSpans makes a span for each request to a token endpoint.
type tokenSpans struct{ http.RoundTripper }

func (t tokenSpans) RoundTrip(req *http.Request) (*http.Response, error) {
	attempt := trace.SpanFromContext(req.Context())
	if !isOurs(attempt) {
		return t.RoundTripper.RoundTrip(req)
	}
	ctx, span := attempt.TracerProvider().Tracer(tracer).Start(req.Context(), req.Method+" token", trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attribute.String("http.request.method", req.Method), attribute.String("server.address", req.URL.Hostname())))
	res, err := t.RoundTripper.RoundTrip(req.WithContext(ctx))
	answer := Answer{}
	if res != nil {
		answer.Status = res.StatusCode
	} else if err == nil {
		err = errors.New("no answer")
	}
	endSpan(span, answer, err)
	return res, err
}

package main

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/hms-mkt/lockstep/outbox"
)

// tracing makes spans and exports them. The zero value makes none.
type tracing struct {
	provider *sdktrace.TracerProvider
	database pgx.QueryTracer // nil: database calls have no spans
}

// defaultCollector is where OpenTelemetry says that a collector is.
const defaultCollector = "http://localhost:4318/v1/traces"

// flushFor bounds the export of the last spans when the program ends.
const flushFor = 3 * time.Second

// tracing reads the variables of OpenTelemetry. Without one of them there are no spans. The
// SDK reads the rest of them itself: endpoint, headers, timeouts, sampler, limits and
// resource.
func (a *app) tracing(ctx context.Context, relay string) (*tracing, error) {
	const off, otlp = "none", "otlp"
	exporter := a.getenv("OTEL_TRACES_EXPORTER")
	endpointIn, endpoint := a.firstOf("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
	switch {
	case strings.EqualFold(a.getenv("OTEL_SDK_DISABLED"), "true"), exporter == off, exporter == "" && endpoint == "":
		return &tracing{}, nil
	case exporter != "" && exporter != otlp:
		return nil, usagef("OTEL_TRACES_EXPORTER=%s: only otlp and none are known here", exporter)
	}
	if in, protocol := a.firstOf("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"); protocol != "" && protocol != "http/protobuf" {
		return nil, usagef("%s=%s is not supported: write http/protobuf, which a collector takes at port 4318", in, protocol)
	}
	var options []otlptracehttp.Option
	if u, err := url.Parse(endpoint); endpoint != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
		return nil, usagef("%s is not a URL such as http://127.0.0.1:4318", endpointIn)
	} else if endpoint == "" {
		options = append(options, otlptracehttp.WithEndpointURL(defaultCollector)) // the exporter's own default is https
	}
	export, err := otlptracehttp.New(ctx, options...)
	if err != nil {
		return nil, usagef("traces cannot be exported: %w; check the variables that begin with OTEL_EXPORTER_OTLP_", err)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(
			attribute.String("service.name", "lockstep"), attribute.String("service.version", thisBuild().Version), attribute.String("service.instance.id", relay)),
		resource.WithFromEnv(), resource.WithTelemetrySDK())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, usagef("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	var wrong error // the provider tells wrong variables of the sampler only to the handler
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { wrong = errors.Join(wrong, err) }))
	t := &tracing{provider: sdktrace.NewTracerProvider(sdktrace.WithResource(about))}
	if wrong != nil {
		return nil, usagef("OTEL_TRACES_SAMPLER or OTEL_TRACES_SAMPLER_ARG: %w", wrong)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(a.exportFailed()))
	t.provider.RegisterSpanProcessor(sdktrace.NewBatchSpanProcessor(export))
	if strings.EqualFold(a.getenv("LOCKSTEP_TRACE_DATABASE"), "true") {
		t.database = databaseSpans{t.provider.Tracer("github.com/hms-mkt/lockstep/outbox")}
	}
	return t, nil
}

// firstOf returns the first of the variables that is set, and its value.
func (a *app) firstOf(variables ...string) (name, value string) {
	for _, name = range variables {
		if value = a.getenv(name); value != "" {
			break
		}
	}
	return name, value
}

// exportFailed logs failures of the export, at most one a minute. A collector that is away
// costs spans, and nothing else.
func (a *app) exportFailed() func(error) {
	const pause = time.Minute
	said := make(chan time.Time, 1)
	said <- time.Time{}
	return func(err error) {
		last := <-said
		if time.Since(last) >= pause {
			last = time.Now()
			a.log.Warn("spans were not exported; deliveries continue", "error", err)
		}
		said <- last
	}
}

// tracers returns what makes spans.
func (t *tracing) tracers() trace.TracerProvider {
	if t.provider == nil {
		return noop.NewTracerProvider()
	}
	return t.provider
}

// close exports the last spans, for a short time.
func (t *tracing) close(ctx context.Context, log *slog.Logger) {
	if t.provider == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushFor)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		log.WarnContext(ctx, "the last spans were not exported", "error", err)
	}
}

// databaseSpans makes a span of each statement, and one of each batch. They are named by the
// comment with which a statement of Lockstep begins, and have no values.
type databaseSpans struct{ trace.Tracer }

var (
	_ pgx.QueryTracer = databaseSpans{}
	_ pgx.BatchTracer = databaseSpans{}
)

func (d databaseSpans) start(ctx context.Context, name string) context.Context {
	ctx, _ = d.Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		attribute.String("db.system.name", "postgresql"), attribute.String("db.query.summary", name)))
	return ctx
}

func (databaseSpans) end(ctx context.Context, err error) {
	span := trace.SpanFromContext(ctx)
	if err != nil {
		span.SetStatus(codes.Error, outbox.Brief(err))
	}
	span.End()
}

// TraceQueryStart implements [pgx.QueryTracer].
func (d databaseSpans) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	return d.start(ctx, summary(q.SQL))
}

// TraceQueryEnd implements [pgx.QueryTracer].
func (d databaseSpans) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryEndData) {
	d.end(ctx, q.Err)
}

// TraceBatchStart implements [pgx.BatchTracer].
func (d databaseSpans) TraceBatchStart(ctx context.Context, _ *pgx.Conn, b pgx.TraceBatchStartData) context.Context {
	if len(b.Batch.QueuedQueries) == 0 {
		return d.start(ctx, "batch")
	}
	return d.start(ctx, summary(b.Batch.QueuedQueries[0].SQL))
}

// TraceBatchQuery implements [pgx.BatchTracer].
func (databaseSpans) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd implements [pgx.BatchTracer].
func (d databaseSpans) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, b pgx.TraceBatchEndData) {
	d.end(ctx, b.Err)
}

// summary is the comment at the beginning of a statement, or its first word.
func summary(sql string) string {
	sql = strings.TrimSpace(sql)
	if comment, ok := strings.CutPrefix(sql, "-- lockstep: "); ok {
		line, _, _ := strings.Cut(comment, "\n")
		return line
	}
	word, _, _ := strings.Cut(strings.ReplaceAll(sql, "\n", " "), " ")
	return strings.ToUpper(word)
}

// inTrace adds the ids of the span to log lines that are about an attempt.
type inTrace struct{ slog.Handler }

func (h inTrace) Handle(ctx context.Context, r slog.Record) error {
	if span := trace.SpanContextFromContext(ctx); span.IsValid() {
		r = r.Clone()
		r.AddAttrs(slog.String("trace_id", span.TraceID().String()), slog.String("span_id", span.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h inTrace) WithAttrs(attrs []slog.Attr) slog.Handler {
	return inTrace{h.Handler.WithAttrs(attrs)}
}

func (h inTrace) WithGroup(name string) slog.Handler { return inTrace{h.Handler.WithGroup(name)} }

package main

import (
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/hms-mkt/lockstep/internal/waiting"
)

// telescope is a collector of OpenTelemetry: it takes spans by HTTP.
type telescope struct {
	*httptest.Server
	t        *testing.T
	mu       sync.Mutex
	spans    []*spans.Span
	resource map[string]string
}

func newTelescope(t *testing.T) *telescope {
	t.Helper()
	c := &telescope{t: t}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *telescope) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(r.Body)
		if err != nil {
			c.t.Error(err)
			return
		}
		body = unpacked
	}
	raw, err := io.ReadAll(body)
	var sent collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(raw, &sent)
	}
	if err != nil || r.URL.Path != "/v1/traces" {
		c.t.Errorf("%s: %v", r.URL.Path, err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range sent.GetResourceSpans() {
		c.resource = attributes(of.GetResource().GetAttributes())
		for _, scope := range of.GetScopeSpans() {
			c.spans = append(c.spans, scope.GetSpans()...)
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func attributes(list []*common.KeyValue) map[string]string {
	all := map[string]string{}
	for _, a := range list {
		switch v := a.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			all[a.GetKey()] = v.StringValue
		case *common.AnyValue_IntValue:
			all[a.GetKey()] = fmt.Sprint(v.IntValue)
		}
	}
	return all
}

// named waits for n spans of a name, the first to begin first.
func (c *telescope) named(name string, n int) (found []*spans.Span) {
	c.t.Helper()
	waiting.For(c.t, waitTimeout, fmt.Sprintf("%d spans %s", n, name), func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		found = nil
		for _, s := range c.spans {
			if s.GetName() == name {
				found = append(found, s)
			}
		}
		return len(found) >= n
	})
	slices.SortFunc(found, func(a, b *spans.Span) int {
		return int(int64(a.GetStartTimeUnixNano()) - int64(b.GetStartTimeUnixNano()))
	})
	return found
}

func (w *world) traced(c *telescope, more ...string) {
	w.env["OTEL_EXPORTER_OTLP_ENDPOINT"], w.env["OTEL_BSP_SCHEDULE_DELAY"] = c.URL, "50"
	for i := 0; i < len(more); i += 2 {
		w.env[more[i]] = more[i+1]
	}
}

const (
	writerTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	writerSpan  = "00f067aa0ba902b7"
)

// From the writer's span to the receiver: the first attempt is the writer's child, a retry
// has a link to it, and the receiver is told the span of the request.
func TestAttemptsAreTraced(t *testing.T) {
	w := newWorld(t)
	c := newTelescope(t)
	w.traced(c, "OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
	var mu sync.Mutex
	var told []string
	w.court.answers(func(r *http.Request, body string) int {
		mu.Lock()
		defer mu.Unlock()
		if !strings.Contains(body, "H-1") {
			return http.StatusCreated
		}
		told = append(told, r.Header.Get("Traceparent"))
		if len(told) == 1 {
			return http.StatusBadGateway
		}
		return http.StatusCreated
	})
	id := ask[string](w, fmt.Sprintf(`INSERT INTO outbox.event (type, key, payload, headers) VALUES ('scheduling:created', 'H-1', '{"hearingId": "H-1", "party": "Smith"}', '{"traceparent": "00-%s-%s-01"}') RETURNING id::text`, writerTrace, writerSpan))
	p := w.spawn(program(t))
	attempts := c.named("deliver CourtCalendarSync", 2)
	requests := c.named("POST "+strings.TrimPrefix(w.court.URL, "http://")+"/api/calendar", 2)

	first, second := attempts[0], attempts[1]
	if hex.EncodeToString(first.GetTraceId()) != writerTrace || hex.EncodeToString(first.GetParentSpanId()) != writerSpan || first.GetKind() != spans.Span_SPAN_KIND_CONSUMER {
		t.Errorf("the first attempt is %v", first)
	}
	if len(second.GetParentSpanId()) > 0 || len(second.GetLinks()) != 1 || hex.EncodeToString(second.GetLinks()[0].GetTraceId()) != writerTrace {
		t.Errorf("the second attempt is %v", second)
	}
	for i, want := range []map[string]string{
		{"lockstep.attempt": "1", "lockstep.outcome": "retry", "lockstep.code": "HTTP 502", "error.type": "transient"},
		{"lockstep.attempt": "2", "lockstep.outcome": "delivered", "lockstep.code": "HTTP 201"},
	} {
		want["messaging.message.id"], want["messaging.destination.name"], want["messaging.system"], want["lockstep.event.type"] = id, "CourtCalendarSync", "lockstep", "scheduling:created"
		got := attributes(attempts[i].GetAttributes())
		for key, value := range want {
			if got[key] != value {
				t.Errorf("attempt %d: %s is %q, want %q", i+1, key, got[key], value)
			}
		}
		request := requests[i]
		if !slices.Equal(request.GetParentSpanId(), attempts[i].GetSpanId()) || request.GetKind() != spans.Span_SPAN_KIND_CLIENT || attributes(request.GetAttributes())["http.request.method"] != "POST" {
			t.Errorf("request %d is %v", i+1, request)
		}
		if want := fmt.Sprintf("00-%x-%x-01", request.GetTraceId(), request.GetSpanId()); told[i] != want {
			t.Errorf("request %d tells the receiver %s, want %s", i+1, told[i], want)
		}
	}
	if c.resource["service.name"] != "lockstep" || c.resource["service.instance.id"] != "relay-1" || c.resource["deployment.environment"] != "test" {
		t.Errorf("the resource is %v", c.resource)
	}
	if text := fmt.Sprint(c.spans); strings.Contains(text, "Smith") || strings.Contains(text, "H-1") || strings.Contains(text, "canary") {
		t.Errorf("a span has something of the payload, the key or a secret: %s", text)
	}
	if line := p.says(t, "attempt failed"); line["trace_id"] != writerTrace || line["span_id"] != hex.EncodeToString(first.GetSpanId()) {
		t.Errorf("the log says %v", line)
	}

	// Without a traceparent, or with a wrong one, an attempt is a trace of its own.
	w.emit("H-2", `{"hearingId": "H-2"}`)
	ask[string](w, `INSERT INTO outbox.event (type, key, payload, headers) VALUES ('scheduling:created', 'H-3', '{"hearingId": "H-3"}', '{"traceparent": "00-zz-1"}') RETURNING id::text`)
	for _, s := range c.named("deliver CourtCalendarSync", 4)[2:] {
		if len(s.GetParentSpanId()) > 0 || len(s.GetLinks()) > 0 {
			t.Errorf("an attempt without a writer's span is %v", s)
		}
	}
	w.eventually(nothingOpen)
}

// An event for two syncs has an attempt for each below the writer's span. A request for a
// token is a part of the attempt that needed it. The log of deliveries names the key, so an
// error may repeat it, but not in a span.
func TestEachSyncHasItsAttempt(t *testing.T) {
	w := newWorld(t)
	c := newTelescope(t)
	w.traced(c)
	archive := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/token" {
			_, _ = io.WriteString(w, `{"access_token": "token-canary", "token_type": "Bearer", "expires_in": 3600}`)
			return
		}
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = io.WriteString(w, `{"message": "H-4711 is unknown"}`)
	}))
	t.Cleanup(archive.Close)
	w.env["ARCHIVE_SECRET"] = "archive-canary"
	w.configure(fmt.Sprintf(courtYAML, w.court.URL) + fmt.Sprintf(`
  - name: ArchiveSync
    events: ["scheduling:*"]
    adapter: {kind: rest, url: "%[1]s/archive", external_id: /id,
      auth: {kind: oauth2_client_credentials, token_url: "%[1]s/token", client_id: agency, client_secret: "${ARCHIVE_SECRET}"}}
    mapping: {hearingId: case_reference}
`, archive.URL))
	p := w.spawn(program(t))
	ask[string](w, fmt.Sprintf(`INSERT INTO outbox.event (type, key, payload, headers) VALUES ('scheduling:created', 'H-4711', '{"hearingId": "H-4711"}', '{"traceparent": "00-%s-%s-01", "tracestate": "vendor=1"}') RETURNING id::text`, writerTrace, writerSpan))

	sent := c.named("deliver CourtCalendarSync", 1)[0]
	refused := c.named("deliver ArchiveSync", 1)[0]
	for _, attempt := range []*spans.Span{sent, refused} {
		if hex.EncodeToString(attempt.GetParentSpanId()) != writerSpan || attempt.GetTraceState() != "vendor=1" {
			t.Errorf("the attempt is %v", attempt)
		}
	}
	token, request := c.named("POST token", 1)[0], c.named("POST "+strings.TrimPrefix(archive.URL, "http://")+"/archive", 1)[0]
	for _, part := range []*spans.Span{token, request} {
		if !slices.Equal(part.GetParentSpanId(), refused.GetSpanId()) || part.GetKind() != spans.Span_SPAN_KIND_CLIENT {
			t.Errorf("a part of the attempt is %v", part)
		}
	}
	if got := refused.GetStatus().GetCode(); got != spans.Status_STATUS_CODE_ERROR || sent.GetStatus().GetCode() != spans.Status_STATUS_CODE_UNSET {
		t.Errorf("the refused attempt has %v, the other one %v", refused.GetStatus(), sent.GetStatus())
	}
	if line := p.says(t, "failed"); !strings.Contains(fmt.Sprint(line["error"]), "H-4711") {
		t.Errorf("the log says %v, so this test shows nothing about keys", line)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if text := fmt.Sprint(c.spans); strings.Contains(text, "H-4711") || strings.Contains(text, "canary") {
		t.Errorf("a span has the key or a secret: %s", text)
	}
}

// Spans of database calls are made only on demand.
func TestDatabaseCallsAreTracedOnDemand(t *testing.T) {
	w := newWorld(t)
	c := newTelescope(t)
	w.traced(c, "LOCKSTEP_TRACE_DATABASE", "true")
	w.spawn(program(t))
	w.emit("H-1", `{"hearingId": "H-1"}`)
	c.named("deliver CourtCalendarSync", 1)
	for _, name := range []string{"record finished", "first deliveries"} {
		if got := attributes(c.named(name, 1)[0].GetAttributes()); got["db.system.name"] != "postgresql" {
			t.Errorf("%s has %v", name, got)
		}
	}
}

// A collector that is away or refuses costs spans, and nothing else.
func TestACollectorThatIsAwayDelaysNothing(t *testing.T) {
	for name, endpoint := range map[string]string{
		"away": "http://" + freeAddress(t),
		"refuses": func() string {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }))
			t.Cleanup(s.Close)
			return s.URL
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.env["OTEL_EXPORTER_OTLP_ENDPOINT"], w.env["OTEL_BSP_SCHEDULE_DELAY"], w.env["OTEL_BSP_EXPORT_TIMEOUT"] = endpoint, "50", "500"
			p := w.spawn(program(t))
			for n := range 50 {
				w.emit(fmt.Sprint("H-", n), fmt.Sprintf(`{"hearingId": "H-%d"}`, n))
			}
			w.eventually(nothingOpen)
			p.says(t, "spans were not exported; deliveries continue")
			if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			p.exits(t, 0)
		})
	}
}

// A collector that does not answer delays neither deliveries nor, for long, the end.
func TestACollectorThatHangsDoesNotHoldTheEnd(t *testing.T) {
	const exportFor = 5 * time.Minute
	w := newWorld(t)
	asked, released := make(chan struct{}, 100), make(chan struct{})
	hangs := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-released
	}))
	t.Cleanup(func() { close(released); hangs.Close() })
	ms := fmt.Sprint(exportFor.Milliseconds())
	w.env["OTEL_EXPORTER_OTLP_ENDPOINT"], w.env["OTEL_BSP_SCHEDULE_DELAY"] = hangs.URL, "50"
	w.env["OTEL_EXPORTER_OTLP_TIMEOUT"], w.env["OTEL_BSP_EXPORT_TIMEOUT"] = ms, ms
	p := w.spawn(program(t))
	w.emit("H-1", `{"hearingId": "H-1"}`)
	<-asked
	w.emit("H-2", `{"hearingId": "H-2"}`)
	w.eventually(nothingOpen)
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	p.says(t, "the last spans were not exported")
	p.exits(t, 0)
}

// Without a URL, a collector is expected at the address that OpenTelemetry has for it. The
// test needs that port.
func TestTheDefaultCollectorSpeaksPlainHTTP(t *testing.T) {
	w := newWorldAlone(t)
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:4318")
	if err != nil {
		t.Fatalf("the default port of collectors is taken on this machine: %v", err)
	}
	c := &telescope{t: t}
	c.Server = &httptest.Server{Listener: listener, Config: &http.Server{Handler: c}} //nolint:gosec // a test
	c.Start()
	t.Cleanup(c.Close)
	w.env["OTEL_TRACES_EXPORTER"], w.env["OTEL_BSP_SCHEDULE_DELAY"] = "otlp", "50"
	w.spawn(program(t))
	w.emit("H-1", `{"hearingId": "H-1"}`)
	c.named("deliver CourtCalendarSync", 1)
}

func TestWrongVariablesOfTracingAreRefused(t *testing.T) {
	for variable, want := range map[string]string{
		"OTEL_TRACES_EXPORTER=jaeger":                  "only otlp and none are known here",
		"OTEL_EXPORTER_OTLP_PROTOCOL=grpc":             "OTEL_EXPORTER_OTLP_PROTOCOL=grpc is not supported: write http/protobuf",
		"OTEL_TRACES_SAMPLER=sometimes":                "OTEL_TRACES_SAMPLER_ARG: unsupported sampler: sometimes",
		"OTEL_EXPORTER_OTLP_ENDPOINT=collector:4317":   "OTEL_EXPORTER_OTLP_ENDPOINT is not a URL such as http://127.0.0.1:4318",
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=ftp://a/b": "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is not a URL such as http://127.0.0.1:4318",
	} {
		w := newWorldAlone(t)
		name, value, _ := strings.Cut(variable, "=")
		w.env["OTEL_TRACES_EXPORTER"] = "otlp"
		w.env[name] = value
		w.execute(program(t), "run").wants(t, exitUsage, want)
	}
	w := newWorldAlone(t)
	w.env["OTEL_SDK_DISABLED"], w.env["OTEL_EXPORTER_OTLP_PROTOCOL"], w.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = "true", "grpc", "http://127.0.0.1:4317"
	w.spawn(program(t)).says(t, "relay running")
}

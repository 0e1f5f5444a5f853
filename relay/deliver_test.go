package relay

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/outbox"
)

// A panic in the mapping fails that delivery, and the process's log has the
// stack. No configuration is known to cause one, so the mapper is broken here.
func TestPanicInTheMappingFailsTheDelivery(t *testing.T) {
	var log bytes.Buffer
	p := &pipeline{filter: &Filter{}, log: slog.New(slog.NewTextHandler(&log, nil))}
	p.mapper = &Mapper{}
	p.mapper.scratch.New = func() any { panic("no hearing of Jane Roe") }
	d := &outbox.Delivery{Key: "H-1", Event: outbox.Event{ID: "E-1", Payload: []byte(`{"party":"Jane Roe"}`)}}
	result, ok := p.prepare(d)
	if ok || !result.Failed || result.Class != "mapping" || !strings.Contains(result.Error, "panic in the mapping") {
		t.Errorf("prepared %t, result %+v; want it failed with class mapping", ok, result)
	}
	if said := log.String(); !strings.Contains(said, "mapping panicked") || !strings.Contains(said, "deliver_test.go") || strings.Contains(said, "Jane") {
		t.Errorf("want a stack without names in the log: %s", said)
	}
}

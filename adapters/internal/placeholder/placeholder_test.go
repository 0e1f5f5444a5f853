package placeholder_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

func TestExpand(t *testing.T) {
	msg := adapters.Message{
		ID: "e-1", Type: "scheduling:updated", Key: "7", Version: new(int64(4)), OccurredAt: time.Date(2027, 3, 1, 9, 30, 0, 0, time.FixedZone("", -5*3600)),
		Body: []byte(`{"n":12345678901234567890,"yes":true,"court":{"room":"3A","tags":["a"]},"empty":"","none":null}`), Ref: adapters.Ref{ExternalID: "x-7"},
	}
	for text, want := range map[string]string{
		"":                            "",
		"plain":                       "plain",
		"{id}/{type}/{key}":           "<e-1>/<scheduling:updated>/<7>",
		"v{version} at {occurred_at}": "v<4> at <2027-03-01T14:30:00Z>",
		"{ref.external_id}":           "<x-7>",
		"{fields.n} {fields.yes}":     "<12345678901234567890> <true>",
		"{fields.court.room}":         "<3A>",
		"{fields.court.tags}":         "error: {fields.court.tags} is an object or a list",
		"{fields.empty}":              "error: {fields.empty} is empty",
		"{fields.none}":               "error: {fields.none} is not known: the mapped fields have none of this name, or null",
		"{fields.court.room.x}":       "error: {fields.court.room.x} is not known",
		"{nope}":                      "error: {nope} is not a placeholder that is allowed here; known are {id}, {idempotency_key}, {type}, {key}, {version}, {occurred_at}, {ref.external_id}, {ref.etag}, {fields.NAME} for a mapped field",
		"{fields.a..b}":               "error: {fields.a..b} is not a placeholder that is allowed here",
		"{":                           "error: a brace does not belong",
		"}{key}":                      "error: a brace does not belong",
	} {
		got := ""
		tmpl, err := placeholder.Parse(text, placeholder.Any)
		if err == nil {
			got, err = tmpl.Expand(&placeholder.Values{Msg: msg}, func(value string) (string, error) { return "<" + value + ">", nil })
		}
		if err != nil {
			got = "error: " + err.Error()
		}
		begun := strings.HasPrefix(want, "error: ") && strings.HasPrefix(got, want)
		if got != want && !begun {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	tmpl, err := placeholder.Parse("a{key}b{fields.x}", placeholder.Any)
	if want := []string{"key", "fields.x"}; err != nil || !slices.Equal(tmpl.Names(), want) {
		t.Errorf("%v, %v", tmpl.Names(), err)
	}
}

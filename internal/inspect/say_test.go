package inspect

import (
	"strings"
	"testing"
	"time"
)

func TestAnswerLeavesOutTheRequest(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{
		"POST 127.0.0.1:8081/api/calendar: answered HTTP 422: no such courtroom.": "HTTP 422: no such courtroom",
		"token endpoint id.example.gov: answered HTTP 401: invalid_client":        "token endpoint id.example.gov: answered HTTP 401: invalid_client",
		"field courtroom is missing":                                              "field courtroom is missing",
		"two\nlines":                                                              "two lines",
		"":                                                                        "no reason was recorded",
	} {
		if got := Answer(given); got != want {
			t.Errorf("%q: got %q, want %q", given, got, want)
		}
	}
}

func TestPersonIsTheNameBehindASharedLogin(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{"agency_operator/maria": "maria", "maria": "maria", "op/a/b": "a/b", "": "somebody"} {
		if got := Person(given); got != want {
			t.Errorf("%q: got %q, want %q", given, got, want)
		}
	}
}

func TestAHoldSaysWhyAndUntilWhen(t *testing.T) {
	t.Parallel()
	at := func(hour int) *time.Time { return new(time.Date(2027, 3, 10, hour, 0, 0, 0, time.UTC)) }
	now := *at(12)
	for _, test := range []struct {
		hold Hold
		want string
	}{
		{Hold{Kind: "operator", By: "op/maria", Reason: "moves house"}, "Sending was paused by maria at 10 Mar 2027 10:00:00 UTC: moves house. It continues when a person resumes it."},
		{Hold{Kind: "operator", By: "jo", Reason: "x", Scope: "ny07", Until: at(13)}, "Sending to ny07 was paused by jo at 10 Mar 2027 10:00:00 UTC: x. It continues at 10 Mar 2027 13:00:00 UTC."},
		{Hold{Kind: "auth", Reason: "POST a/b: answered HTTP 401: no", Until: at(13)}, "Sending is stopped since 10 Mar 2027 10:00:00 UTC, because the receiver refuses our credentials: HTTP 401: no. It will be tried again at 10 Mar 2027 13:00:00 UTC."},
		{Hold{Kind: "breaker", Reason: "refused", Until: at(11)}, "Sending is stopped since 10 Mar 2027 10:00:00 UTC, because the receiver does not answer as it should: refused. It is about to be tried again."},
		{Hold{Kind: "throttle", Reason: "HTTP 429", Until: at(13)}, "Sending waits since 10 Mar 2027 10:00:00 UTC, because the receiver asked for a pause: HTTP 429. It continues at 10 Mar 2027 13:00:00 UTC."},
		{Hold{Kind: "window", Reason: "outside its window, opens Wed 2027-03-10 08:00 America/New_York", Until: at(13)}, "Sending waits since 10 Mar 2027 10:00:00 UTC: it is outside its window, opens Wed 2027-03-10 08:00 America/New_York. It continues at 10 Mar 2027 13:00:00 UTC."},
		{Hold{Kind: "backfill", Reason: "waits for pid 7"}, "Sending waits since 10 Mar 2027 10:00:00 UTC until older events are added: waits for pid 7."},
	} {
		test.hold.Since = *at(10)
		if got := test.hold.Says(now).In(time.UTC); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}

func TestAnOpenDeliverySaysWhatBecomesOfIt(t *testing.T) {
	t.Parallel()
	now := time.Date(2027, 3, 10, 12, 0, 0, 0, time.UTC)
	pause := Hold{Kind: "operator", By: "op/maria", Reason: "moves house", Since: now}
	for _, test := range []struct {
		open  Delivery
		holds []Hold
		want  string // sentences
		now   string
	}{
		{Delivery{State: "failed", ErrorClass: "permanent", Attempts: 1, Error: "no such room"}, nil, "it was refused: no such room. It waits for a person.", "waits for a person"},
		{Delivery{State: "failed", ErrorClass: "mapping", Error: "field room is missing"}, nil, "it was not sent, because its fields could not be mapped: field room is missing. It waits", "waits for a person"},
		{Delivery{State: "failed", ErrorClass: "transient", Attempts: 3, Error: "HTTP 500"}, nil, "it was given up after 3 attempts: HTTP 500. It waits", "waits for a person"},
		{Delivery{State: "pending"}, []Hold{pause}, "Sending was paused by maria", "is sent next, when the hold has ended"},
		{Delivery{State: "pending"}, nil, "It is about to be sent.", "is sent next"},
	} {
		lane := Lane{Sync: "Court", First: &test.open, Holds: test.holds, Open: 1, Served: true}
		_, said := lane.saysOpen(&Story{At: now})
		var text strings.Builder
		for _, s := range said {
			text.WriteString(s.In(time.UTC) + "\n")
		}
		if !strings.Contains(text.String(), test.want) {
			t.Errorf("says  %swant %s", text.String(), test.want)
		}
		if got := lane.Now(&LaneEvent{Delivery: &test.open}); got != test.now {
			t.Errorf("got %q, want %q", got, test.now)
		}
	}
}

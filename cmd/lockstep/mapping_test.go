package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// telling is an adapter that previews its request.
type telling struct{ t *testing.T }

func (a telling) Deliver(context.Context, adapters.Message) (adapters.Receipt, error) {
	a.t.Error("something was sent")
	return adapters.Receipt{}, nil
}

func (telling) Preview(msg adapters.Message) (adapters.Preview, error) {
	if msg.Ref.ExternalID == "" {
		return adapters.Preview{}, errors.New("{ref.external_id} is not known")
	}
	return adapters.Preview{
		Method: "PUT", URL: "https://court.example.gov/" + msg.Ref.ExternalID,
		ContentType: "text/xml", Body: []byte("<number>\n\x1b1</number>"),
	}, nil
}

// The fields of a request without a body are not shown as its body.
func TestMapOfARequestWithoutABody(t *testing.T) {
	w := newWorld(t)
	w.configure(`
syncs:
  - name: Rooms
    events: ["scheduling:cancelled"]
    adapter: {kind: rest, method: DELETE, url: "https://court.example.gov/{fields.room}", body: none}
    mapping: {room: room}
`)
	w.stdin = `{"room": "3A"}`
	text := w.run("map", "Rooms", "-").wants(t, 0, "DELETE https://court.example.gov/3A", "note             sent without a body").stdout
	if strings.Contains(text, `"room"`) {
		t.Errorf("a body is shown:\n%s", text)
	}
	if p := decode[preview](t, w.run("map", "Rooms", "-", "-o", "json").wants(t, 0)); !p.Send || p.Body != nil {
		t.Errorf("got %+v", p)
	}
}

// The segments of an HL7 message end with CR, and are shown as lines.
func TestMapOfAnHL7Message(t *testing.T) {
	w := newWorld(t)
	w.configure(`
syncs:
  - name: ClinicSync
    events: ["scheduling:*"]
    adapter: {kind: hl7, address: "clinic.example.org:2575", messages: {"*": S12}, segments: "SCH|{key}||||||^{fields.title}\nNTE|1||{fields.remarks?}"}
    mapping: {title: title, remarks: {to: remarks, optional: true}}
`)
	w.stdin = `{"title": "Hearing | 7", "remarks": "a\nb"}`
	w.run("map", "ClinicSync", "-", "--key", "H-7").wants(t, 0, "SIU^S12 mllp://clinic.example.org:2575", "sent as x-application/hl7-v2+er7:",
		"|P|2.5.1||||||UNICODE UTF-8\nSCH|H-7||||||^Hearing \\F\\ 7\nNTE|1||a\\.br\\b\n")
}

// A cancellation of a hearing that was never created is shown as no request.
func TestMapOfWhatIsNotSent(t *testing.T) {
	w := newWorld(t)
	w.configure(`
syncs:
  - name: Court
    events: ["hearing:*"]
    adapter:
      kind: rest
      url: https://court.example.gov/hearings
      external_id: /id
      routes:
        "hearing:cancelled": {method: DELETE, url: "https://court.example.gov/hearings/{ref.external_id}", without_id: skip}
    mapping: {room: room}
`)
	w.stdin = `{"room": "3A"}`
	said := w.run("map", "Court", "-", "--type", "hearing:cancelled").wants(t, 0, "would not be sent: filtered: nothing to cancel").stdout
	if strings.Contains(said, "DELETE") || strings.Contains(said, "3A") {
		t.Errorf("a request is shown:\n%s", said)
	}
	w.run("map", "Court", "-", "--type", "hearing:cancelled", "--ref", "C-7").wants(t, 0, "DELETE https://court.example.gov/hearings/C-7")
}

// An ETag that is given and not sent has a note that says why.
func TestMapOfAnETagThatIsNotSent(t *testing.T) {
	w := newWorld(t)
	w.configure(`
syncs:
  - name: Rooms
    events: ["h:*"]
    adapter:
      kind: rest
      url: https://court.example.gov/rooms
      if_match: true
      external_id: /id
      routes: {"h:moved": {if_match: weak}}
`)
	w.stdin = `{"room": "3A"}`
	const note = "the ETag is not sent as If-Match"
	w.run("map", "Rooms", "-", "--type", "h:booked", "--etag", `W/"3"`).wants(t, 0, note)
	for _, args := range [][]string{{"h:moved", "--etag", `W/"3"`}, {"h:booked", "--etag", `"3"`}, {"h:booked"}} {
		text := w.run(append([]string{"map", "Rooms", "-", "--type"}, args...)...).wants(t, 0).stdout
		if strings.Contains(text, note) {
			t.Errorf("%q: got a note:\n%s", args, text)
		}
	}
}

// A route does nothing for a type that the writer spells otherwise.
// A misspelt payload would look like a mapping without its fields.
func TestMapSaysThatAFileIsTakenForAPayload(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(t.TempDir(), "event.json")
	writeFile(t, file, `{"type": "scheduling:created", "key": "H-1", "paylod": {"hearingId": "H-1"}}`)
	if r := w.run("map", "CourtCalendarSync", file); !strings.Contains(r.stderr, `event.json has "type" and no object "payload", so all of it is taken for a payload`) {
		t.Errorf("said %q", r.stderr)
	}
}

func TestMapSaysThatATypeIsAlmostARoute(t *testing.T) {
	w := newWorld(t)
	w.configure(`
syncs:
  - name: Rooms
    events: ["scheduling:*"]
    adapter: {kind: rest, url: "https://court.example.gov/", routes: {"scheduling:cancelled": {method: DELETE, body: none}}}
`)
	w.stdin = `{"room": "3A"}`
	const note = "note             the adapter has no entry for type scheduling:canceled. Did you mean scheduling:cancelled?"
	w.run("map", "Rooms", "-", "--type", "scheduling:canceled").wants(t, 0, "POST https://court.example.gov/", note)
	w.stdin = `{"room": "3A"}`
	if text := w.run("map", "Rooms", "-", "--type", "scheduling:created").wants(t, 0).stdout; strings.Contains(text, "Did you mean") {
		t.Errorf("got\n%s", text)
	}
}

// The value of a ${…} in a mapping or a condition may be a secret.
func TestMapHidesSubstitutedValues(t *testing.T) {
	w := newWorld(t)
	w.env["SECRET"], w.env["COMPUTED"], w.env["ROOM"] = `hunter2"<é`, "hunter3", "3A"
	w.configure(strings.Replace(fmt.Sprintf(courtYAML, w.court.URL), "    mapping: {",
		`    compute: {both: '"a ${ROOM} " + event.hearingId + " ${COMPUTED}"'}
    mapping: {secret: {const: {list: ["x ${SECRET}"]}}, place: {const: "${ROOM}"}, `, 1))
	w.stdin = `{"hearingId": "H-1"}`
	p := decode[preview](t, w.run("map", "CourtCalendarSync", "-", "-o", "json").wants(t, 0))
	if want := `{"secret":{"list":["x ***"]},"place":"3A","case_reference":"H-1","both":"a 3A H-1 ***"}`; compact(t, p.Body) != want {
		t.Errorf("got  %s\nwant %s", p.Body, want)
	}
}

// A service may require credentials in the envelope, where no key says that they are secret.
func TestMapHidesSubstitutedValuesInATemplate(t *testing.T) {
	w := newWorld(t)
	w.env["SECRET"], w.env["HOST"] = "hunter2&amp;3", "clinic.example"
	w.configure(`
database: {url: "${DATABASE_URL}"}
syncs:
  - name: ClinicCalendarSync
    event: a
    adapter:
      kind: soap
      url: https://${HOST}/calendar
      header: <Key>${SECRET}</Key>
      body: <Notify key="${SECRET}"><case>{fields.case_reference}</case></Notify>
    mapping: {hearingId: case_reference}
`)
	w.stdin = `{"hearingId": "H-1"}`
	p := decode[preview](t, w.run("map", "ClinicCalendarSync", "-", "-o", "json").wants(t, 0))
	if p.URL != "https://clinic.example/calendar" || strings.Contains(p.Request, "hunter2") ||
		!strings.Contains(p.Request, `<Key>***</Key>`) || !strings.Contains(p.Request, `<Notify key="***"><case>H-1</case>`) {
		t.Errorf("got %s\n%s", p.URL, p.Request)
	}
}

// The query of a conditional update is the address of the record.
func TestMapShowsTheQueryWithoutCredentials(t *testing.T) {
	w := newWorld(t)
	w.env["SECRET"] = "hunter2"
	w.configure(`
database: {url: "${DATABASE_URL}"}
syncs:
  - name: ClinicCalendarSync
    event: a
    adapter: {kind: rest, method: PUT, url: "https://clinic.example/Appointment?identifier=urn:case%7C{key}&sig=abc&who=${SECRET}"}
    mapping: {hearingId: case_reference}
`)
	w.stdin = `{"hearingId": "H-1"}`
	p := decode[preview](t, w.run("map", "ClinicCalendarSync", "-", "--key", "K 7", "-o", "json").wants(t, 0))
	if want := "https://clinic.example/Appointment?identifier=urn:case%7CK+7&sig=***&who=***"; p.URL != want {
		t.Errorf("got  %s\nwant %s", p.URL, want)
	}
}

func TestPreviewEqualsTheRequestOfARelay(t *testing.T) {
	sync := relay.Sync{
		Name: "Court", Events: []string{"a"}, Adapter: telling{t},
		Mapping: relay.Mapping{Fields: []relay.Field{{From: "n", To: "number"}}},
	}
	event := outbox.Event{ID: "e-1", Type: "a", Key: "k", Payload: []byte(`{"n":1}`)}
	for name, tc := range map[string]struct {
		x    example
		want preview
	}{
		"the adapter tells": {
			example{event: event, revision: 1, ref: adapters.Ref{ExternalID: "C-7"}},
			preview{Send: true, Method: "PUT", URL: "https://court.example.gov/C-7", IdempotencyKey: "e-1", Body: []byte(`{"number":1}`)},
		},
		"the adapter refuses": {
			example{event: event, revision: 1},
			preview{IdempotencyKey: "e-1", Body: []byte(`{"number":1}`), Notes: []string{"would not be sent: the adapter refuses it: {ref.external_id} is not known"}},
		},
		"a replay": {
			example{event: event, revision: 3, ref: adapters.Ref{ExternalID: "C-7"}},
			preview{Send: true, Method: "PUT", URL: "https://court.example.gov/C-7", IdempotencyKey: "e-1:3", Body: []byte(`{"number":1}`)},
		},
		"the bytes of an earlier attempt": {
			example{event: event, revision: 1, ref: adapters.Ref{ExternalID: "C-7"}, body: []byte(`{"nr":1}`), version: "old"},
			preview{
				Send: true, Method: "PUT", URL: "https://court.example.gov/C-7", IdempotencyKey: "e-1", Body: []byte(`{"nr":1}`), MappingVersion: "old",
				Notes: []string{"the body is that of an earlier attempt and stays the same until a requeue; the mapping has changed since"},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tc.x.preview(sync, "telling")
			if err != nil {
				t.Fatal(err)
			}
			if got.Send != tc.want.Send || got.Method != tc.want.Method || got.URL != tc.want.URL || got.IdempotencyKey != tc.want.IdempotencyKey ||
				string(got.Body) != string(tc.want.Body) || !slices.Equal(got.Notes, tc.want.Notes) {
				t.Errorf("got %+v (%s), want %+v (%s)", got, got.Body, tc.want, tc.want.Body)
			}
			if tc.want.MappingVersion != "" && got.MappingVersion != tc.want.MappingVersion {
				t.Errorf("mapping version %s, want %s", got.MappingVersion, tc.want.MappingVersion)
			}
			var text strings.Builder
			if err := got.text(&text); err != nil {
				t.Fatal(err)
			}
			told := strings.Contains(text.String(), "request          PUT") &&
				strings.HasSuffix(text.String(), "\nsent as text/xml:\n\n<number>\n1</number>\n")
			if tc.want.Method != "" && !told {
				t.Error(text.String())
			}
		})
	}
}

func compact(t *testing.T, document []byte) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, document); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// threeYAML has a sync for each kind of adapter. Two have credentials in headers.
const threeYAML = `
syncs:
  - name: CourtCalendarSync
    events: ["scheduling:*"]
    adapter:
      kind: rest
      url: https://court.example.gov/hearings
      routes: {"scheduling:cancelled": {method: DELETE, url: "https://court.example.gov/hearings/{ref.external_id}"},
        "scheduling:moved": {method: PUT, url: "https://court.example.gov/hearings/{ref.external_id}/{ref.number}"}}
      learn: {number: /number}
      headers: {Source-System: AGENCY, X-Api-Key: written-here, X-Tenant: "${TENANT}"}
      if_match: true
      auth:
        kind: oauth2_client_credentials
        token_url: https://login.example.gov/token
        client_id: agency
        client_secret: ${SECRET}
        second: {kind: hmac, header: X-Signature, value: "key=agency, sig={signature}", secret: "${SECRET}", headers: {X-Digest: "{sha256}"}}
    mapping: {hearingId: case_reference}
  - name: ClinicHookSync
    events: ["scheduling:*"]
    from: now
    adapter: {kind: webhook, url: "https://clinic.example.gov/hook", secrets: ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]}
    mapping: {hearingId: case_reference}
  - name: ClinicCalendarSync
    events: ["scheduling:*"]
    from: now
    adapter: {kind: soap, url: "https://clinic.example.gov/calendar", action: "urn:notify", auth: {kind: basic, username: agency, password: "${SECRET}"}, body: "<a>{fields.case_reference}</a>"}
    mapping: {hearingId: case_reference}
`

func TestMapShowsHeadersOfEveryKind(t *testing.T) {
	w := newWorld(t)
	w.env["SECRET"], w.env["TENANT"] = "secret-canary", "tenant-canary"
	w.configure(threeYAML)
	file := filepath.Join(t.TempDir(), "event.json")
	writeFile(t, file, "\uFEFF"+`{"id": "e-1", "type": "scheduling:updated", "key": "H-1", "payload": {"hearingId": "H-1"}}`)
	for sync, want := range map[string]map[string]string{
		"CourtCalendarSync": {
			"Accept": "application/json", "Content-Type": "application/json", "Idempotency-Key": `"e-1"`, "User-Agent": "Lockstep",
			"Authorization": "Bearer ***", "X-Signature": "key=agency, sig=***",
			"X-Digest":      fmt.Sprintf("%x", sha256.Sum256([]byte(`{"case_reference":"H-1"}`))),
			"Source-System": "AGENCY", "X-Api-Key": "***", "X-Tenant": "***", "If-Match": `"v3"`,
			"Traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		},
		"ClinicHookSync": {
			"Accept": "application/json", "Content-Type": "application/json", "Idempotency-Key": `"e-1"`, "User-Agent": "Lockstep",
			"Traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
			"Webhook-Id":  "e-1", "Webhook-Signature": "***", "Webhook-Timestamp": "now",
		},
		"ClinicCalendarSync": {
			"Accept": "text/xml, application/soap+xml", "Content-Type": "text/xml; charset=utf-8", "Idempotency-Key": `"e-1"`, "User-Agent": "Lockstep",
			"Authorization": "Basic ***", "SOAPAction": `"urn:notify"`,
			"Traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		},
	} {
		t.Run(sync, func(t *testing.T) {
			w.run("map", sync, file, "--learned", "nope=3").wants(t, exitUsage, "--learned nope: "+sync+" does not learn this value; learn of its adapter has ")
			w.run("map", sync, file, "--etag", "v3").wants(t, exitUsage, `--etag has no quotes: write '"v3"'`)
			r := w.run("map", sync, file, "--etag", `"v3"`, "--headers", "traceparent=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "-o", "json").wants(t, 0)
			if strings.Contains(r.stdout, "canary") || strings.Contains(r.stdout, "written-here") {
				t.Errorf("a secret is shown: %s", r.stdout)
			}
			got := decode[preview](t, r)
			if _, ok := want["Webhook-Timestamp"]; ok {
				want["Webhook-Timestamp"] = got.Headers["Webhook-Timestamp"]
			}
			if diff := cmp.Diff(want, got.Headers); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			text := w.run("map", sync, file).wants(t, 0, "headers          ", "\n                 User-Agent: Lockstep\n").stdout
			if strings.Contains(text, "canary") || strings.Contains(text, "written-here") {
				t.Errorf("a secret is shown: %s", text)
			}
		})
	}
}

func TestMapOfAKnownReference(t *testing.T) {
	w := newWorld(t)
	w.env["SECRET"], w.env["TENANT"] = "secret-canary", "tenant-canary"
	w.configure(threeYAML)
	w.stdin = "\uFEFF" + `{"hearingId": "H-1"}`
	cancelled := []string{"map", "CourtCalendarSync", "-", "--type", "scheduling:cancelled"}
	w.run(cancelled...).wants(t, 0, "would not be sent", "{ref.external_id} is not known")
	w.run(append(cancelled, "--ref", "C-7")...).wants(t, 0, "request          DELETE https://court.example.gov/hearings/C-7")
	moved := []string{"map", "CourtCalendarSync", "-", "--type", "scheduling:moved", "--ref", "C-7"}
	w.run(moved...).wants(t, 0, "{ref.number} is not known")
	w.run(append(moved, "--learned", "nubmer=3")...).wants(t, exitUsage, "--learned nubmer: CourtCalendarSync does not learn this value; learn of its adapter has number")
	w.run(append(moved, "--learned", "number=3")...).wants(t, 0, "request          PUT https://court.example.gov/hearings/C-7/3")
	id := w.emit("H-1", `{"hearingId":"H-1"}`)
	w.run("map", "CourtCalendarSync", id, "--ref", "C-8").wants(t, 0, "request          POST https://court.example.gov/hearings")
	for _, flag := range [][]string{{"--type", "a"}, {"--key", "k"}, {"--headers", "a=b"}} {
		w.run(append([]string{"map", "CourtCalendarSync", id}, flag...)...).wants(t, 2, "--type, --key and --headers are for an event from a file")
	}
}

package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/clinic"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// call is one request that a receiver got, without what all requests have.
type call struct {
	method, path string
	header       http.Header
	body         map[string]any
	raw          string
}

// answer is what a receiver says to a call.
type answer struct {
	status int
	header map[string]string
	body   string
}

// googleID are the characters of ids that Google Calendar accepts: base32hex, RFC 4648.
var googleID = regexp.MustCompile(`^[0-9a-v]{5,}$`)

// receivers behave like the APIs of docs/recipes, as far as a court's calendar uses them.
func receivers() map[string]func(call) answer {
	var hearing, appointment struct{ id, version int }
	hearing.id = 2000006
	county, google, booked := map[string]bool{}, map[string]string{}, 0
	refuse := func(why string) answer { return answer{status: 400, body: fmt.Sprintf(`{"title":%q}`, why)} }
	return map[string]func(call) answer{
		"clinic": nil, // it is no HTTP, see recipe.clinic
		"hmc": func(c call) answer {
			if c.header.Get("Authorization") == "" || c.header.Get("ServiceAuthorization") == "" {
				return answer{status: 401}
			}
			says := func(status int) answer {
				hearing.version++
				return answer{status: status, body: fmt.Sprintf(`{"hearingRequestID":%d,"status":"HEARING_REQUESTED","versionNumber":%d}`, hearing.id, hearing.version)}
			}
			entry := fmt.Sprint("/hearing/", hearing.id)
			switch {
			case c.method == "POST" && c.path == "/hearing" && c.body["hearingDetails"] != nil && c.body["caseDetails"] != nil:
				hearing.id, hearing.version = hearing.id+1, 0
				return says(201)
			case c.method == "PUT" && c.path == entry:
				if details, _ := c.body["requestDetails"].(map[string]any); details["versionNumber"] != float64(hearing.version) {
					return refuse("versionNumber is not the current one")
				}
				return says(201)
			case c.method == "DELETE" && c.path == entry && c.body["cancellationReasonCodes"] != nil:
				return says(200)
			}
			return refuse("not a request of this API")
		},
		"ecf5": func(c call) answer {
			if c.method != "POST" || !strings.HasSuffix(strings.Trim(c.header.Get("SOAPAction"), `"`), "/CourtSchedulingMDE/NotifyCourtDate") {
				return refuse("not a request of this API")
			}
			if !strings.Contains(c.raw, "<xcal:uid><xcal:text>hearing-H-2027-7@agency.example.gov<") {
				return refuse("the hearing has another uid")
			}
			return answer{status: 200, header: map[string]string{"Content-Type": "text/xml"}, body: `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>
				<w:NotifyCourtDateResponse xmlns:w="https://docs.oasis-open.org/legalxml-courtfiling/ns/v5.0/MessageWrappers" xmlns:c="http://release.niem.gov/niem/domains/cbrn/4.0/"><c:MessageStatus>
				<c:MessageStatusCode>Success</c:MessageStatusCode></c:MessageStatus></w:NotifyCourtDateResponse></s:Body></s:Envelope>`}
		},
		"hmi": func(c call) answer {
			for _, name := range []string{"Source-System", "Destination-System", "Request-Created-At", "Accept", "Content-Type"} {
				if c.header.Get(name) == "" {
					return refuse(name + " is missing")
				}
			}
			switch {
			case c.method == "POST" && c.path == "/hearings", c.method == "PUT" && c.path == "/hearings/H-2027-7":
				return answer{status: 202}
			case c.method == "DELETE" && c.path == "/hearings/H-2027-7" && c.body["_cancel"] != nil:
				return answer{status: 200, body: "{}"}
			}
			return refuse("not a request of this API")
		},
		"county": func(c call) answer {
			if c.method == "POST" && c.path == "/v2/hearings" {
				booked++
				id := fmt.Sprint("c-", booked)
				county[id] = true
				return answer{status: 201, header: map[string]string{"Location": "/v2/hearings/" + id}}
			}
			id := strings.TrimPrefix(c.path, "/v2/hearings/")
			switch {
			case !county[id]:
				return answer{status: 404, body: `{"title":"no such hearing"}`}
			case c.method == "PUT" && c.header.Get("If-Match") == "":
				return answer{status: 428, body: `{"title":"If-Match is missing"}`}
			}
			if c.method == "DELETE" {
				delete(county, id)
			}
			return answer{status: 204}
		},
		"graph": func(c call) answer {
			switch {
			case c.method == "POST" && c.path == "/v1.0/users/room-3a@court.example.gov/calendar/events" && c.body["transactionId"] != nil:
				return answer{status: 201, body: `{"@odata.etag":"W/\"a\"","id":"AAMk/7=","subject":"Hearing"}`}
			case c.path == "/v1.0/users/room-3a@court.example.gov/events/AAMk%2F7=" && c.method == "PATCH" && c.body["transactionId"] == nil:
				return answer{status: 200, body: `{"id":"AAMk/7="}`}
			case c.path == "/v1.0/users/room-3a@court.example.gov/events/AAMk%2F7=" && c.method == "DELETE":
				return answer{status: 204}
			}
			return refuse("not a request of this API")
		},
		"google": func(c call) answer {
			const events = "/calendar/v3/calendars/room-3a@court.example.gov/events"
			id := strings.TrimPrefix(c.path, events+"/")
			switch {
			case c.method == "POST" && c.path == events:
				id, _ = c.body["id"].(string)
				if !googleID.MatchString(id) {
					return refuse("the id has other characters than 0-9 and a-v")
				}
				if google[id] != "" {
					return answer{status: 409, body: `{"error":{"code":409}}`}
				}
				google[id] = "confirmed"
				return answer{status: 200, body: fmt.Sprintf(`{"id":%q}`, id)}
			case google[id] == "":
				return answer{status: 404, body: `{"error":{"code":404}}`}
			case c.method == "DELETE" && google[id] == "cancelled":
				return answer{status: 410, body: `{"error":{"code":410}}`}
			case c.method == "DELETE": // its id stays in use
				google[id] = "cancelled"
				return answer{status: 204}
			case c.body["status"] != "confirmed":
				return refuse("the event stays cancelled")
			}
			google[id] = "confirmed"
			return answer{status: 200, body: fmt.Sprintf(`{"id":%q}`, id)}
		},
		"chat": func(c call) answer {
			if text, _ := c.body["text"].(string); c.method != "POST" || c.path != "/" || len(c.body) != 1 || text == "" {
				return refuse("not a message")
			}
			return answer{status: 200, body: "ok"}
		},
		"mail": func(c call) answer {
			if c.header.Get("Webhook-Signature") == "" || c.body["to"] == nil || c.body["subject"] == nil || c.body["text"] == nil {
				return refuse("not a mail")
			}
			return answer{status: 202}
		},
		"fhir": func(c call) answer {
			switch {
			case c.body["resourceType"] != "Appointment" || c.body["start"] == nil || c.body["end"] == nil || c.body["participant"] == nil:
				return refuse("app-3")
			case c.method == "POST" && c.path == "/Appointment" && c.header.Get("If-None-Exist") != "":
				if appointment.version > 0 { // the server has it, and ignores the body
					return answer{status: 200, header: map[string]string{"ETag": fmt.Sprintf(`W/"%d"`, appointment.version)}, body: `{"resourceType":"Appointment","id":"7"}`}
				}
				appointment.version++
				return answer{status: 201, header: map[string]string{"ETag": `W/"1"`}, body: `{"resourceType":"Appointment","id":"7"}`}
			case c.method == "PUT" && c.path == "/Appointment/7" && c.body["id"] == "7":
				if c.header.Get("If-None-Exist") != "" {
					return refuse("If-None-Exist belongs to a create")
				}
				if c.header.Get("If-Match") != fmt.Sprintf(`W/"%d"`, appointment.version) {
					return answer{status: 412}
				}
			default:
				return refuse("not a request of this API")
			}
			appointment.version++
			return answer{status: 200, header: map[string]string{"ETag": fmt.Sprintf(`W/"%d"`, appointment.version)}, body: `{"resourceType":"Appointment","id":"7"}`}
		},
	}
}

// notShown are headers that every request has, or that differ from run to run.
var notShown = []string{"Accept-Encoding", "Content-Length", "User-Agent", "Idempotency-Key", "Webhook-Signature", "Webhook-Timestamp"}

// oncePerRequest are the values of a UsernameToken that differ from run to run.
var oncePerRequest = regexp.MustCompile(`>[^<]*<(/wsse:Password|/wsse:Nonce|/wsu:Created)`)

// hearing are the events that are sent to an API of a court.
func hearing() []outbox.Event {
	var all []outbox.Event
	for i, event := range []string{"created", "updated", "updated", "cancelled", "updated"} {
		all = append(all, outbox.Event{Type: "scheduling:" + event, Key: "H-2027-7", Payload: fmt.Appendf(nil, `{"hearingId":"H-2027-7","caseId":"1641911514704411","scheduledAt":"2027-03-15T13:%02d:00Z","minutes":45,"location":"3A","room":"room-3a@court.example.gov",
				"title":"Hearing H-2027-7","reason":"WD","courtId":"685391","filedOn":"2027-01-04"}`, 30+i)})
	}
	return numbered(all)
}

// numbered gives events their ids, versions and times.
func numbered(all []outbox.Event) []outbox.Event {
	for i := range all {
		e := &all[i]
		e.ID, e.Version, e.OccurredAt = fmt.Sprintf("01a00000-0000-7000-8000-%012d", i+1), new(int64(i+1)), time.Date(2027, 2, 17, 15, 4, i, 0, time.UTC)
	}
	return all
}

// operatorEvents are events about a court's sync, as docs/operators.md describes them.
func operatorEvents() []outbox.Event {
	event := func(kind, payload string) outbox.Event {
		return outbox.Event{Type: outbox.OperatorEvents + kind, Key: "CourtCalendarSync", Payload: []byte(payload)}
	}
	return numbered([]outbox.Event{
		event("held", `{"sync":"CourtCalendarSync","severity":"critical","says":"sync \"CourtCalendarSync\" is on hold (auth) by relay-1: HTTP 401","remedy":"Renew the credentials: docs/operators.md, \"Credentials expired\"","kind":"auth","reason":"HTTP 401","by":"relay-1","since":"2027-02-17T15:04:00+00:00"}`),
		event("failed", `{"sync":"CourtCalendarSync","severity":"warning","says":"sync \"CourtCalendarSync\" has 3 failed deliveries; one is of key H-2027-7, with permanent: HTTP 422: no such courtroom","remedy":"Correct the cause, then: lockstep requeue --sync CourtCalendarSync","new":3,"key":"H-2027-7"}`),
		event("escalated", `{"sync":"CourtCalendarSync","severity":"critical","says":"sync \"CourtCalendarSync\" has 1 escalated event","remedy":"Ask what it waits for: lockstep explain H-2027-7","new":1,"key":"H-2027-7","needed_by":"2027-02-18T15:00:00+00:00"}`),
		event("resumed", `{"sync":"CourtCalendarSync","severity":"info","says":"sync \"CourtCalendarSync\" is not on hold (auth) any more","kind":"auth"}`),
	})
}

// TestRecipes reads every file of docs/recipes and sends a new hearing, two updates, a
// cancellation and an update that books it again to a receiver that behaves like that API. A sync that takes operator
// events gets some of these instead. The requests are in testdata/recipes.
func TestRecipes(t *testing.T) {
	files, err := filepath.Glob("../../docs/recipes/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	guide, err := os.ReadFile("../../docs/recipes.md")
	if err != nil {
		t.Fatal(err)
	}
	known := receivers()
	if len(files) != len(known) {
		t.Errorf("%d recipes, but %d receivers", len(files), len(known))
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(string(guide), "(recipes/"+name+".yaml)") {
				t.Errorf("docs/recipes.md does not name it")
			}
			tryRecipe(t, file, name, known[name])
		})
	}
}

// TestRecipesUpdateARecordWhoseIDIsNotKnown sends an update of a hearing that the receiver has, although the
// relay knows no id of it: an answer was lost, or the sync is new. The receiver finds it by a name of ours.
func TestRecipesUpdateARecordWhoseIDIsNotKnown(t *testing.T) {
	for _, name := range []string{"fhir", "google"} {
		t.Run(name, func(t *testing.T) {
			var last call
			says := receivers()[name]
			r := openRecipe(t, filepath.Join("../../docs/recipes", name+".yaml"), name, func(c call) answer {
				last = c
				return says(c)
			})
			created, updated := hearing()[0], hearing()[1]
			if _, err := r.deliver(t, created, adapters.Ref{}); err != nil {
				t.Fatal(err)
			}
			receipt, err := r.deliver(t, updated, adapters.Ref{})
			if err != nil && adapters.ClassOf(err) == adapters.ClassConflict && receipt.Ref != nil {
				receipt, err = r.deliver(t, updated, *receipt.Ref) // as the relay does
			}
			if err != nil || last.method != "PUT" || receipt.Duplicate {
				t.Errorf("the last request is %s %s, with %+v, %v", last.method, last.path, receipt, err)
			}
		})
	}
}

// recipe is a sync of docs/recipes with its receiver.
type recipe struct {
	sync  relay.Sync
	url   string
	shown strings.Builder // what the receiver got

	clinic *clinic.Clinic // the receiver of HL7; nil for others
}

func openRecipe(t *testing.T, file, name string, says func(call) answer) *recipe {
	t.Helper()
	r := &recipe{}
	shown := &r.shown
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch {
		case strings.HasSuffix(r.URL.Path, "/lease"):
			claims := base64.RawURLEncoding.EncodeToString([]byte(`{"exp":4102444800}`))
			_, _ = io.WriteString(w, "eyJhbGciOiJIUzUxMiJ9."+claims+".c2lnbmF0dXJl")
			return
		case strings.HasSuffix(r.URL.Path, "/token"):
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"access_token":"token-of-`+name+`","token_type":"Bearer","expires_in":3600}`)
			return
		}
		c := call{method: r.Method, path: r.URL.EscapedPath(), header: r.Header, raw: string(body)}
		_ = json.Unmarshal(body, &c.body) // a request without a body has no fields
		fmt.Fprintf(shown, "%s %s\n", c.method, c.path)
		for _, header := range slices.Sorted(maps.Keys(r.Header)) {
			if !slices.Contains(notShown, header) {
				value := r.Header.Get(header)
				if strings.HasSuffix(strings.ToLower(header), "authorization") {
					value = "Bearer …"
				}
				fmt.Fprintf(shown, "%s: %s\n", header, value)
			}
		}
		fmt.Fprintf(shown, "\n%s\n", oncePerRequest.ReplaceAllString(c.raw, ">…<$1"))
		a := says(c)
		for header, value := range a.header {
			w.Header().Set(header, value)
		}
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.body)
	}))
	t.Cleanup(receiver.Close)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Parse(file, text, func(variable string) (string, bool) {
		switch {
		case strings.HasSuffix(variable, "_ADDRESS"):
			r.clinic = clinic.Start(t)
			return r.clinic.Address, true
		case strings.HasSuffix(variable, "TOKEN_URL"):
			return receiver.URL + "/token", true
		case strings.HasSuffix(variable, "_URL"):
			return receiver.URL, true
		case variable == "FHIR_KEY":
			key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
			return pemOf(t, key, err), true
		case variable == "GOOGLE_KEY":
			key, err := rsa.GenerateKey(rand.Reader, 2048)
			return pemOf(t, key, err), true
		case variable == "HOOK_SECRET":
			return "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", true
		case variable == "S2S_SECRET":
			return "JBSWY3DPEHPK3PXP", true
		}
		return "value-of-" + variable, true
	})
	if err != nil {
		t.Fatal(err)
	}
	r.sync, r.url = f.RelayConfig().Syncs[0], receiver.URL
	return r
}

// deliver sends e as a relay does that knows ref.
func (r *recipe) deliver(t *testing.T, e outbox.Event, ref adapters.Ref) (adapters.Receipt, error) {
	t.Helper()
	msg := adapters.Message{
		ID: e.ID, IdempotencyKey: e.ID, Type: e.Type, Key: e.Key, Version: e.Version, OccurredAt: e.OccurredAt, Attempt: 1, Ref: ref,
	}
	mapper, _, err := r.sync.Mapper(msg)
	if err != nil {
		t.Fatal(err)
	}
	sending := mapping.Sending{IdempotencyKey: e.ID, Ref: outbox.Ref{ExternalID: ref.ExternalID, ETag: ref.ETag, Learned: ref.Learned}}
	if msg.Body, err = mapper.Map(e, sending, nil); err != nil {
		t.Fatal(err)
	}
	return r.sync.Adapter.Deliver(t.Context(), msg)
}

func tryRecipe(t *testing.T, file, name string, says func(call) answer) {
	t.Helper()
	r := openRecipe(t, file, name, says)
	s, shown := r.sync, &r.shown
	var ref adapters.Ref
	events := hearing()
	if strings.HasPrefix(s.Events[0], outbox.OperatorEvents) {
		events = operatorEvents()
	}
	filter, err := mapping.CompileFilter(s.When)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		_, event, _ := strings.Cut(e.Type, ":")
		if wanted, err := filter.Match(e, nil); err != nil {
			t.Fatal(err)
		} else if !wanted {
			fmt.Fprintf(shown, "# %s: filtered\n\n", event)
			continue
		}
		fmt.Fprintf(shown, "# %s\n", event)
		receipt, err := r.deliver(t, e, ref)
		if err != nil {
			t.Fatalf("%s: %v\n%s", event, err, shown.String())
		}
		if receipt.Ref != nil {
			ref = *receipt.Ref
		}
		if r.clinic != nil {
			seen := r.clinic.Seen()
			shown.WriteString(strings.ReplaceAll(r.clinic.Held()[seen[len(seen)-1]], "\r", "\n"))
		}
		fmt.Fprintf(shown, "%s\n\n", receipt.Code)
	}
	path := filepath.Join("testdata", "recipes", name+".golden")
	got := strings.ReplaceAll(shown.String(), r.url, "https://receiver.example")
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("requests (-want +got; run with -update if that is meant):\n%s", diff)
	}
}

func pemOf(t *testing.T, key any, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

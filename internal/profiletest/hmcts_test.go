package profiletest

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// component is a hearing management component: it gives each hearing an id and a version, and takes an update only
// with the version of its own last answer.
type component struct {
	t        *testing.T
	last     int
	hearings map[int]*booking
	byCase   map[string]int // the hearing that was booked last for a case
}

// booking is a hearing of the component.
type booking struct {
	version   int
	cancelled bool
	body      map[string]any // of the last request that booked or changed it
	reasons   []any
}

func newComponent(t *testing.T) *component {
	return &component{t: t, last: 2_000_000_000, hearings: map[int]*booking{}, byCase: map[string]int{}}
}

func (c *component) answer(method, path string, body map[string]any) (int, any) {
	says := func(status, id int, b *booking, text string) (int, any) {
		return status, map[string]any{
			"hearingRequestID": id, "versionNumber": b.version, "requestVersion": b.version, "responseVersion": 0, "status": text, "timeStamp": "2027-02-01T09:00:00Z",
		}
	}
	if method == http.MethodPost && path == "/hearing" {
		c.last++
		b := &booking{version: 1, body: body}
		c.hearings[c.last] = b
		c.byCase[body["caseDetails"].(map[string]any)["caseRef"].(string)] = c.last
		return says(http.StatusCreated, c.last, b, "HEARING_REQUESTED")
	}
	if reference, ok := strings.CutPrefix(path, "/hearings/"); ok {
		return http.StatusOK, c.ofCase(reference)
	}
	id, _ := strconv.Atoi(strings.TrimPrefix(path, "/hearing/"))
	b := c.hearings[id]
	switch {
	case b != nil && method == http.MethodGet:
		return http.StatusOK, map[string]any{
			"requestDetails": map[string]any{"versionNumber": b.version}, "hearingDetails": b.body["hearingDetails"], "caseDetails": b.body["caseDetails"],
		}
	case b == nil:
		c.t.Errorf("%s %s: no such hearing", method, path)
	case b.cancelled:
		return says(http.StatusBadRequest, id, b, "Invalid state")
	case method == http.MethodPut:
		if details := body["requestDetails"].(map[string]any); details["versionNumber"] != float64(b.version) {
			c.t.Errorf("%s: versionNumber is %v, the hearing has %d", path, details["versionNumber"], b.version)
			return says(http.StatusBadRequest, id, b, "wrong version")
		}
		b.version++
		b.body = body
		return says(http.StatusCreated, id, b, "UPDATE_REQUESTED")
	case method == http.MethodDelete:
		b.version++
		b.cancelled, b.reasons = true, body["cancellationReasonCodes"].([]any)
		return says(http.StatusOK, id, b, "CANCELLATION_REQUESTED")
	}
	return says(http.StatusNotFound, 0, &booking{}, "no such hearing")
}

// ofCase is the list of a case's hearings.
func (c *component) ofCase(reference string) map[string]any {
	list := []any{}
	for id, b := range c.hearings {
		if b.body["caseDetails"].(map[string]any)["caseRef"] == reference {
			list = append(list, map[string]any{
				"hearingID": id, "hearingType": b.body["hearingDetails"].(map[string]any)["hearingType"], "hmcStatus": "HEARING_REQUESTED", "requestVersion": b.version,
				"hearingRequestDateTime": "2027-02-01T09:00:00Z", "lastResponseReceivedDateTime": "2027-02-01T09:00:00Z", "hearingListingStatus": "", "listAssistCaseStatus": "",
				"hearingChannels": []any{"INTER"}, "hearingDaySchedule": []any{},
			})
		}
	}
	return map[string]any{"caseRef": reference, "caseHearings": list}
}

// has fails the test if the component does not have the hearing as planned.
func (c *component) has(p plan) {
	c.t.Helper()
	b := c.hearings[c.byCase[p.payload["caseId"].(string)]]
	if b == nil {
		c.t.Errorf("%s was not booked", p.key)
		return
	}
	if b.cancelled != p.cancelled {
		c.t.Errorf("%s: cancelled is %t, want %t", p.key, b.cancelled, p.cancelled)
	}
	if p.cancelled && fmt.Sprint(b.reasons) != "[withdrawn]" {
		c.t.Errorf("%s: the reasons are %v", p.key, b.reasons)
	}
	details := b.body["hearingDetails"].(map[string]any)
	at, dateOnly := p.at(c.t)
	window := map[string]any{"firstDateTimeMustBe": at.Format("2006-01-02T15:04:05Z")}
	if dateOnly {
		day := at.Format(time.DateOnly)
		window = map[string]any{"dateRangeStart": day, "dateRangeEnd": day}
	}
	minutes, ok := p.payload["minutes"]
	if !ok {
		minutes = 60
	}
	for name, pair := range map[string][2]any{
		"window":   {details["hearingWindow"], window},
		"duration": {details["duration"], minutes},
		"comments": {details["listingComments"], p.payload["remarks"]},
		"title":    {b.body["caseDetails"].(map[string]any)["hmctsInternalCaseName"], p.payload["title"]},
	} {
		if got, want := fmt.Sprint(pair[0]), fmt.Sprint(pair[1]); got != want {
			c.t.Errorf("%s: the %s is %s, want %s", p.key, name, got, want)
		}
	}
}

// names are characters of the names that the component takes: letters of scripts with two cases, numbers,
// punctuation, symbols and spaces.
const names = "abcdefghijklmnopqrstuvwxyz ABCDEF 0123456789 <>&\"'{}[]() éßøŁżΩЖш – … £ + ^"

func TestHMCTakesEveryHearing(t *testing.T) {
	c := newComponent(t)
	a, url := serve(t, "hmc", c.answer)
	s := newSender(open(t, "hmc", url))
	for seed := range uint64(200) {
		p := random(seed, names)
		s.sendAll(t, p.events)
		c.has(p)
	}
	t.Logf("%d requests of 200 hearings", a.requests)
}

// gateway is a hearing management interface. It knows a hearing by the sender's key.
type gateway struct {
	t        *testing.T
	hearings map[string]map[string]any // the last hearingRequest of each; nil if it was cancelled
}

func (g *gateway) answer(method, path string, body map[string]any) (int, any) {
	key := strings.TrimPrefix(path, "/hmi/hearings/")
	request, _ := body["hearingRequest"].(map[string]any)
	switch known := g.hearings[key]; {
	case method == http.MethodPost && path == "/hmi/hearings":
		key = request["_case"].(map[string]any)["caseListingRequestId"].(string)
		g.hearings[key] = request
	case method == http.MethodPut && known != nil:
		g.hearings[key] = request
	case method == http.MethodDelete:
		cancel, _ := body["_cancel"].(map[string]any)
		if cancel["cancellationReasonCode"] != "withdrawn" {
			g.t.Errorf("%s: the cancellation is %v", path, body)
		}
		g.hearings[key] = nil
		return http.StatusOK, "The request was received successfully."
	default:
		g.t.Errorf("%s %s: no such hearing", method, path)
	}
	return http.StatusAccepted, "The request was received successfully."
}

// has fails the test if the interface does not have the hearing as planned.
func (g *gateway) has(p plan) {
	g.t.Helper()
	request, ok := g.hearings[p.key]
	if !ok || (request == nil) != p.cancelled {
		g.t.Errorf("%s: the interface has %v, cancelled should be %t", p.key, request, p.cancelled)
	}
	if request == nil {
		return
	}
	listing, details := request["listing"].(map[string]any), request["_case"].(map[string]any)
	at, dateOnly := p.at(g.t)
	begins := "listingDate"
	if dateOnly {
		begins = "listingStartDate"
	}
	minutes, ok := p.payload["minutes"]
	if !ok {
		minutes = 60
	}
	for name, pair := range map[string][2]any{
		"date":     {listing[begins], at.Format("2006-01-02T15:04:05Z")},
		"duration": {listing["listingDuration"], minutes},
		"comments": {listing["listingComments"], p.payload["remarks"]},
		"title":    {details["caseTitle"], p.payload["title"]},
		"version":  {details["caseVersionId"], p.version},
		"key":      {details["caseListingRequestId"], p.key},
	} {
		if got, want := fmt.Sprint(pair[0]), fmt.Sprint(pair[1]); got != want {
			g.t.Errorf("%s: the %s is %s, want %s", p.key, name, got, want)
		}
	}
}

func TestHMITakesEveryHearing(t *testing.T) {
	g := &gateway{t: t, hearings: map[string]map[string]any{}}
	a, url := serve(t, "hmi", g.answer)
	s := newSender(open(t, "hmi", url))
	for seed := range uint64(200) {
		p := random(seed, awkward)
		s.sendAll(t, p.events)
		g.has(p)
	}
	t.Logf("%d requests of 200 hearings", a.requests)
}

package profiletest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	problems "github.com/pb33f/libopenapi-validator/errors"
)

// api is a receiver that answers by an OpenAPI document: each request and each answer must be as the document says.
type api struct {
	t       *testing.T
	checks  validator.Validator
	service func(method, path string, body map[string]any) (status int, answer any)

	mu       sync.Mutex
	requests int
	lose     func(method string, n int) loss // what becomes of the n-th request
}

// loss is how a request goes without an answer.
type loss int

const (
	answered    loss = iota // it is answered
	lostRequest             // the connection ends before the service has it
	lostAnswer              // the connection ends after the service has done it
)

// serve starts a receiver for a document of testdata.
func serve(t *testing.T, document string, service func(method, path string, body map[string]any) (int, any)) (*api, string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "hmcts", document+".json"))
	if err != nil {
		t.Fatal(err)
	}
	text, err = corrected(text)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := libopenapi.NewDocument(text)
	if err != nil {
		t.Fatal(err)
	}
	checks, errs := validator.NewValidator(parsed, config.WithFormatAssertions(), config.WithStrictMode(), config.WithStrictIgnoredHeadersExtra("Idempotency-Key", "transactionIdHMCTS", "Accept-Encoding", "ServiceAuthorization"))
	if len(errs) > 0 {
		t.Fatal(errors.Join(errs...))
	}
	a := &api{t: t, checks: checks, service: service, lose: func(string, int) loss { return answered }}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	return a, server.URL
}

// corrected returns a document of HMCTS without three mistakes of the program that wrote it: an enum is one string
// with commas, the greatest length of an id is its greatest value, and a hearing is answered with 204, which has no body.
func corrected(document []byte) ([]byte, error) {
	var tree any
	if err := json.Unmarshal(document, &tree); err != nil {
		return nil, err
	}
	var walk func(node any)
	walk = func(node any) {
		switch n := node.(type) {
		case []any:
			for _, item := range n {
				walk(item)
			}
		case map[string]any:
			if words, ok := n["enum"].([]any); ok && len(words) == 1 {
				var all []any
				for word := range strings.SplitSeq(words[0].(string), ", ") {
					all = append(all, word)
				}
				n["enum"] = all
			}
			if n["type"] == "integer" {
				delete(n, "maximum")
			}
			for _, child := range n {
				walk(child)
			}
		}
	}
	walk(tree)
	if paths := tree.(map[string]any)["paths"].(map[string]any); paths["/hearing/{id}"] != nil {
		answers := paths["/hearing/{id}"].(map[string]any)["get"].(map[string]any)["responses"].(map[string]any)
		answers["200"] = answers["204"]
	}
	return json.Marshal(tree)
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		a.t.Error(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests++
	r.Body = io.NopCloser(bytes.NewReader(body))
	if err := a.refuses(r); err != nil {
		a.t.Errorf("%s %s: %v\n%s", r.Method, r.URL, err, body)
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	var fields map[string]any
	if r.Method != http.MethodGet {
		if err := json.Unmarshal(body, &fields); err != nil {
			a.t.Error(err)
		}
	}
	lost := a.lose(r.Method, a.requests)
	if lost == lostRequest {
		panic(http.ErrAbortHandler)
	}
	status, answer := a.service(r.Method, r.URL.Path, fields)
	if lost == lostAnswer {
		panic(http.ErrAbortHandler)
	}
	said := httptest.NewRecorder()
	said.Header().Set("Content-Type", "application/json")
	said.WriteHeader(status)
	if err := json.NewEncoder(said).Encode(answer); err != nil {
		a.t.Error(err)
	}
	response := said.Result()
	response.Body = io.NopCloser(bytes.NewReader(said.Body.Bytes()))
	if ok, errs := a.checks.ValidateHttpResponse(r, response); !ok {
		a.t.Errorf("the answer is none of the document: %v\n%s", all(errs), said.Body)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(said.Body.Bytes())
}

// refuses says what in a request is not as the document has it.
func (a *api) refuses(r *http.Request) error {
	if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
		return errors.New("no token")
	}
	if ok, errs := a.checks.ValidateHttpRequestSync(r); !ok {
		return all(errs)
	}
	return nil
}

func all(errs []*problems.ValidationError) error {
	var list []error
	for _, e := range errs {
		list = append(list, fmt.Errorf("%s: %s", e.Message, e.Reason))
		for _, s := range e.SchemaValidationErrors {
			list = append(list, fmt.Errorf("  %s: %s", s.FieldPath, s.Reason))
		}
	}
	return errors.Join(list...)
}

// The documents refuse what the profiles must not send. Without this test a receiver that takes everything would do.
func TestWhatTheDocumentsRefuse(t *testing.T) {
	hmc, _ := serve(t, "hmc", nil)
	hmi, _ := serve(t, "hmi", nil)
	const hearing = `{"caseDetails":{"hmctsServiceCode":"ABA5","caseRef":"1641911514704411","caseDeepLink":"https://agency.example.gov/","hmctsInternalCaseName":"A","publicCaseName":"A",` +
		`"caseCategories":[{"categoryType":"caseType","categoryValue":"x"}],"caseManagementLocationCode":"1","caserestrictedFlag":false,"caseSLAStartDate":"2027-01-04"},` +
		`"hearingDetails":{"hearingType":"x","duration":45,"hearingPriorityType":"x","hearingLocations":[{"locationType":"court","locationId":"1"}],"hearingChannels":["INTER"],"autolistFlag":false,` +
		`"panelRequirements":{},"hearingWindow":{"firstDateTimeMustBe":"2027-03-15T13:30:00Z"}},"requestDetails":{"versionNumber":1}}`
	for name, tc := range map[string]struct {
		api           *api
		method, path  string
		headers, body string
		old, new      string // what is replaced in the body
		want          string
	}{
		"a hearing that is right":       {api: hmc, method: "POST", path: "/hearing", headers: "ServiceAuthorization", body: hearing},
		"an update that is right":       {api: hmc, method: "PUT", path: "/hearing/2000000001", headers: "ServiceAuthorization", body: hearing},
		"no second token":               {api: hmc, method: "POST", path: "/hearing", body: hearing, want: "ServiceAuthorization"},
		"an update without version":     {api: hmc, method: "PUT", path: "/hearing/2000000001", headers: "ServiceAuthorization", body: hearing, old: `,"requestDetails":{"versionNumber":1}`, want: "requestDetails"},
		"an id that is no number":       {api: hmc, method: "PUT", path: "/hearing/H-7", headers: "ServiceAuthorization", body: hearing, want: "'id'"},
		"a category that is not listed": {api: hmc, method: "POST", path: "/hearing", headers: "ServiceAuthorization", body: hearing, old: `"caseType"`, new: `"court"`, want: "categoryType"},
		"a start without offset":        {api: hmc, method: "POST", path: "/hearing", headers: "ServiceAuthorization", body: hearing, old: `13:30:00Z`, new: `13:30:00`, want: "firstDateTimeMustBe"},
		"a duration as text":            {api: hmc, method: "POST", path: "/hearing", headers: "ServiceAuthorization", body: hearing, old: `45`, new: `"45"`, want: "duration"},
		"a field that is not known":     {api: hmc, method: "POST", path: "/hearing", headers: "ServiceAuthorization", body: hearing, old: `"duration"`, new: `"minutes":1,"duration"`, want: "minutes"},
		"a name with a line break":      {api: hmc, method: "POST", path: "/hearing", headers: "ServiceAuthorization", body: hearing, old: `Name":"A"`, new: `Name":"A\n"`, want: "CaseName"},
		"a cancellation without reason": {api: hmc, method: "DELETE", path: "/hearing/2000000001", headers: "ServiceAuthorization", body: `{"cancellationReasonCodes":[]}`, want: "cancellationReasonCodes"},
		"no headers of the gateway":     {api: hmi, method: "PUT", path: "/hmi/hearings/H-7", body: `{}`, want: "Source-System"},
		"a path that does not exist":    {api: hmi, method: "POST", path: "/hmi/hearing", body: `{}`, want: "/hmi/hearing"},
	} {
		t.Run(name, func(t *testing.T) {
			body := strings.ReplaceAll(tc.body, tc.old, tc.new)
			r := httptest.NewRequestWithContext(t.Context(), tc.method, tc.path, strings.NewReader(body))
			r.Header.Set("Authorization", "Bearer t0ken")
			r.Header.Set("Content-Type", "application/json")
			if tc.headers != "" {
				r.Header.Set(tc.headers, "Bearer t0ken")
			}
			err := tc.api.refuses(r)
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("%v, want an error about %s", err, tc.want)
			}
		})
	}
}

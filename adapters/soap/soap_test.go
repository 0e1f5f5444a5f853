package soap_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/soap"
)

// request is what a service got.
type request struct {
	header http.Header
	path   string
	body   string
}

// listen starts a service that answers each request with a result, and returns
// its URL and what it gets.
func listen(t *testing.T) (string, <-chan request) {
	t.Helper()
	got := make(chan request, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("reading the request: %v", err)
		}
		got <- request{r.Header, r.URL.Path, string(body)}
		_, _ = fmt.Fprintf(w, envelope, envelopes[soap.Version11], stored)
	}))
	t.Cleanup(server.Close)
	return server.URL, got
}

func message(id, eventType string) adapters.Message {
	return adapters.Message{ID: id, IdempotencyKey: id, Type: eventType, Key: "hearing-7", Body: []byte(`{"reference":"NY-07/4711"}`)}
}

func TestRoutesHaveTheirOwnActionBodyAndURL(t *testing.T) {
	url, got := listen(t)
	c := service()
	c.URL = url + "/calendar"
	c.Routes["data:*"] = soap.Route{URL: url + "/data"}
	a := newAdapter(t, c)
	for eventType, want := range map[string][3]string{
		"scheduling:updated":   {"/calendar", `"urn:example:calendar/NotifyHearing"`, "<cal:NotifyHearing>"},
		"scheduling:cancelled": {"/calendar", `"urn:example:calendar/CancelHearing"`, "<cal:CancelHearing>"},
		"data:updated":         {"/data", `"urn:example:calendar/NotifyHearing"`, "<cal:NotifyHearing>"},
	} {
		if _, err := a.Deliver(t.Context(), message("e-1", eventType)); err != nil {
			t.Fatal(err)
		}
		r := <-got
		if r.path != want[0] || r.header.Get("SOAPAction") != want[1] || !strings.Contains(r.body, want[2]) {
			t.Errorf("%s: got %s, %s\n%s", eventType, r.path, r.header.Get("SOAPAction"), r.body)
		}
		if key := r.header.Get("Idempotency-Key"); key != `"e-1"` {
			t.Errorf("%s: Idempotency-Key %s", eventType, key)
		}
	}
}

func TestEventsWithoutABodyFail(t *testing.T) {
	url, got := listen(t)
	c := service()
	c.URL, c.Body = url, ""
	a := newAdapter(t, c)
	_, err := a.Deliver(t.Context(), message("e-1", "scheduling:updated"))
	if adapters.ClassOf(err) != adapters.ClassPermanent || !strings.Contains(err.Error(), "no body is configured for events of this type") {
		t.Errorf("got %s, %v", adapters.ClassOf(err), err)
	}
	if _, err := a.Preview(message("e-1", "scheduling:updated")); err == nil {
		t.Error("there is a preview of nothing")
	}
	if _, err := a.Deliver(t.Context(), message("e-1", "scheduling:cancelled")); err != nil {
		t.Error(err)
	}
	if len(got) != 1 {
		t.Errorf("%d requests were sent", len(got))
	}
}

// The version 5 UUID was computed with Python's uuid module.
func TestMessageIDIsTheIdempotencyKey(t *testing.T) {
	url, got := listen(t)
	c := service()
	c.URL, c.Addressing = url, &soap.Addressing{}
	a := newAdapter(t, c)
	const id = "0198f6a2-7d3e-7c1a-9b52-3f0e5d6c7a81"
	for key, want := range map[string]string{
		id:                              id,
		strings.ToUpper(id):             id,
		id + ":2":                       "872bc87f-c3a1-5aaa-ae06-c3d64a650466",
		strings.ReplaceAll(id, "-", ""): "930dca7b-f363-5cf9-b62c-5d151edb6615",
	} {
		for range 2 { // attempts
			msg := message(id, "scheduling:updated")
			msg.IdempotencyKey = key
			if _, err := a.Deliver(t.Context(), msg); err != nil {
				t.Fatal(err)
			}
			r := <-got
			if id := textAfter(r.body, "<wsa:MessageID>"); id != "urn:uuid:"+want {
				t.Errorf("%s: MessageID %s, want %s", key, id, want)
			}
		}
	}
}

func TestReceiptOfASuccess(t *testing.T) {
	url, _ := listen(t)
	c := service()
	c.URL = url
	receipt, err := newAdapter(t, c).Deliver(t.Context(), message("e-1", "scheduling:updated"))
	if err != nil || receipt.Code != "HTTP 200" || receipt.Ref == nil || receipt.Ref.ExternalID != "ext-7" || receipt.Duplicate || receipt.Accepted {
		t.Errorf("got %+v, %v", receipt, err)
	}
}

// A service may repeat parts of the token in its fault. No error shows them.
func TestReasonsRepeatNothingOfTheToken(t *testing.T) {
	for _, passwordType := range []string{soap.Text, soap.Digest} {
		t.Run(passwordType, func(t *testing.T) {
			var secrets []string
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					t.Errorf("reading the request: %v", err)
				}
				_, password, _ := strings.Cut(string(body), "<wsse:Password ")
				_, nonce, _ := strings.Cut(string(body), "<wsse:Nonce ")
				secrets = []string{"p&ss<word", "p&amp;ss&lt;word", textAfter(password, ">"), textAfter(nonce, ">")}
				w.WriteHeader(http.StatusInternalServerError)
				_, _ = io.WriteString(w, faultMessage(soap.Version11, "soap:Client", "bad "+strings.Join(secrets, " and ")))
			}))
			t.Cleanup(server.Close)
			c := service()
			c.URL = server.URL
			c.Security = soap.Security{Kind: soap.UsernameToken, Username: "agency", Password: "p&ss<word", PasswordType: passwordType}
			_, err := newAdapter(t, c).Deliver(t.Context(), message("e-1", "scheduling:updated"))
			if err == nil || !strings.HasSuffix(err.Error(), "soap:Client: (hidden, because it repeats what was sent)") {
				t.Errorf("got %v", err)
			}
			for _, secret := range secrets {
				if secret == "" || err != nil && strings.Contains(err.Error(), secret) {
					t.Errorf("%q was not sent, or the error shows it: %v", secret, err)
				}
			}
		})
	}
}

// Some services want credentials in a header block or in the operation.
func TestReasonsRepeatNothingThatTheTemplatesSay(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("reading the request: %v", err)
		}
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, faultMessage(soap.Version11, "soap:Client", "bad p&ss<word and "+string(body)))
	}))
	t.Cleanup(server.Close)
	c := service()
	c.URL = server.URL
	for field, change := range map[string]func(c *soap.Config){
		"header":    func(c *soap.Config) { c.Header = "<a>p&amp;ss&lt;word</a>" },
		"attribute": func(c *soap.Config) { c.Header = `<a><b c="p&amp;ss&lt;word"/></a>` },
		"body":      func(c *soap.Config) { c.Body = `<a><b>p&amp;ss&lt;word</b></a>` },
		"route":     func(c *soap.Config) { c.Routes["scheduling:updated"] = soap.Route{Body: `<a>p&amp;ss&lt;word</a>`} },
	} {
		c := c
		c.Routes = map[string]soap.Route{}
		change(&c)
		_, err := newAdapter(t, c).Deliver(t.Context(), message("e-1", "scheduling:updated"))
		if err == nil || !strings.Contains(err.Error(), "soap:Client: (hidden, because it repeats what was sent)") || strings.Contains(err.Error(), "p&ss") {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

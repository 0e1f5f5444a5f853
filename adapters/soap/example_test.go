package soap_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/soap"
)

// A clinic's calendar takes a hearing and refuses its cancellation with a fault
// that says that trying again may help.
func Example() {
	const fault = `<soap:Fault><faultcode>soap:Client</faultcode><faultstring>Entry is being edited</faultstring>` +
		`<detail><cal:CalendarFault><cal:retryable>true</cal:retryable></cal:CalendarFault></detail></soap:Fault>`
	clinic := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, operation, _ := strings.Cut(string(body), "<soap:Body>\n")
		operation, _, _ = strings.Cut(operation, "\n</soap:Body>")
		fmt.Println(r.Header.Get("SOAPAction"), operation)
		w.Header().Set("Content-Type", "text/xml; charset=utf-8")
		if strings.HasPrefix(operation, "<cal:CancelHearing>") {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = fmt.Fprintf(w, envelope, envelopes[soap.Version11], fault)
			return
		}
		_, _ = fmt.Fprintf(w, envelope, envelopes[soap.Version11], stored)
	}))
	defer clinic.Close()

	calendar, err := soap.New(soap.Config{
		URL:        clinic.URL + "/CalendarService",
		Namespaces: map[string]string{"cal": "urn:example:calendar"},
		Action:     "NotifyHearing",
		Body:       `<cal:NotifyHearing><cal:reference>{fields.reference}</cal:reference></cal:NotifyHearing>`,
		Security:   soap.Security{Kind: soap.UsernameToken, Username: "agency", Password: "from the environment"},
		Routes: map[string]soap.Route{
			"scheduling:cancelled": {
				Action: "CancelHearing",
				Body:   `<cal:CancelHearing><cal:entryId>{ref.external_id}</cal:entryId></cal:CancelHearing>`,
			},
		},
		ExternalID: "cal:NotifyHearingResponse/cal:entryId",
		Answers: []soap.Answer{
			{Code: "Client", Path: "detail/cal:CalendarFault/cal:retryable", Value: "true", Class: "transient"},
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = calendar.Close() }()

	receipt, err := calendar.Deliver(context.Background(), adapters.Message{
		ID: "e-1", IdempotencyKey: "e-1", Type: "scheduling:created", Key: "hearing-7",
		Body: []byte(`{"reference":"Doe & Doe <NY-07>"}`),
	})
	fmt.Println(receipt.Code, receipt.Ref.ExternalID, err)

	receipt, err = calendar.Deliver(context.Background(), adapters.Message{
		ID: "e-2", IdempotencyKey: "e-2", Type: "scheduling:cancelled", Key: "hearing-7",
		Body: []byte(`{}`), Ref: *receipt.Ref,
	})
	fmt.Println(receipt.Code, adapters.ClassOf(err))
	// Output:
	// "NotifyHearing" <cal:NotifyHearing><cal:reference>Doe &amp; Doe &lt;NY-07&gt;</cal:reference></cal:NotifyHearing>
	// HTTP 200 ext-7 <nil>
	// "CancelHearing" <cal:CancelHearing><cal:entryId>ext-7</cal:entryId></cal:CancelHearing>
	// HTTP 500 soap:Client transient
}

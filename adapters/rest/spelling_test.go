package rest_test

import (
	"bufio"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/rest"
)

func TestHeaderNamesAreSentAsTheyAreConfigured(t *testing.T) {
	for _, method := range []string{"POST", "DELETE"} {
		t.Run(method, func(t *testing.T) {
			address, lines := wire(t)
			a := newAdapter(t, rest.Config{
				URL: "http://" + address, Method: "PUT",
				Headers: map[string]adapters.Secret{"source-system": "AGENCY", "user-agent": "agency", "X-ms-version": "1"},
				Auth: adapters.Credentials{
					Kind: adapters.APIKey, Header: "x-API-key", Key: "first",
					Second: &adapters.Credentials{Kind: adapters.Bearer, Header: "serviceAuthorization", Token: "second"},
				},
				Routes: map[string]rest.Route{"scheduling:*": {Request: rest.Request{
					Method:  method,
					Headers: map[string]adapters.Secret{"transactionIdHMCTS": "{id}", "x-MS-version": "2"},
				}}},
			})
			if _, err := a.Deliver(t.Context(), message()); err != nil {
				t.Fatal(err)
			}
			got := <-lines
			for _, want := range []string{
				"source-system: AGENCY", "x-API-key: first", "serviceAuthorization: Bearer second",
				"transactionIdHMCTS: e-1", "x-MS-version: 2", "User-Agent: agency",
			} {
				if !slices.Contains(got, want) {
					t.Errorf("%s was not sent; sent:\n%s", want, strings.Join(got, "\n"))
				}
			}
			for i, line := range got {
				name, _, _ := strings.Cut(line, ":")
				if slices.ContainsFunc(got[:i], func(before string) bool {
					other, _, _ := strings.Cut(before, ":")
					return strings.EqualFold(name, other)
				}) {
					t.Errorf("%s was sent twice", name)
				}
			}
		})
	}
}

// wire answers one request with 200 and returns the lines of its header, as net/http's
// server would not show them.
func wire(t *testing.T) (address string, header <-chan []string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	read := make(chan []string, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		var lines []string
		for scan := bufio.NewScanner(conn); scan.Scan() && scan.Text() != ""; {
			lines = append(lines, scan.Text())
		}
		_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
		read <- lines
	}()
	return listener.Addr().String(), read
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

func env(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

// serve runs the command until the test's end of ctx and returns its URL.
func serve(t *testing.T, getenv func(string) string, args ...string) (url string, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(ctx, append([]string{"--listen", "127.0.0.1:0"}, args...), getenv, nil, in, io.Discard)
		in.CloseWithError(io.EOF)
		done <- err
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("it did not start: %v", <-done)
	}
	return strings.TrimSpace(line), func() error { cancel(); return <-done }
}

func post(t *testing.T, url, token string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", url+"/api/calendar", strings.NewReader(`{"case_reference":"H-1"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	return res.StatusCode
}

func postSOAP(t *testing.T, url, password string) string {
	t.Helper()
	message := `<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Header>` +
		`<Security xmlns="http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"><UsernameToken>` +
		`<Username>clinic</Username><Password>` + password + `</Password></UsernameToken></Security></Header>` +
		`<Body><NotifyHearing xmlns="urn:example:calendar"><reference>H-1</reference></NotifyHearing></Body></Envelope>`
	req, err := http.NewRequestWithContext(t.Context(), "POST", url+"/soap/calendar", strings.NewReader(message))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "text/xml")
	req.Header.Set("SOAPAction", `""`)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTheCalendarIsServedOverSOAP(t *testing.T) {
	url, stop := serve(t, env(map[string]string{"COURT_PASSWORD": "s3cret"}), "--username", "clinic")
	for i, tt := range []struct{ password, want string }{
		{"wrong", "FailedAuthentication"},
		{"s3cret", "STORED"},
	} {
		if got := postSOAP(t, url, tt.password); !strings.Contains(got, tt.want) {
			t.Errorf("request %d: %s does not say %s", i, got, tt.want)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

func TestTheCalendarIsServedUntilASignal(t *testing.T) {
	dir := t.TempDir()
	faults, ledger := filepath.Join(dir, "faults.json"), filepath.Join(dir, "ledger.jsonl")
	if err := os.WriteFile(faults, []byte(`[{"match":{"first":1},"do":{"status":503}}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	url, stop := serve(t, env(map[string]string{"COURT_TOKEN": "t0ken"}), "--faults", faults, "--ledger", ledger)
	for i, tt := range []struct {
		token string
		want  int
	}{{"t0ken", 503}, {"wrong", 401}, {"t0ken", 201}} {
		if got := post(t, url, tt.token); got != tt.want {
			t.Errorf("request %d: %d, want %d", i, got, tt.want)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(ledger)
	if err != nil || bytes.Count(b, []byte("\n")) != 3 {
		t.Errorf("ledger file (%v):\n%s", err, b)
	}
}

func TestExitCodes(t *testing.T) {
	url, stop := serve(t, env(nil))
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte(`[{"do":{"stauts":503}}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		args []string
		code int
		want string
	}{
		{"port in use", []string{"--listen", strings.TrimPrefix(url, "http://")}, 1, "address already in use"},
		{"unknown flag", []string{"--colour"}, 2, "-colour"},
		{"argument", []string{"now"}, 2, `"now"`},
		{"bad script", []string{"--faults", bad}, 2, "stauts"},
		{"missing script", []string{"--faults", bad + "x"}, 2, "no such file"},
		{"bad duplicate status", []string{"--duplicate-status", "500"}, 2, "500"},
		{"bad keep", []string{"--keep", "-1"}, 2, "--keep"},
		{"ledger in no folder", []string{"--ledger", filepath.Join(bad, "x")}, 1, "--ledger"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stderr strings.Builder
			err := run(t.Context(), tt.args, env(nil), nil, io.Discard, &stderr)
			if code := exitCode(err, &stderr); code != tt.code || !strings.Contains(stderr.String(), tt.want) {
				t.Errorf("exit %d with %q; want %d naming %q", code, stderr.String(), tt.code, tt.want)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	var stdout, stderr strings.Builder
	err := run(t.Context(), []string{"--help"}, env(map[string]string{"COURT_TOKEN": "s3cret", "COURT_PASSWORD": "s3cret"}), nil, &stdout, &stderr)
	if !errors.Is(err, flag.ErrHelp) || exitCode(err, &stderr) != 0 || stderr.Len() > 0 {
		t.Errorf("help returned %v and wrote %q to stderr", err, stderr.String())
	}
	for _, want := range []string{"-faults", "COURT_TOKEN", "COURT_PASSWORD", "/soap/calendar", "FailedAuthentication", `"drop": "after"`} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("help does not show %s", want)
		}
	}
	if strings.Contains(stdout.String(), "s3cret") {
		t.Error("help prints a secret")
	}
}

func TestExampleScriptIsValid(t *testing.T) {
	from, to := strings.Index(example, "["), strings.Index(example, "  ]\n")
	faults, err := courtsim.ParseFaults([]byte(example[from : to+3]))
	if err != nil || len(faults) != 3 {
		t.Errorf("the script of the help text has %d rules: %v", len(faults), err)
	}
}

package composetest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// stack is compose.yaml, running.
type stack struct {
	*testing.T
	dir string // a copy of deploy/compose
}

// services are those of compose.yaml but Grafana, whose image cannot be had without a registry.
var services = []string{"court", "scheduling", "relay-1", "relay-2", "prometheus"}

// up starts the services as a user does.
func up(t *testing.T) *stack {
	t.Helper()
	for _, name := range []string{"DOCKER_HOST", "COMPOSE", "LOCKSTEP_IMAGE"} {
		if os.Getenv(name) == "" {
			t.Fatalf("%s is not set: run make test-compose", name)
		}
	}
	root := t.TempDir()
	if err := os.CopyFS(root, os.DirFS(filepath.Join("..", "..", "deploy"))); err != nil {
		t.Fatal(err)
	}
	s := &stack{t, filepath.Join(root, "compose")}
	s.command("./secrets.sh")
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.try(context.Background(), os.Getenv("COMPOSE"), "ps", "--all"))
			t.Log(s.try(context.Background(), os.Getenv("COMPOSE"), "logs", "--tail", "40"))
		}
		if out, err := s.run(context.Background(), os.Getenv("COMPOSE"), "down", "--volumes", "--timeout", "5"); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
	})
	s.compose(append([]string{"up", "--detach"}, services...)...)
	return s
}

func (s *stack) run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = s.dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *stack) try(ctx context.Context, name string, args ...string) string {
	out, err := s.run(ctx, name, args...)
	return fmt.Sprintf("%s %v: %v\n%s", name, args, err, out)
}

// command runs a command that must succeed, and returns what it prints.
func (s *stack) command(name string, args ...string) string {
	s.Helper()
	out, err := s.run(s.Context(), name, args...)
	if err != nil {
		s.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return out
}

func (s *stack) compose(args ...string) string {
	s.Helper()
	return s.command(os.Getenv("COMPOSE"), args...)
}

// until waits until something is true.
func (s *stack) until(what string, holds func() bool) {
	s.Helper()
	for began := time.Now(); !holds(); time.Sleep(200 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			s.Fatalf("not within a minute: %s", what)
		}
	}
}

// get returns the status and the body of a page, 0 while nobody answers.
func (s *stack) get(client *http.Client, address string) (int, string) {
	s.Helper()
	r, err := http.NewRequestWithContext(s.Context(), http.MethodGet, address, nil)
	if err != nil {
		s.Fatal(err)
	}
	answer, err := client.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, string(body)
}

// book books a hearing through the scheduling module, and returns its id.
func (s *stack) book(number string) string {
	s.Helper()
	body := fmt.Sprintf(`{"case_number": %q, "hearing_type": "Motion", "courthouse": "Albany", "courtroom": "3A", "local_start": "2027-03-15T10:00", "zone": "America/New_York", "duration_minutes": 30}`, number)
	r, err := http.NewRequestWithContext(s.Context(), http.MethodPost, "http://localhost:8080/hearings", strings.NewReader(body))
	if err != nil {
		s.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		s.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	var hearing struct{ ID string }
	if err == nil {
		err = json.Unmarshal(text, &hearing)
	}
	if err != nil || hearing.ID == "" {
		s.Fatalf("booking: %s %s: %v", answer.Status, text, err)
	}
	return hearing.ID
}

// delivered waits until the court has a hearing, as a clerk sees it.
func (s *stack) delivered(id string) {
	s.Helper()
	s.until("the court has "+id, func() bool {
		_, body := s.get(http.DefaultClient, "http://localhost:8080/hearings/"+id)
		return strings.Contains(body, `"delivered"`)
	})
}

// TestComposeDelivers follows deploy/compose/compose.yaml from nothing to a delivered hearing.
func TestComposeDelivers(t *testing.T) {
	s := up(t)
	s.until("the scheduling module is ready", func() bool {
		code, _ := s.get(http.DefaultClient, "http://localhost:8080/readyz")
		return code == http.StatusOK
	})
	s.delivered(s.book("27-CV-0001"))

	s.until("every container is healthy", func() bool {
		out := s.compose("ps", "--format", "{{.Service}} {{.Health}}")
		return strings.Count(out, " healthy") == 5 // PostgreSQL, the court, the scheduling module, two relays
	})
	s.until("Prometheus sees both relays", func() bool {
		_, body := s.get(http.DefaultClient, "http://localhost:9090/api/v1/query?query="+url.QueryEscape(`sum(up{job="lockstep"}) == 2`))
		return strings.Contains(body, `"metric"`)
	})

	// The console, with the token of secrets/console_token.
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	person := &http.Client{Jar: jar}
	if code, body := s.get(person, "http://localhost:9464/"); code != http.StatusOK || !strings.Contains(body, "Log in") {
		t.Errorf("the console without a login: %d %s", code, body)
	}
	token, err := os.ReadFile(filepath.Join(s.dir, "secrets", "console_token"))
	if err != nil {
		t.Fatal(err)
	}
	form := url.Values{"token": {string(token)}, "next": {"/"}}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost:9464/login", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	answer, err := person.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	s.until("the console says that the court is up to date", func() bool {
		code, page := s.get(person, "http://localhost:9464/")
		return code == http.StatusOK && strings.Contains(page, "CourtCalendarSync") && strings.Contains(page, "up to date")
	})

	// One relay is killed, and the other one works on.
	s.command("docker", "kill", "--signal", "KILL", "lockstep-relay-1-1")
	s.delivered(s.book("27-CV-0002"))
}

// TestImage looks at the image itself.
func TestImage(t *testing.T) {
	s := &stack{t, "."}
	var image []struct {
		Size   int64
		Config struct {
			User        string
			Labels      map[string]string
			Healthcheck struct{ Test []string }
		}
	}
	if err := json.Unmarshal([]byte(s.command("docker", "image", "inspect", "lockstep:latest")), &image); err != nil {
		t.Fatal(err)
	}
	c := image[0].Config
	if c.User != "65532:65532" || len(c.Healthcheck.Test) == 0 {
		t.Errorf("user %s, healthcheck %v", c.User, c.Healthcheck.Test)
	}
	for _, label := range []string{"title", "description", "source", "licenses", "version", "revision", "created"} {
		if c.Labels["org.opencontainers.image."+label] == "" {
			t.Errorf("the label %s is missing", label)
		}
	}
	if image[0].Size > 60<<20 {
		t.Errorf("the image has %d MB", image[0].Size>>20)
	}
	locked := []string{"run", "--rm", "--read-only", "--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "lockstep"}
	if out := s.command("docker", append(locked, "version")...); !strings.Contains(out, "lockstep ") {
		t.Errorf("version: %s", out)
	}
	// Without a configuration it says what is missing.
	out, err := s.run(t.Context(), "docker", append(locked, "run")...)
	if err == nil || !strings.Contains(out, "/etc/lockstep/lockstep.yaml") {
		t.Errorf("run without a configuration: %v: %s", err, out)
	}
	if out := s.command("docker", append(locked, "config", "init", "--profile", "rest")...); !strings.Contains(out, "syncs:") {
		t.Errorf("config init: %s", out)
	}
}

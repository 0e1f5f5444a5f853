package scheduling_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/scheduling"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// party is the name that must stay out of logs and events.
const party = "Doe"

// clinic is the API on its own database.
type clinic struct {
	t    *testing.T
	pool *pgxpool.Pool
	api  http.Handler
	log  *logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func open(t *testing.T) *clinic {
	t.Helper()
	return openAs(t, pgtest.New(t), "")
}

// openAs opens the API on url, as a group role if one is given.
func openAs(t *testing.T, url, role string) *clinic {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	if role != "" {
		config.ConnConfig.RuntimeParams["role"] = role
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	log := &logBuffer{}
	t.Cleanup(func() {
		if strings.Contains(log.String(), party) {
			t.Errorf("the log names a party:\n%s", log)
		}
	})
	return &clinic{
		t: t, pool: pool, log: log,
		api: scheduling.NewHandler(scheduling.New(pool, nil), scheduling.Pages{Zone: "America/New_York"}, slog.New(slog.NewTextHandler(log, nil))),
	}
}

type answer struct {
	t      *testing.T
	status int
	header http.Header
	body   string
	log    *logBuffer
}

// call sends a JSON body. header has names and values in turn.
func (c *clinic) call(method, path, body string, header ...string) answer {
	c.t.Helper()
	r := httptest.NewRequestWithContext(c.t.Context(), method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	c.api.ServeHTTP(w, r)
	return answer{t: c.t, status: w.Code, header: w.Header(), body: w.Body.String(), log: c.log}
}

func (a answer) want(status int) answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("answer is %d %s; want %d; log:\n%s", a.status, a.body, status, a.log)
	}
	if ct := a.header.Get("Content-Type"); status >= 400 && ct != "application/problem+json" {
		a.t.Errorf("the error came as %q: %s", ct, a.body)
	}
	return a
}

func decodeAs[T any](a answer) T {
	a.t.Helper()
	var v T
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		a.t.Fatalf("%v in %s", err, a.body)
	}
	return v
}

// hearing is a hearing as clients read it.
type hearing struct {
	ID          string
	Status      string
	Courtroom   string
	LocalStart  string `json:"local_start"`
	StartsAt    string `json:"starts_at"`
	Version     int64
	Court       []scheduling.Knowledge
	CourtAbsent string `json:"court_unknown"`
}

// book books a hearing with an id. change overrides fields, or removes them with nil.
func (c *clinic) book(id string, change map[string]any) answer {
	c.t.Helper()
	fields := map[string]any{
		"id": id, "case_number": "2027-CV-0042", "case_name": "Roe v " + party, "hearing_type": "Motion",
		"courthouse": "Kings County", "courtroom": "3A", "local_start": "2027-07-15T10:00",
		"zone": "America/New_York", "duration_minutes": 45,
	}
	for k, v := range change {
		fields[k] = v
		if v == nil {
			delete(fields, k)
		}
	}
	if fields["id"] == "" {
		delete(fields, "id")
	}
	b, err := json.Marshal(fields)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.call("POST", "/hearings", string(b))
}

// event is a row of outbox.event.
type event struct {
	Type    string
	Version int64
	Payload string
	Headers string
}

func (c *clinic) events(key string) []event {
	c.t.Helper()
	rows, err := c.pool.Query(c.t.Context(),
		"SELECT type, version, payload::text, headers::text FROM outbox.event WHERE key = $1 ORDER BY seq", key)
	if err != nil {
		c.t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[event])
	if err != nil {
		c.t.Fatal(err)
	}
	return list
}

func (c *clinic) exec(sql string, args ...any) {
	c.t.Helper()
	if _, err := c.pool.Exec(c.t.Context(), sql, args...); err != nil {
		c.t.Fatal(err)
	}
}

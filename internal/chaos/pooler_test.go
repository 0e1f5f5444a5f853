//go:build linux

package chaos

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

// bouncer is a PgBouncer in transaction mode.
type bouncer struct {
	t    testing.TB
	cmd  *exec.Cmd
	ini  string
	user *syscall.Credential // nil is ourselves
}

const nobody = 65534

// openDir is a t.TempDir that any account can enter.
func openDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for at := filepath.Dir(dir); at != filepath.Clean(os.TempDir()); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// hint is the parameter that the relay's URL needs for it.
const hint = "&default_query_exec_mode=exec"

// newBouncer starts a PgBouncer that connects to the world's database with a login of the relay's role
// only. It returns the relays' URL, as in docs/operators.md.
func (w *world) newBouncer() (*bouncer, string) {
	w.t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program = "/usr/sbin/pgbouncer" // which is not on everybody's PATH
	}
	u, err := url.Parse(pgtest.AsRole(w.t, w.url, "outbox_relay"))
	if err != nil {
		w.t.Fatal(err)
	}
	role := u.User.Username()
	password, _ := u.User.Password()
	for name, value := range map[string]string{
		"jit": "off", "enable_seqscan": "off", "enable_bitmapscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off",
		"plan_cache_mode": "force_generic_plan",
		"lock_timeout":    "2s", "statement_timeout": "10s", "idle_in_transaction_session_timeout": "10s",
		// Settings of a login that must change nothing.
		"datestyle": "German, DMY", "intervalstyle": "sql_standard", "timezone": "Asia/Kolkata", "bytea_output": "escape",
		"standard_conforming_strings": "off", "escape_string_warning": "off",
	} {
		w.exec(fmt.Sprintf(`ALTER ROLE %s SET %s = '%s'`, role, name, value))
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	_ = free.Close()
	ini := fmt.Sprintf(`[databases]
agency = host=%s port=%s dbname=%s user=%s password=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
`, u.Hostname(), u.Port(), strings.TrimPrefix(u.Path, "/"), role, password, port)
	b := &bouncer{t: w.t, ini: filepath.Join(openDir(w.t), "pgbouncer.ini")}
	if err := os.WriteFile(b.ini, []byte(ini), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if os.Geteuid() == 0 { // as whom it refuses to run
		b.user = &syscall.Credential{Uid: nobody, Gid: nobody}
		if err := os.Chown(b.ini, nobody, nobody); err != nil {
			w.t.Fatal(err)
		}
	}
	b.start(program)
	w.t.Cleanup(b.kill)
	url := fmt.Sprintf("postgres://%s@127.0.0.1:%d/agency?sslmode=disable"+hint, role, port)
	w.within(patience, "PgBouncer answers", func() bool {
		conn, err := pgx.Connect(w.t.Context(), url)
		if err == nil {
			_ = conn.Close(w.t.Context())
		}
		return err == nil
	})
	return b, url
}

func (b *bouncer) start(program string) {
	b.t.Helper()
	b.cmd = exec.CommandContext(context.Background(), program, "-q", b.ini)
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: b.user, Pdeathsig: syscall.SIGKILL}
	if err := b.cmd.Start(); err != nil {
		b.t.Fatalf("%v; install the package pgbouncer", err)
	}
}

func (b *bouncer) kill() {
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait()
}

// The whole relay works through PgBouncer in transaction mode, with polls only: it registers, adds
// retained events, claims, records, maintains, holds and shows its status, without a warning. Then
// PgBouncer is killed.
func TestFault12PgBouncer(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		w.book(names(50)...) // before any sync is registered
		b, through := w.newBouncer()
		unaware, err := outbox.Open(r.Context(), strings.TrimSuffix(through, hint), outbox.Options{})
		if err != nil {
			r.Fatal(err)
		}
		defer unaware.Close()
		if err := unaware.Check(r.Context()); outbox.IsTemporary(err) || !strings.Contains(err.Error(), hint[1:]) {
			r.Errorf("got %v, want an error that says what the URL lacks", err)
		}
		spec := careful()
		spec.Database, spec.Syncs[0].Notify, spec.Syncs[0].From = through, true, "beginning"
		p := w.start(spec)
		w.registered()
		l := w.begin(loadSpec{writers: 4, keys: 50, rate: 300})
		l.reaches(of[int64](100, 200))
		w.exec(`SELECT outbox.pause($1, 'for a look')`, theSync)
		w.until("something waits", `SELECT count(*) > 20 FROM outbox.delivery WHERE sync = $1`, theSync)
		store, err := outbox.Open(r.Context(), through, outbox.Options{Name: "looker"})
		if err != nil {
			r.Fatal(err)
		}
		defer store.Close()
		list, err := store.Status(r.Context())
		if err != nil {
			r.Fatal(err)
		}
		if len(list) != 2 || list[0].Hold == nil || *list[0].Hold != "operator" || list[0].DueNow == 0 {
			r.Errorf("status through PgBouncer: %+v", list)
		}
		if _, err := store.Maintain(r.Context(), "90 days", "84 months"); err != nil {
			r.Error(err)
		}
		if err := store.Hold(r.Context(), theSync, "", outbox.HoldThrottle, 500*time.Millisecond, "asked to wait"); err != nil {
			r.Error(err)
		}
		w.exec(`SELECT outbox.resume($1)`, theSync)
		l.reaches(l.written.Load() + of[int64](100, 200))
		if ready, why := p.ready(); !ready {
			r.Errorf("the relay is not ready: %s", why)
		}
		if p.stderr.contains(anything) {
			r.Errorf("the relay complained:\n%s", p.stderr)
		}
		if n := ask[int](w, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'`); n != 0 {
			r.Errorf("%d sessions of PgBouncer listen: nobody would hear it", n)
		}
		b.kill()
		r.figures.kills++
		p.struggles(w, anything)
		b.start(b.cmd.Path)
		w.exec(`
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND usename LIKE 'outbox_relay%'`)
		l.reaches(l.written.Load() + of[int64](100, 200))
		l.stop()
		w.drain(expected{})
	})
}

// What operators run for looking works through a pooler in transaction mode too, with the login's hostile settings.
func TestCommandsThroughAPooler(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		_, pooled := w.newBouncer()
		lockstep := program(r, "")
		w.register(relaySpec{})
		w.book("H-1")
		file := w.configuration("relay-1")
		for _, command := range [][]string{
			{"doctor", "--no-network"}, {"status"}, {"status", "--relays"}, {"log"}, {"changes"}, {"explain", "H-1"}, {"sync", "list"},
		} {
			code, says := w.execute(lockstep, append(command, "--config", file, "--database-url", pooled, "--output", "json")...)
			if code != 0 && code != 3 || strings.Contains(says, "SQLSTATE") || strings.Contains(says, "prepared statement") {
				r.Errorf("%v through a pooler: exit code %d: %s", command, code, says)
			}
		}
		if code, says := w.execute(lockstep, "migrate", "status", "--database-url", pooled); code != 1 || !strings.Contains(says, "this is a connection pooler: name the database server itself") {
			r.Errorf("migrate status through a pooler: exit code %d: %s", code, says)
		}
	})
}

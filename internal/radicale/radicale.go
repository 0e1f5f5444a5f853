// Package radicale starts Radicale, a CalDAV server that we did not write, for tests.
package radicale

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/waiting"
)

// Server is a running server with the User [User]. It ends with the test.
type Server struct {
	t   *testing.T
	URL string // of the server, with a slash
}

// The User of a server.
const (
	User     = "agency"
	Password = "canary-password"
)

// Start starts a server on a free port. The program comes from Debian's package radicale.
func Start(t *testing.T) *Server {
	t.Helper()
	program, err := exec.LookPath("radicale")
	if err != nil {
		t.Fatal("radicale is missing: internal/testtools/install.sh radicale")
	}
	dir := t.TempDir()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close()
	config := fmt.Sprintf("[server]\nhosts = %s\n[auth]\ntype = htpasswd\nhtpasswd_filename = %s/users\nhtpasswd_encryption = plain\ndelay = 0\n[storage]\nfilesystem_folder = %[2]s/store\n[logging]\nlevel = warning\n", address, dir)
	for name, text := range map[string]string{"config": config, "users": User + ":" + Password + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program, "--config", filepath.Join(dir, "config"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("radicale says: %s", text)
		}
	})
	r := &Server{t: t, URL: "http://" + address + "/"}
	waiting.For(t, time.Minute, "radicale answers", func() bool {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
	return r
}

// Do makes a request as the user, and returns status and body.
func (r *Server) Do(method, path, body string, headers ...string) (int, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.URL+strings.TrimPrefix(path, "/"), strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.SetBasicAuth(User, Password)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// Room makes a calendar, and returns its URL.
func (r *Server) Room(name string) string {
	r.t.Helper()
	path := User + "/" + name + "/"
	if status, text := r.Do("MKCALENDAR", path, ""); status != http.StatusCreated {
		r.t.Fatalf("MKCALENDAR %s: %d %s", path, status, text)
	}
	return r.URL + path
}

// Put writes an object of our own making.
func (r *Server) Put(path, text string) {
	r.t.Helper()
	if status, says := r.Do("PUT", User+"/"+path, text, "Content-Type", "text/calendar"); status != http.StatusCreated {
		r.t.Fatalf("PUT %s: %d %s", path, status, says)
	}
}

// Object returns what the server has at a path, or nothing.
func (r *Server) Object(path string) string {
	r.t.Helper()
	status, text := r.Do("GET", User+"/"+path, "")
	switch status {
	case http.StatusOK:
		return text
	case http.StatusNotFound:
		return ""
	}
	r.t.Fatalf("GET %s: %d %s", path, status, text)
	return ""
}

// Line returns the value of a property of an object.
func Line(object, property string) string {
	for l := range strings.SplitSeq(strings.ReplaceAll(object, "\r\n ", ""), "\r\n") {
		if name, value, ok := strings.Cut(l, ":"); ok && (name == property || strings.HasPrefix(name, property+";")) {
			return value
		}
	}
	return ""
}

package config

import (
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

// files are a configuration and its secret, in a directory that is replaced as a whole,
// as Kubernetes replaces a mounted secret.
type files struct {
	t      *testing.T
	dir    string
	n      int
	config string
}

func newFiles(t *testing.T) *files {
	t.Helper()
	return &files{t: t, dir: t.TempDir(), config: filepath.Join(t.TempDir(), "lockstep.yaml")}
}

func (f *files) write(path, text string) {
	f.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *files) secret() string { return filepath.Join(f.dir, "data", "token") }

// mount replaces the directory with the secret.
func (f *files) mount(secret string) {
	f.t.Helper()
	f.n++
	version := filepath.Join(f.dir, fmt.Sprint("version-", f.n))
	if err := os.Mkdir(version, 0o700); err != nil {
		f.t.Fatal(err)
	}
	f.write(filepath.Join(version, "token"), secret)
	link := filepath.Join(f.dir, "data")
	if err := os.Symlink(version, link+".new"); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(link+".new", link); err != nil {
		f.t.Fatal(err)
	}
}

func (f *files) configure(name string) {
	f.t.Helper()
	f.write(f.config, fmt.Sprintf("database: {url: \"${file:%s}\"}\nrelay: {name: %s}\nsyncs: [{name: A, event: a, adapter: {kind: rest, url: \"http://x/\"}}]\n", f.secret(), name))
}

// A new authority is trusted without a restart.
func TestWatchSeesAuthorities(t *testing.T) {
	f := newFiles(t)
	ca := filepath.Join(f.dir, "ca.pem")
	f.write(f.config, "syncs: [{name: A, event: a, adapter: {kind: rest, url: \"http://x/\", tls: {ca_file: "+ca+"}}}]\n")
	var w Watch
	if _, err := w.Load(f.config, docEnv); err == nil {
		t.Fatal("an authority without a file is accepted")
	}
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	f.write(ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	for i := range 3 {
		if _, changed, err := w.Changed(); changed != (i == 1) || err != nil {
			t.Fatalf("call %d: changed %v, %v", i+1, changed, err)
		}
	}
}

func TestWatch(t *testing.T) {
	f := newFiles(t)
	f.mount("host=one")
	f.configure("first")
	var w Watch
	if _, err := w.Load(f.config, docEnv); err != nil {
		t.Fatal(err)
	}
	nothing := func(why string) {
		t.Helper()
		if _, changed, err := w.Changed(); changed || err != nil {
			t.Fatalf("%s: changed %v, %v", why, changed, err)
		}
	}
	comes := func(url, name string) {
		t.Helper()
		nothing("seen for the first time")
		got, changed, err := w.Changed()
		if !changed || err != nil || got.Database.URL.Reveal() != url || got.Relay.Name != name {
			t.Fatalf("changed %v, %v, %+v; want %s and %s", changed, err, got, url, name)
		}
		nothing("it was returned already")
		nothing("it was returned already")
	}
	nothing("nothing has changed")
	f.mount("host=two")
	comes("host=two", "first")
	f.configure("second")
	comes("host=two", "second")

	f.mount("host=th")
	nothing("seen for the first time")
	f.mount("host=three")
	nothing("it was being written")
	f.mount("host=two")
	nothing("it is as before")
	f.mount("host=three")
	comes("host=three", "second")

	wrong := func(why string) {
		t.Helper()
		nothing("seen for the first time")
		if got, changed, err := w.Changed(); !changed || err == nil || got != nil {
			t.Fatalf("%s: changed %v, %v", why, changed, err)
		}
		nothing("it was reported already")
		nothing("it was reported already")
	}
	f.write(f.config, "syncs: [")
	wrong("a broken file")
	if err := os.Remove(f.config); err != nil {
		t.Fatal(err)
	}
	wrong("no file")
	f.configure("third")
	comes("host=three", "third")
	if err := os.Remove(f.secret()); err != nil {
		t.Fatal(err)
	}
	wrong("no secret")
	f.mount("host=four")
	comes("host=four", "third")
}

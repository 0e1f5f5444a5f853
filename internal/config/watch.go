package config

import (
	"crypto/sha256"
	"fmt"
	"maps"
)

// digests are the files of a configuration, by name: its own, those of its ${file:…},
// and those that an adapter reads when it is made. The digest of a file that cannot be read is zero.
type digests map[string][sha256.Size]byte

// read reads a file as [readFile] does, and remembers its digest.
func (d digests) read(path string, limit int64) ([]byte, error) {
	b, err := readFile(path, maxFileSize)
	if err != nil {
		d[path] = [sha256.Size]byte{}
		return nil, err
	}
	d[path] = sha256.Sum256(b)
	return b[:min(int64(len(b)), limit+1)], nil
}

// same reports whether the files are still as they were.
func (d digests) same() bool {
	now := digests{}
	for path := range d {
		_, _ = now.read(path, maxFileSize) // a file that cannot be read has a digest too
	}
	return maps.Equal(now, d)
}

// Watch reads a configuration again when its files change: its own, those of its
// ${file:…}, and authorities that an adapter trusts. It compares their contents, because the time of a file says nothing if a
// link is replaced, as Kubernetes does. The zero value is ready for Load. It is not safe
// for concurrent use.
type Watch struct {
	path string
	env  func(string) (string, bool)
	used digests // what the last configuration was read from, also if it was refused
	seen digests // what the last call of Changed read
}

// Load is the function [Load]. Changed compares with what it has read.
func (w *Watch) Load(path string, env func(string) (string, bool)) (f *File, err error) {
	w.path, w.env = path, env
	f, w.used, err = load(path, env)
	return f, err
}

// Changed returns the configuration if its files have changed since it was returned
// last. The files must be the same in two calls, so that a file that is being written
// is not used. A configuration that is wrong is returned once, as an error.
func (w *Watch) Changed() (f *File, changed bool, err error) {
	if w.used.same() {
		w.seen = nil
		return nil, false, nil
	}
	f, read, err := load(w.path, w.env)
	if !maps.Equal(read, w.seen) {
		w.seen = read
		return nil, false, nil
	}
	w.used, w.seen = read, nil
	return f, true, err
}

// load reads and checks the file at path, and returns what it has read.
func load(path string, env func(string) (string, bool)) (*File, digests, error) {
	read := digests{}
	data, err := read.read(path, maxFileSize)
	if err != nil {
		return nil, read, fmt.Errorf("configuration %s cannot be read: %w; name another file with --config", path, err)
	}
	f, err := parse(path, data, substitution{env: env, read: read.read}, kinds())
	return f, read, err
}

package config

import (
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
)

// Load reads and checks the file at path. env looks up environment variables,
// as [os.LookupEnv] does. What is wrong with the contents comes as [Problems].
func Load(path string, env func(string) (string, bool)) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration %s cannot be read: %w; name another file with --config", path, cause(err))
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("configuration %s cannot be read: %w", path, cause(err))
	}
	return Parse(path, data, env)
}

// Parse checks data, which is YAML or JSON; name stands for it in messages.
func Parse(name string, data []byte, env func(string) (string, bool)) (*File, error) {
	return parseWith(name, data, env, nil)
}

func parseWith(name string, data []byte, env func(string) (string, bool), known map[string]adapterKind) (*File, error) {
	r := &report{file: name}
	sub := &substitution{env: env}
	root := parse(r, data, sub)
	if root == nil {
		return nil, r.err()
	}
	d := &decoder{report: r, sub: sub, kinds: known, workers: workers(root)}
	var spec fileSpec
	s := d.object(root, reflect.ValueOf(&spec).Elem(), "")
	f := d.build(root, spec)
	if err := r.err(); err != nil {
		return nil, err
	}
	f.shown = s
	if i := slices.Index(s.keys, "database"); i >= 0 && spec.Database.URL != "" {
		db := s.items[i]
		db.items[slices.Index(db.keys, "url")] = &shown{text: maskDatabase(spec.Database.URL.Reveal())}
	}
	return f, nil
}

// Defaults returns the configuration that an empty mapping stands for.
func Defaults() *File {
	f, err := Parse("defaults", []byte("{}"), func(string) (string, bool) { return "", false })
	if err != nil {
		panic(err) // the tags are wrong; a test runs this
	}
	return f
}

// workers returns relay.workers ahead of decoding: it is the default of
// limits.concurrency.
func workers(root *node) string {
	if relay := root.get("relay"); relay != nil {
		if n := relay.get("workers"); n != nil && (n.kind == kindInt || n.kind == kindText) {
			if i := atoi(n.text); i > 0 && i <= 10000 {
				return n.text
			}
		}
	}
	f, _ := reflect.TypeFor[relaySpec]().FieldByName("Workers")
	return f.Tag.Get("default")
}

package config

import "reflect"

// Load reads and checks the file at path. env looks up environment variables, as
// [os.LookupEnv] does. Mistakes in the file are returned as [Problems].
func Load(path string, env func(string) (string, bool)) (*File, error) {
	f, _, err := load(path, env)
	return f, err
}

// Parse checks data, which is YAML or JSON. name is its file name in messages.
func Parse(name string, data []byte, env func(string) (string, bool)) (*File, error) {
	return parseWith(name, data, env, kinds())
}

func parseWith(name string, data []byte, env func(string) (string, bool), known map[string]adapterKind) (*File, error) {
	return parse(name, data, substitution{env: env, read: readFile}, known)
}

func parse(name string, data []byte, sub substitution, known map[string]adapterKind) (*File, error) {
	f := &File{}
	d := &decoder{name: name, file: f, kinds: known, sub: sub}
	if root := d.read(data); root != nil {
		f.shown = d.object(root, reflect.ValueOf(f).Elem())
		d.checkListenTLS(root)
		d.checkConsole(root)
		d.checkSyncs(root)
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	f.Warnings = d.warnings.sorted()
	return f, nil
}

// Defaults returns the configuration of an empty file.
func Defaults() *File {
	f, err := Parse("defaults", []byte("{}"), func(string) (string, bool) { return "", false })
	if err != nil {
		panic(err) // the tags are wrong; a test runs this
	}
	return f
}

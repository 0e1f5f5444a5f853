package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// edit replaces text. The place is found by what it is in, not by a line: code
// around it may change, and a declaration may move to another file of its package.
type edit struct {
	// file is the path of the file, or of a directory: its Go and SQL files are
	// looked through then, but not its tests.
	file string
	// in is the declaration that the text is in: name, or Type.name for a method. In
	// SQL it is the name of a function. Default: anywhere.
	in string
	// old is the text. A run of white space in it stands for any run of white space.
	old string
	// pattern is a regular expression to be found instead of old.
	pattern string
	// new is what the text becomes.
	new string
	// times is how often the text must be there; default 1.
	times int
}

// place is a part of a file.
type place struct {
	path     string
	from, to int
}

// apply makes the edit to the files of root. Edited are the files that earlier edits
// have changed, by path; the result is added to them.
func (e edit) apply(root string, edited map[string]string) error {
	places, err := e.places(root, edited)
	if err != nil {
		return err
	}
	want, err := regexp.Compile(cmp.Or(e.pattern, loose(e.old)))
	if err != nil {
		return err
	}
	type match struct {
		path     string
		from, to int
	}
	var found []match
	for _, p := range places {
		text, err := read(p.path, edited)
		if err != nil {
			return err
		}
		for _, at := range want.FindAllStringIndex(text[p.from:p.to], -1) {
			found = append(found, match{p.path, p.from + at[0], p.from + at[1]})
		}
	}
	if n := max(e.times, 1); len(found) != n {
		return fmt.Errorf("stale: %s has %d times, not %d: %q", strings.TrimSpace(e.file+" "+e.in), len(found), n, cmp.Or(e.pattern, e.old))
	}
	for _, m := range slices.Backward(found) {
		text, err := read(m.path, edited)
		if err != nil {
			return err
		}
		edited[m.path] = text[:m.from] + e.new + text[m.to:]
	}
	return nil
}

// loose is a regular expression for a text in which white space may differ, but
// for spaces that are at either end of it.
func loose(text string) string {
	lead := text[:len(text)-len(strings.TrimLeft(text, " \t\n"))]
	trail := text[len(strings.TrimRight(text, " \t\n")):]
	if len(lead) == len(text) {
		return regexp.QuoteMeta(text)
	}
	words := strings.Fields(text)
	for i, w := range words {
		words[i] = regexp.QuoteMeta(w)
	}
	return regexp.QuoteMeta(lead) + strings.Join(words, `\s+`) + regexp.QuoteMeta(trail)
}

func read(path string, edited map[string]string) (string, error) {
	if text, ok := edited[path]; ok {
		return text, nil
	}
	text, err := os.ReadFile(path)
	return string(text), err
}

// places are those where the text may be.
func (e edit) places(root string, edited map[string]string) ([]place, error) {
	path := filepath.Join(root, e.file)
	paths := []string{path}
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if info.IsDir() {
		if paths, err = filepath.Glob(filepath.Join(path, "*.*")); err != nil {
			return nil, err
		}
		paths = slices.DeleteFunc(paths, func(p string) bool {
			return strings.HasSuffix(p, "_test.go") || filepath.Ext(p) != ".go" && filepath.Ext(p) != ".sql"
		})
	}
	var all []place
	for _, p := range paths {
		text, err := read(p, edited)
		if err != nil {
			return nil, err
		}
		switch {
		case e.in == "":
			all = append(all, place{p, 0, len(text)})
		case strings.HasSuffix(p, ".sql"):
			all = append(all, sqlFunctions(p, text, e.in)...)
		default:
			found, err := declarations(p, text, e.in)
			if err != nil {
				return nil, err
			}
			all = append(all, found...)
		}
	}
	return all, nil
}

// declarations are those of a name in a Go file.
func declarations(path, text, name string) (all []place, err error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, text, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	add := func(n ast.Node) {
		all = append(all, place{path, set.Position(n.Pos()).Offset, set.Position(n.End()).Offset})
	}
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if qualified(d) == name {
				add(d)
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.ValueSpec:
					if slices.ContainsFunc(s.Names, func(n *ast.Ident) bool { return n.Name == name }) {
						add(s)
					}
				case *ast.TypeSpec:
					if s.Name.Name == name {
						add(s)
					}
				}
			}
		}
	}
	return all, nil
}

// qualified is a function's name, with its receiver's type if it has one.
func qualified(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return d.Name.Name
	}
	t := d.Recv.List[0].Type
	if star, ok := t.(*ast.StarExpr); ok {
		t = star.X
	}
	if id, ok := t.(*ast.Ident); ok {
		return id.Name + "." + d.Name.Name
	}
	return d.Name.Name
}

// sqlFunctions are those of a name in a migration, up to the end of their
// statement.
func sqlFunctions(path, text, name string) (all []place) {
	begins := regexp.MustCompile(`(?i)\bCREATE\s+(OR\s+REPLACE\s+)?FUNCTION\s+` + regexp.QuoteMeta(name) + `\s*\(`)
	for _, at := range begins.FindAllStringIndex(text, -1) {
		end := strings.Index(text[at[0]:], "-- +goose StatementEnd")
		if end < 0 {
			end = len(text) - at[0]
		}
		all = append(all, place{path, at[0], at[0] + end})
	}
	return all
}

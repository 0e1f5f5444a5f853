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

// edit replaces a text. It finds the text by the declaration around it, and not by a line number. So other
// code may change, and a declaration may move to another file of its package.
type edit struct {
	// file is the path of a file or directory. In a directory, all Go and SQL files are searched, but no
	// tests.
	file string
	// in is the name of the declaration with the text, or Type.name for a method. In a migration it is the
	// name of a function.
	in string
	// part is the common table expression with the text. If it is empty, the text may be anywhere in the
	// declaration.
	part string
	// old is the text. White space in it matches any white space, and _ matches any name, such as an alias
	// of a table.
	old string
	// pattern is a regular expression to be found instead of old.
	pattern string
	// new replaces the text. In it, _1 is the first name that _ matched, and so on.
	new string
	// times is how often the text must appear; default 1.
	times int
}

// place is a part of a file.
type place struct {
	path     string
	from, to int
}

// apply makes the edit in the files of root. edited has the files that earlier edits have changed, by
// path, and gets the result.
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
		place
		becomes string
	}
	var found []match
	for _, p := range places {
		text, err := read(p.path, edited)
		if err != nil {
			return err
		}
		within := text[p.from:p.to]
		for _, at := range want.FindAllStringSubmatchIndex(within, -1) {
			becomes := e.new
			for n := 1; n < len(at)/2; n++ {
				becomes = strings.ReplaceAll(becomes, fmt.Sprint("_", n), within[at[2*n]:at[2*n+1]])
			}
			found = append(found, match{place{p.path, p.from + at[0], p.from + at[1]}, becomes})
		}
	}
	if n := max(e.times, 1); len(found) != n {
		return fmt.Errorf("stale: %s has %d times, not %d: %q", strings.Join(strings.Fields(e.file+" "+e.in+" "+e.part), " "), len(found), n, cmp.Or(e.pattern, e.old))
	}
	for _, m := range slices.Backward(found) {
		text, err := read(m.path, edited)
		if err != nil {
			return err
		}
		edited[m.path] = text[:m.from] + m.becomes + text[m.to:]
	}
	return nil
}

// anyName is _ where it is a word of its own.
var anyName = regexp.MustCompile(`\b_\b`)

// loose is a regular expression for a text: _ matches any name, and white space inside the text matches any
// white space.
func loose(text string) string {
	lead := text[:len(text)-len(strings.TrimLeft(text, " \t\n"))]
	trail := text[len(strings.TrimRight(text, " \t\n")):]
	if len(lead) == len(text) {
		return regexp.QuoteMeta(text)
	}
	words := strings.Fields(text)
	for i, w := range words {
		words[i] = anyName.ReplaceAllString(regexp.QuoteMeta(w), `(\w+)`)
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

// places are the places that may have the text.
func (e edit) places(root string, edited map[string]string) ([]place, error) {
	path := filepath.Join(root, e.file)
	paths := []string{path}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
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
		var found []place
		if strings.HasSuffix(p, ".sql") {
			found = sqlFunctions(p, text, e.in)
		} else if found, err = declarations(p, text, e.in); err != nil {
			return nil, err
		}
		if e.part != "" {
			found = parts(text, found, e.part)
		}
		all = append(all, found...)
	}
	return all, nil
}

// parts are the common table expressions of a name, with their parentheses.
func parts(text string, within []place, name string) (all []place) {
	begins := regexp.MustCompile(`\b` + regexp.QuoteMeta(name) + `\s+AS\s+(MATERIALIZED\s+)?\(`)
	for _, p := range within {
		for _, at := range begins.FindAllStringIndex(text[p.from:p.to], -1) {
			from, to := p.from+at[0], p.from+at[1]
			for depth := 1; depth > 0 && to < p.to; to++ {
				switch text[to] {
				case '(':
					depth++
				case ')':
					depth--
				}
			}
			all = append(all, place{p.path, from, to})
		}
	}
	return all
}

// declarations are the declarations of a name in a Go file.
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

// sqlFunctions are the functions of a name in a migration, up to the end of their statement.
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

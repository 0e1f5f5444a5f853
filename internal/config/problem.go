package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Problem is one mistake in a configuration, or a warning.
type Problem struct {
	File   string
	Line   int // 1 for the first
	Column int
	Path   string // such as syncs[0].adapter.timeout; empty for the file as a whole
	Text   string // what is wrong, why, and what to do
}

func (p Problem) Error() string {
	at := fmt.Sprintf("%s:%d:%d: ", p.File, p.Line, p.Column)
	if p.Path == "" {
		return at + p.Text
	}
	return at + p.Path + ": " + p.Text
}

// Problems are all mistakes that were found, in the order of the file.
type Problems []Problem

func (ps Problems) Error() string { return errors.Join(ps.Unwrap()...).Error() }

// Unwrap lets errors.As find each Problem.
func (ps Problems) Unwrap() []error {
	errs := make([]error, len(ps))
	for i, p := range ps {
		errs[i] = p
	}
	return errs
}

// problem describes a problem in one line, even if a value of the file has several.
func (d *decoder) problem(line, column int, path, format string, args ...any) Problem {
	text := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, fmt.Sprintf(format, args...))
	return Problem{File: d.name, Line: line, Column: column, Path: path, Text: text}
}

// add reports a problem.
func (d *decoder) add(line, column int, path, format string, args ...any) {
	d.problems = append(d.problems, d.problem(line, column, path, format, args...))
}

// at reports a mistake in the value n.
func (d *decoder) at(n *node, format string, args ...any) {
	d.add(n.line, n.column, n.path, format, args...)
	n.fail()
}

// atKey reports a mistake in the key of n.
func (d *decoder) atKey(n *node, format string, args ...any) {
	d.add(n.keyLine, n.keyColumn, n.path, format, args...)
	n.fail()
}

// err returns the problems in the order of the file, without repetitions; nil if there are
// none.
func (d *decoder) err() error {
	if len(d.problems) == 0 {
		return nil
	}
	return d.problems.sorted()
}

func (ps Problems) sorted() Problems {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return slices.Compact(ps)
}

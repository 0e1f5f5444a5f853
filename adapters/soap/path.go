package soap

import (
	"errors"
	"fmt"
	"strings"
)

// path leads from elements to elements inside them: cal:Response/cal:entryId.
type path []step

type step struct {
	name     name
	anySpace bool
}

// parsePath reads a path; an empty text is no path.
func parsePath(text string, known *scope) (path, error) {
	if text == "" {
		return nil, nil
	}
	var (
		p    path
		errs []error
	)
	for part := range strings.SplitSeq(text, "/") {
		if part == "" {
			return nil, errors.New("is not a path: write names with single slashes between them, such as cal:Response/cal:entryId")
		}
		n, anySpace, err := parseName(part, known)
		switch {
		case err != nil:
			errs = append(errs, err)
		case len(p) == 0 && ofEnvelope(n):
			return nil, fmt.Errorf("starts inside the Body: leave %s out, and write the elements below the Body", part)
		}
		p = append(p, step{name: n, anySpace: anySpace})
	}
	return p, errors.Join(errs...)
}

func (s step) matches(n name) bool {
	return n.local == s.name.local && (s.anySpace || n.space == s.name.space)
}

// find returns the text of every element that p leads to, starting with the
// children of from.
func (p path) find(from *element) []string {
	if len(p) == 0 || from == nil {
		return nil
	}
	var found []string
	for _, e := range from.elements() {
		if !p[0].matches(e.name) {
			continue
		}
		if len(p) > 1 {
			found = append(found, p[1:].find(e)...)
		} else if e.closed {
			found = append(found, e.content())
		}
	}
	return found
}

package rest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// route is where events of some types go.
type route struct {
	pattern string
	method  string
	url     *urlTemplate
}

// router finds the route of an event type.
type router struct {
	routes   []route // the most specific first
	fallback route
}

func parseRoutes(c Config) (router, error) {
	var (
		r    router
		errs []error
	)
	parse := func(field, pattern, method, rawURL string) route {
		if !slices.Contains([]string{"POST", "PUT", "PATCH", "DELETE"}, method) {
			errs = append(errs, fmt.Errorf("%smethod: %q cannot carry a message; use POST, PUT, PATCH or DELETE", field, method))
		}
		u, err := parseURL(rawURL)
		if err != nil {
			errs = append(errs, fmt.Errorf("%surl: %w", field, err))
		}
		return route{pattern: pattern, method: method, url: u}
	}
	if c.URL == "" {
		errs = append(errs, errors.New("url: is required"))
	} else {
		r.fallback = parse("", "*", c.Method, c.URL)
	}
	for _, pattern := range slices.Sorted(maps.Keys(c.Routes)) {
		to := c.Routes[pattern]
		field := fmt.Sprintf("routes[%q].", pattern)
		switch {
		case pattern == "":
			errs = append(errs, errors.New(`routes[""]: name an event type, or a pattern such as "scheduling:*"`))
		case to == Route{}:
			errs = append(errs, fmt.Errorf("%smethod, %[1]surl: set one of them", field))
		case to.URL == "" && c.URL == "": // said once above
		default:
			r.routes = append(r.routes, parse(field, pattern, cmp.Or(to.Method, c.Method), cmp.Or(to.URL, c.URL)))
		}
	}
	// Stable, so that patterns of one rank stay in the order of their text.
	slices.SortStableFunc(r.routes, func(a, b route) int { return cmp.Compare(specific(b.pattern), specific(a.pattern)) })
	return r, errors.Join(errs...)
}

func (r router) find(eventType string) route {
	for _, to := range r.routes {
		if matches(to.pattern, eventType) {
			return to
		}
	}
	return r.fallback
}

// specific ranks a pattern: its characters that are no *, above all others if
// it has no * at all.
func specific(pattern string) int {
	stars := strings.Count(pattern, "*")
	if stars == 0 {
		return 1 << 30
	}
	return len(pattern) - stars
}

// matches tells whether s is pattern, in which * stands for any characters.
func matches(pattern, s string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, head)
	if !ok {
		return false
	}
	for {
		middle, after, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(s, rest)
		}
		_, tail, found := strings.Cut(s, middle)
		if !found {
			return false
		}
		s, rest = tail, after
	}
}

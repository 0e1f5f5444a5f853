package rest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/hms-mkt/lockstep/adapters/internal/endpoint"
	"github.com/hms-mkt/lockstep/adapters/internal/route"
)

// target is where events of some types go.
type target struct {
	method string
	url    *endpoint.URL
}

func parseRoutes(c Config) (route.Table[target], error) {
	var (
		errs     []error
		fallback target
		routes   = map[string]target{}
	)
	parse := func(field, method, rawURL string) target {
		if !slices.Contains([]string{"POST", "PUT", "PATCH", "DELETE"}, method) {
			errs = append(errs, fmt.Errorf("%smethod: %q cannot carry a message; use POST, PUT, PATCH or DELETE", field, method))
		}
		u, err := endpoint.ParseURL(rawURL)
		if err != nil {
			errs = append(errs, fmt.Errorf("%surl: %w", field, err))
		}
		return target{method: method, url: u}
	}
	if c.URL == "" {
		errs = append(errs, errors.New("url: is required"))
	} else {
		fallback = parse("", c.Method, c.URL)
	}
	for _, pattern := range slices.Sorted(maps.Keys(c.Routes)) {
		to := c.Routes[pattern]
		field := fmt.Sprintf("routes[%q].", pattern)
		switch {
		case pattern == "":
			errs = append(errs, errors.New(`routes[""]: name an event type, or a pattern such as "scheduling:*"`))
		case to == Route{}:
			errs = append(errs, fmt.Errorf("%smethod, %[1]surl: set method, url or both", field))
		case to.URL == "" && c.URL == "": // reported above
		default:
			routes[pattern] = parse(field, cmp.Or(to.Method, c.Method), cmp.Or(to.URL, c.URL))
		}
	}
	return route.New(routes, fallback), errors.Join(errs...)
}

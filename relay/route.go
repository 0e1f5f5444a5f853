package relay

import (
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// route is the way that a message takes through the adapter, with its mapping.
type route struct {
	name   string
	mapper mapper
}

// routeSign separates the version of a mapping from the name of the route in
// mapping_version. A version has only hexadecimal digits.
const routeSign = "/"

// version is the mapping_version of bodies that were rendered for the route.
func (r route) version() string {
	if r.name == "" {
		return r.mapper.Version()
	}
	return r.mapper.Version() + routeSign + r.name
}

// routeIn is the name of the route in a mapping_version.
func routeIn(version string) string {
	_, name, _ := strings.Cut(version, routeSign)
	return name
}

// routeOf returns the route that a delivery takes now. It depends on what is known of the
// key, so that it may be another one than at the attempt before.
func (p *pipeline) routeOf(d *outbox.Delivery) (to route) {
	if p.router == nil {
		return route{mapper: p.mapper}
	}
	defer func() {
		if v := recover(); v != nil {
			p.log.Error("adapter panicked", "event", d.Event.ID, "key", d.Key, "panic", redact(fmt.Sprint(v), d.Event.Payload), "stack", string(debug.Stack()))
			to = route{mapper: p.mapper}
		}
	}()
	to.name = p.router.Route(p.message(d))
	if to.mapper = p.mappers[to.name]; to.mapper == nil {
		to.mapper = p.mapper
	}
	return to
}

// isRendered reports whether an earlier attempt has rendered the body for the route that
// the delivery takes now. Then it is sent again, byte for byte. A body that may have the
// receiver's reference is rendered again by the same mapping: it differs only if the
// reference was set or forgotten since.
func (p *pipeline) isRendered(d *outbox.Delivery) bool {
	if d.Body == nil {
		return false
	}
	to := p.routeOf(d)
	return routeIn(d.MappingVersion) == to.name && (!to.mapper.UsesRef() || d.MappingVersion != to.version())
}

// Mapper compiles the mapping of the route that a message takes now. version is the
// mapping_version of its bodies.
func (s Sync) Mapper(msg adapters.Message) (m *mapping.Mapper, version string, err error) {
	name, of := "", s.Mapping
	if r, ok := s.Adapter.(adapters.Router); ok {
		name = r.Route(msg)
		if own, ok := s.Routes[name]; ok {
			of = own
		}
	}
	if m, err = of.Compile(); err != nil {
		return nil, "", err
	}
	return m, route{name, m}.version(), nil
}

// SameRoute reports whether bodies with these mapping versions were rendered for the same
// route. A body is sent again only on its route.
func SameRoute(version, other string) bool { return routeIn(version) == routeIn(other) }

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
	shape  string // see [adapters.Shaper]
	mapper mapper
}

// These signs separate the version of a mapping, which has only hexadecimal digits, from the
// shape of the body and the name of the route in mapping_version.
const (
	shapeSign = "."
	routeSign = "/"
)

// version is the mapping_version of bodies that were rendered for the route, such as
// 675557b3bde1.5f0c2d1a/scheduling:cancelled.
func (r route) version() string { return r.mapper.Version() + r.request() }

// request is the part of version that says how the adapter makes a request of the body. A
// body is sent again only in the same kind of request.
func (r route) request() string {
	request := ""
	if r.shape != "" {
		request = shapeSign + r.shape
	}
	if r.name != "" {
		request += routeSign + r.name
	}
	return request
}

// requestIn is the part of a mapping_version that route.request makes.
func requestIn(version string) string {
	if at := strings.IndexAny(version, shapeSign+routeSign); at >= 0 {
		return version[at:]
	}
	return ""
}

// shapeOf is the shape of a message's body, empty if the adapter has no shapes.
func shapeOf(a adapters.Adapter, msg adapters.Message) string {
	if a, ok := a.(adapters.Shaper); ok {
		return a.Shape(msg)
	}
	return ""
}

// routeOf returns the route that a delivery takes now. It depends on what is known of the
// key, so that it may be another one than at the attempt before.
func (p *pipeline) routeOf(d *outbox.Delivery) (to route) {
	to.mapper = p.mapper
	defer func() {
		if v := recover(); v != nil {
			p.log.Error("adapter panicked", "event", d.Event.ID, "key", d.Key, "panic", redact(fmt.Sprint(v), d.Event.Payload), "stack", string(debug.Stack()))
			to = route{mapper: p.mapper}
		}
	}()
	msg := p.message(d)
	if p.router != nil {
		to.name = p.router.Route(msg)
		if own := p.mappers[to.name]; own != nil {
			to.mapper = own
		}
	}
	to.shape = shapeOf(p.sync.Adapter, msg)
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
	return requestIn(d.MappingVersion) == to.request() && (!to.mapper.UsesRef() || d.MappingVersion != to.version())
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
	return m, route{name, shapeOf(s.Adapter, msg), m}.version(), nil
}

// SameRequest reports whether bodies with these mapping versions are sent in the same kind of
// request: on the same route, and in the same shape. Only then a body is sent again.
func SameRequest(version, other string) bool { return requestIn(version) == requestIn(other) }

package adapters

// FieldUser is implemented by adapters whose configuration uses single mapped fields,
// such as {fields.courtroom} in a URL.
type FieldUser interface {
	// Fields returns the names of these fields, in any order. A dotted name reaches
	// into objects. lockstep config check refuses a mapping that does not make one of
	// them.
	Fields() []string
}

// Learner is implemented by adapters that keep values of answers in [Ref.Learned].
type Learner interface {
	// Learned returns the names of these values, in any order. lockstep config check and
	// map refuse others.
	Learned() []string
}

// Router is implemented by adapters whose messages take different routes, by their type
// or by what is known of their key. Each route may have a mapping of its own, which the
// relay applies.
type Router interface {
	// Route returns the name of the route that a message takes: that of one of Routes.
	// It looks at Type and Ref only, and not at Body. It is safe for concurrent use and
	// sends nothing.
	Route(msg Message) string

	// Routes returns all routes, in any order.
	Routes() []Route
}

// Route is one of the routes of a [Router].
type Route struct {
	Name   string   // unique in the adapter; empty for the route of all other messages
	Keys   []string // where it stands below the adapter's configuration, such as routes, scheduling:cancelled; empty for the adapter itself
	Fields []string // as [FieldUser.Fields]; a Router needs no FieldUser
	Flat   bool     // its body takes no objects and lists
	Parent string   // name of the route whose mapping it has, unless it has one of its own
}

// Shaper is implemented by adapters whose settings say how a body is made of the fields,
// such as a template. A retry after a change of these settings sends other bytes, so it gets
// another idempotency key.
type Shaper interface {
	// Shape names the settings that make the body of a message, in letters and digits:
	// other settings have another name. It is empty for the usual body of the adapter. It
	// looks at Type and Ref only. It is safe for concurrent use and sends nothing.
	Shape(msg Message) string
}

// Mapped is the type of a key that has the mapping of a route, in the configuration of an
// adapter. The relay applies the mapping, so an adapter learns only that the key exists. In
// Go, set relay.Sync.Routes instead.
type Mapped bool

// Computed is as [Mapped] for the computed fields of a route.
type Computed bool

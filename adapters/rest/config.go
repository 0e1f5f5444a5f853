package rest

import (
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// DefaultMethod of [Config].
const DefaultMethod = "POST"

// Config describes one receiver. URLs and header values are templates: see
// [Config.URL].
type Config struct {
	// URL is where messages go. It may hold {ref.external_id}, {key}, {id},
	// {version} and {fields.NAME} (a dotted NAME reaches into objects) in its
	// path and query, and {fields.NAME} in its host if Allow lists the hosts that
	// may come of it. Values are escaped, so that they cannot add a path segment
	// or a query. Credentials belong in Auth. Required.
	URL string `yaml:"url"`

	// Method is POST, PUT, PATCH or DELETE. Default: POST.
	Method string `yaml:"method"`

	// Headers are sent with every request. Values may hold the placeholders of
	// URL and {type}, {occurred_at} (RFC 3339, UTC). They are never printed,
	// because some are credentials.
	Headers map[string]adapters.Secret `yaml:"headers"`

	// Auth says how requests are authorized. Default: not at all.
	Auth adapters.Credentials `yaml:"auth"`

	// TLS says whom to trust and which client certificate to show.
	TLS adapters.TLS `yaml:"tls"`

	// Timeout bounds a request, from the name lookup to the end of the answer;
	// from 10ms to 10m. Default: 15s.
	Timeout time.Duration `yaml:"timeout"`

	// Allow lists the hosts that a URL with a placeholder in its host may name.
	Allow adapters.Allow `yaml:"allow"`

	// Routes give event types a method and URL of their own. The key is a type,
	// or a pattern in which * is any number of characters; the pattern with the
	// most other characters wins, an exact type always.
	Routes map[string]Route `yaml:"routes"`

	// ExternalID is a JSON Pointer (RFC 6901) to the receiver's own id in its
	// answers, such as /id. Default: no id is read.
	ExternalID string `yaml:"external_id"`

	// IfMatch sends the ETag that the receiver answered last for the key as
	// If-Match (RFC 9110, 13.1.1). Default: false.
	IfMatch bool `yaml:"if_match"`

	// Outcomes gives statuses another class than the default table does, such
	// as 409: duplicate.
	Outcomes map[int]string `yaml:"outcomes"`
}

// Route is where events of one type go.
type Route struct {
	Method string `yaml:"method"` // default: Config.Method
	URL    string `yaml:"url"`    // default: Config.URL
}

// withDefaults returns c with its defaults filled in.
func (c Config) withDefaults() Config {
	if c.Method == "" {
		c.Method = DefaultMethod
	}
	return c
}

package rest

import (
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// DefaultMethod is the default of [Config.Method].
const DefaultMethod = "POST"

// Config describes one receiver. URLs and header values may have placeholders: see
// [Config.URL].
type Config struct {
	// URL is where messages go. Its path and query may have {ref.external_id}, {key},
	// {id}, {version} and {fields.NAME}; a dotted NAME reaches into objects. Its host
	// may have {fields.NAME} if Allow lists the possible hosts. Values are escaped, so
	// that they cannot add a path segment or a query. Put credentials into Auth.
	// Required.
	URL string `yaml:"url"`

	// Method is POST, PUT, PATCH or DELETE. Default: POST.
	Method string `yaml:"method"`

	// Headers are sent with every request. Values may have the placeholders of URL,
	// {type} and {occurred_at} (RFC 3339, UTC). They are never printed, because some
	// are credentials.
	Headers map[string]adapters.Secret `yaml:"headers"`

	// Auth says how requests are authorized. Default: no authorization.
	Auth adapters.Credentials `yaml:"auth"`

	// TLS says which certificates to trust and which client certificate to show.
	TLS adapters.TLS `yaml:"tls"`

	// Proxy is the URL of the proxy for all requests, such as
	// http://user:password@proxy.example:3128, or none. Its scheme is http, https or
	// socks5. Default: the proxy of the environment.
	Proxy adapters.Secret `yaml:"proxy"`

	// Timeout bounds a request, from the name lookup to the end of the answer. It is
	// from 10ms to 10m. Default: 15s.
	Timeout time.Duration `yaml:"timeout"`

	// Allow lists the hosts that data may name, for a URL with a placeholder in its
	// host.
	Allow adapters.Allow `yaml:"allow"`

	// Routes give event types their own method and URL. The key is a type, or a pattern
	// in which * is any number of characters. An exact type wins, then the pattern with
	// the most other characters.
	Routes map[string]Route `yaml:"routes" keys:"event"`

	// ExternalID is a JSON Pointer (RFC 6901) to the receiver's own id in its
	// answers, such as /id. Default: no id is read.
	ExternalID string `yaml:"external_id"`

	// IfMatch sends the ETag that the receiver answered last for the key as
	// If-Match (RFC 9110, 13.1.1). Default: false.
	IfMatch bool `yaml:"if_match"`

	// Outcomes gives statuses another class than the default table has, such as 409:
	// duplicate. Default: the table in docs/adapters.md.
	Outcomes map[int]string `yaml:"outcomes"`

	// Answers give answers a class by what is in their JSON bodies. Default: only the
	// status counts.
	Answers []adapters.Answer `yaml:"answers"`

	// Require is external_id if every success must have the receiver's id, or nothing if
	// none must. Otherwise the result is unknown. Default: with ExternalID, a success
	// must have the id until it is known, but not a 202 or a duplicate. A DELETE never
	// must.
	Require string `yaml:"require"`

	// Reason is a JSON Pointer to the reason in answers. Its text is shown, so it must
	// name nobody. Default: the reason in the known forms.
	Reason string `yaml:"reason"`
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

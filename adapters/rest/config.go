package rest

import (
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// Defaults of [Config].
const (
	DefaultMethod  = "POST"
	DefaultTimeout = 15 * time.Second
)

// Limits of [Config].
const (
	MinTimeout = 10 * time.Millisecond
	MaxTimeout = 10 * time.Minute
)

// Config describes one receiver. URLs and header values are templates: see
// [Config.URL].
type Config struct {
	// URL is where messages go. It may hold {ref.external_id}, {key}, {id},
	// {version} and {fields.NAME} (a dotted NAME reaches into objects) in its
	// path and query, never in scheme or host. Values are escaped, so that they
	// cannot add a path segment, a query or a host. Credentials belong in Auth.
	// Required.
	URL string `yaml:"url"`

	// Method is POST, PUT, PATCH or DELETE. Default: POST.
	Method string `yaml:"method"`

	// Headers are sent with every request. Values may hold the placeholders of
	// URL and {type}, {occurred_at} (RFC 3339, UTC). They are never printed,
	// because some are credentials.
	Headers map[string]adapters.Secret `yaml:"headers"`

	// Auth says how requests are authorized. Default: not at all.
	Auth Auth `yaml:"auth"`

	// TLS says whom to trust and which client certificate to show.
	TLS adapters.TLS `yaml:"tls"`

	// Timeout bounds a request, from the name lookup to the end of the answer;
	// from 10ms to 10m. Default: 15s.
	Timeout time.Duration `yaml:"timeout"`

	// Routes give event types a method and URL of their own. The key is a type,
	// or a pattern in which * stands for any characters; the pattern with the
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

// AuthKind is a way to authorize requests.
type AuthKind string

// The ways to authorize requests.
const (
	AuthNone              AuthKind = "none"
	AuthBearer            AuthKind = "bearer"
	AuthBasic             AuthKind = "basic"
	AuthAPIKey            AuthKind = "api_key"
	AuthClientCredentials AuthKind = "oauth2_client_credentials"
)

// Auth holds the credentials of one kind; fields of other kinds must be empty.
type Auth struct {
	// Kind is none, bearer, basic, api_key or oauth2_client_credentials.
	// Default: none.
	Kind AuthKind `yaml:"kind"`

	Token adapters.Secret `yaml:"token"` // bearer

	Username string          `yaml:"username"` // basic
	Password adapters.Secret `yaml:"password"` // basic

	Header string          `yaml:"header"` // api_key: name of the header; default: X-Api-Key
	Key    adapters.Secret `yaml:"key"`    // api_key

	// The OAuth 2 client credentials grant (RFC 6749, 4.4). A token is kept
	// until it expires or the receiver refuses it. Audience is sent if set.
	TokenURL     string          `yaml:"token_url"`
	ClientID     string          `yaml:"client_id"`
	ClientSecret adapters.Secret `yaml:"client_secret"`
	Scopes       []string        `yaml:"scopes"`
	Audience     string          `yaml:"audience"`
}

// withDefaults returns c with its gaps filled.
func (c Config) withDefaults() Config {
	if c.Method == "" {
		c.Method = DefaultMethod
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Auth.Kind == "" {
		c.Auth.Kind = AuthNone
	}
	if c.Auth.Kind == AuthAPIKey && c.Auth.Header == "" {
		c.Auth.Header = "X-Api-Key"
	}
	return c
}

package soap

import (
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// The versions of SOAP.
const (
	Version11 = "1.1"
	Version12 = "1.2"
)

// Config describes one service. Body and Header are XML with placeholders in
// their text and attribute values: {key}, {id}, {type}, {version},
// {occurred_at} (RFC 3339, UTC), {ref.external_id} and {fields.NAME}, where a
// dotted NAME reaches into objects. A value is always escaped and never becomes
// markup.
//
// {NAME?} leaves out the element or attribute that directly holds it where the
// value is missing. lockstep:each="fields.LIST" repeats its element for each
// item, which is {item} or {item.NAME} inside; lockstep:if="NAME" keeps its
// element only where the value is there.
type Config struct {
	// URL is where messages go. It may hold {ref.external_id}, {key}, {id},
	// {version} and {fields.NAME} in its path and query, and {fields.NAME} in its
	// host if Allow lists the hosts that may come of it. Required.
	URL string `yaml:"url"`

	// Version is 1.1 or 1.2. Answers are read in either. Default: 1.1.
	Version string `yaml:"version"`

	// Namespaces are the prefixes that Body, Header and paths use. The prefixes
	// soap, wsse, wsu, wsa and lockstep are known already.
	Namespaces map[string]string `yaml:"namespaces"`

	// Action is the SOAPAction of 1.1, the action parameter of 1.2 and the
	// wsa:Action. Default: empty.
	Action string `yaml:"action"`

	// Body is the one element inside the SOAP body, the operation. Required here
	// or in every route.
	Body string `yaml:"body"`

	// Header holds header blocks, any number of elements. Default: none.
	Header string `yaml:"header"`

	// Addressing adds the header blocks of WS-Addressing 1.0. Default: none.
	Addressing *Addressing `yaml:"addressing"`

	// Security adds a WS-Security header block. Default: none.
	Security Security `yaml:"security"`

	// Routes give event types an action, body and URL of their own. The key is a
	// type, or a pattern in which * is any number of characters; the pattern with
	// the most other characters wins, an exact type always.
	Routes map[string]Route `yaml:"routes"`

	// ExternalID is the path to the receiver's own id in its answers, starting
	// inside the SOAP body: cal:Response/cal:entryId. Default: no id is read.
	ExternalID string `yaml:"external_id"`

	// Answers say what answers mean where the default table has it wrong. The
	// first that fits decides.
	Answers []Answer `yaml:"answers"`

	// Outcomes gives HTTP statuses of answers without a SOAP message another
	// class than the default table does, such as 204: delivered.
	Outcomes map[int]string `yaml:"outcomes"`

	// Headers are sent with every HTTP request. Values may hold the placeholders
	// of Body except {item}. They are never printed.
	Headers map[string]adapters.Secret `yaml:"headers"`

	// Auth authorizes the HTTP request. Default: not at all.
	Auth adapters.Credentials `yaml:"auth"`

	// TLS says whom to trust and which client certificate to show.
	TLS adapters.TLS `yaml:"tls"`

	// Timeout bounds a request, from the name lookup to the end of the answer;
	// from 10ms to 10m. Default: 15s.
	Timeout time.Duration `yaml:"timeout"`

	// Allow lists the hosts that a URL with a placeholder in its host may name.
	Allow adapters.Allow `yaml:"allow"`
}

// Route is what events of one type are sent as.
type Route struct {
	Action string `yaml:"action"` // default: Config.Action
	Body   string `yaml:"body"`   // default: Config.Body
	URL    string `yaml:"url"`    // default: Config.URL
}

// Addressing describes the header blocks of WS-Addressing 1.0. Its presence adds
// wsa:MessageID, which is the same on every attempt, wsa:Action and wsa:To.
type Addressing struct {
	To string `yaml:"to"` // default: the URL without its query
}

// The kinds of [Security].
const (
	NoSecurity    = "none"
	UsernameToken = "username_token"
)

// The ways in which [Security] sends a password.
const (
	Digest = "digest"
	Text   = "text"
)

// Security describes a WS-Security 1.0 header block with a UsernameToken. Its
// nonce and time of creation are new for every attempt.
type Security struct {
	// Kind is none or username_token. Default: none.
	Kind string `yaml:"kind"`

	Username string          `yaml:"username"`
	Password adapters.Secret `yaml:"password"`

	// PasswordType is digest or text. With text, everybody who reads the
	// envelope sees the password. Default: digest.
	PasswordType string `yaml:"password_type"`

	// Timestamp is how long the envelope is valid: it adds a wsu:Timestamp, which
	// is not signed; from 1s to 24h. Default: no timestamp.
	Timestamp time.Duration `yaml:"timestamp"`
}

// Bounds of [Security.Timestamp].
const (
	MinTimestamp = time.Second
	MaxTimestamp = 24 * time.Hour
)

// Answer says what some answers mean. All its conditions must hold; at least one
// is required.
type Answer struct {
	// Code is the code of a fault, such as Client or cal:Busy. Without a prefix the
	// namespace does not matter. Client and Sender mean the same, and so do Server and
	// Receiver. A code includes those that a dot makes more special, such as
	// Client.Authentication.
	Code string `yaml:"code"`

	// Subcode is one of the subcodes of a SOAP 1.2 fault, written as Code.
	Subcode string `yaml:"subcode"`

	// Path leads to an element that must be there. In a fault it starts inside
	// soap:Fault, where detail also finds SOAP 1.2's Detail; otherwise inside
	// soap:Body.
	Path string `yaml:"path"`

	// Value is the text that the element at Path must hold, without space at its
	// ends. Default: any.
	Value string `yaml:"value"`

	// Class is what such an answer means. Required.
	Class string `yaml:"class"`
}

// withDefaults returns c with its defaults filled in.
func (c Config) withDefaults() Config {
	if c.Version == "" {
		c.Version = Version11
	}
	if c.Security.Kind == "" {
		c.Security.Kind = NoSecurity
	}
	if c.Security.Kind == UsernameToken && c.Security.PasswordType == "" {
		c.Security.PasswordType = Digest
	}
	return c
}

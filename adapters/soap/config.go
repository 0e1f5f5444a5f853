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

// Config describes one service. Body and Header are XML. Their text and attribute
// values may have placeholders: {key}, {id}, {type}, {version}, {occurred_at} (RFC
// 3339, UTC), {ref.external_id} and {fields.NAME}; a dotted NAME reaches into objects.
// A value is always escaped and never becomes markup.
//
// If the value of {NAME?} is missing, the element or attribute directly around it is
// left out. lockstep:each="fields.LIST" repeats its element for each item of the list;
// inside it, {item} or {item.NAME} is the item. lockstep:if="NAME" keeps its element
// only if the value exists.
type Config struct {
	// URL is where messages go. Its path and query may have {ref.external_id}, {key},
	// {id}, {version} and {fields.NAME}. Its host may have {fields.NAME} if Allow lists
	// the possible hosts. Required.
	URL string `yaml:"url" required:"adapter" pattern:"^[Hh][Tt][Tt][Pp][Ss]?://." doc:"Where messages go. It may have placeholders such as {key} and {ref.external_id}."`

	// Version is 1.1 or 1.2. Answers are read in either. Default: 1.1.
	Version string `yaml:"version" oneof:"1.1|1.2" doc:"Version of SOAP. Default: 1.1."`

	// Namespaces are the prefixes that Body, Header and paths use. The prefixes
	// soap, wsse, wsu, wsa and lockstep are known already.
	Namespaces map[string]string `yaml:"namespaces" doc:"Namespaces by prefix, for the templates and paths."`

	// Action is the SOAPAction of 1.1, the action parameter of 1.2 and the
	// wsa:Action. Default: empty.
	Action string `yaml:"action" doc:"SOAPAction of the request."`

	// Body is the one element inside the SOAP body: the operation. Required, here or in
	// every route.
	Body string `yaml:"body" doc:"XML of the body with placeholders."`

	// Header holds header blocks, any number of elements. Default: none.
	Header string `yaml:"header" doc:"XML of further header blocks."`

	// Addressing adds the header blocks of WS-Addressing 1.0. Default: none.
	Addressing *Addressing `yaml:"addressing" doc:"Adds the header blocks of WS-Addressing 1.0. Default: none."`

	// Security adds a WS-Security header block. Default: none.
	Security Security `yaml:"security" doc:"WS-Security of the request."`

	// Routes give event types their own action, body and URL. The key is a type, or a
	// pattern in which * is any number of characters. An exact type wins, then the
	// pattern with the most other characters.
	Routes map[string]Route `yaml:"routes" keys:"event" doc:"What is different for an event type."`

	// ExternalID is the path to the receiver's own id in its answers, such as
	// cal:Response/cal:entryId. It starts inside the SOAP body. Default: no id is read.
	ExternalID string `yaml:"external_id" doc:"Where the receiver's own id is in its answer."`

	// Require is external_id if every success must have the receiver's id; otherwise the
	// result is unknown. With nothing, a success without an id is not even a warning.
	// Default: it is a warning until the id is known.
	Require string `yaml:"require" doc:"external_id: every success must have the receiver's id. nothing: no success must have it."`

	// Answers give answers another class than the default table has. The first one that
	// matches decides. An entry without conditions matches every result that is no fault,
	// and must be the last one. Default: the table in docs/adapters/soap.md.
	Answers []Answer `yaml:"answers" doc:"Answers that mean something else than their status. The first that matches counts."`

	// Outcomes gives HTTP statuses another class than the default table has, such as
	// 204: delivered. It applies to answers without a SOAP message.
	Outcomes map[int]string `yaml:"outcomes" keys:"status" oneof:"delivered|duplicate|accepted|transient|throttled|auth|forbidden|permanent|conflict|unknown" doc:"Class by status, instead of that of the default table."`

	// Headers are sent with every HTTP request. Values may have the placeholders of
	// Body except {item}. They are never printed, because some are credentials.
	Headers map[string]adapters.Secret `yaml:"headers" keys:"header" doc:"Headers of every request. They are never printed."`

	// Auth says how HTTP requests are authorized. Default: no authorization.
	Auth adapters.Credentials `yaml:"auth" doc:"How requests are authorized. Default: none."`

	// TLS says which certificates to trust and which client certificate to show.
	TLS adapters.TLS `yaml:"tls" doc:"Certificates to trust, and the client certificate."`

	// Proxy is the URL of the proxy for all requests, such as
	// http://user:password@proxy.example:3128, or none. Its scheme is http, https or
	// socks5. Default: the proxy of the environment.
	Proxy adapters.Secret `yaml:"proxy" doc:"URL of the proxy, or none. Default: the proxy of the environment."`

	// Timeout bounds a request, from the name lookup to the end of the answer. It is
	// from 10ms to 10m. Default: 15s.
	Timeout time.Duration `yaml:"timeout" doc:"Longest time of a request, to the end of the answer: 10ms to 10m. Default: 15s."`

	// Allow lists the hosts that data may name, for a URL with a placeholder in its
	// host.
	Allow adapters.Allow `yaml:"allow" doc:"Hosts and networks that a host from data may be in."`
}

// Route says how events of one type are sent.
type Route struct {
	Action string `yaml:"action" doc:"SOAPAction of the request."`                                                                                         // default: Config.Action
	Body   string `yaml:"body" doc:"XML of the body with placeholders."`                                                                                   // default: Config.Body
	URL    string `yaml:"url" pattern:"^[Hh][Tt][Tt][Pp][Ss]?://." doc:"Where messages go. It may have placeholders such as {key} and {ref.external_id}."` // default: Config.URL
}

// Addressing describes the header blocks of WS-Addressing 1.0. If it is set, the
// envelope has wsa:MessageID, wsa:Action and wsa:To. The MessageID is the same on every
// attempt.
type Addressing struct {
	To string `yaml:"to" doc:"Address of the receiver in wsa:To. Default: the URL without its query."` // default: the URL without its query
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
	Kind string `yaml:"kind" oneof:"none|username_token" doc:"Kind of the security header. Default: none."`

	Username string          `yaml:"username" doc:"Name in the UsernameToken."`
	Password adapters.Secret `yaml:"password" doc:"Password of the UsernameToken."`

	// PasswordType is digest or text. With text, the envelope shows the password.
	// Default: digest.
	PasswordType string `yaml:"password_type" oneof:"digest|text" doc:"How the password is sent. Default: digest."`

	// Timestamp is how long the envelope is valid, from 1s to 24h. It adds a
	// wsu:Timestamp, which is not signed. Default: no timestamp.
	Timestamp time.Duration `yaml:"timestamp" doc:"How long the envelope is valid: 1s to 24h. Default: no timestamp."`
}

// Bounds of [Security.Timestamp].
const (
	MinTimestamp = time.Second
	MaxTimestamp = 24 * time.Hour
)

// Answer gives matching answers a class. An answer must meet all its conditions.
type Answer struct {
	// Code is the code of a fault, such as Client or cal:Busy. Without a prefix the
	// namespace does not matter. Client and Sender mean the same, and so do Server and
	// Receiver. A code also matches codes that extend it with a dot, such as
	// Client.Authentication.
	Code string `yaml:"code" doc:"Code of the fault."`

	// Subcode is one of the subcodes of a SOAP 1.2 fault, written as Code.
	Subcode string `yaml:"subcode" doc:"Subcode of the fault, in SOAP 1.2."`

	// Path leads to an element that must exist. It starts inside soap:Body, or in a
	// fault inside soap:Fault, where detail also finds SOAP 1.2's Detail.
	Path string `yaml:"path" doc:"Element that must exist in the body or the fault."`

	// Value is the text that the element at Path must hold, without space at its
	// ends. Default: any.
	Value string `yaml:"value" doc:"Text of the element at path. Default: any."`

	// Class is the class of such an answer, such as duplicate. Required.
	Class string `yaml:"class" required:"adapter" oneof:"delivered|duplicate|accepted|transient|throttled|auth|forbidden|permanent|conflict|unknown" doc:"What the answer means."`
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

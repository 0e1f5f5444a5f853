package adapters

// CredentialsKind is a way to authorize HTTP requests.
type CredentialsKind string

// The ways to authorize HTTP requests.
const (
	NoCredentials     CredentialsKind = "none"
	Bearer            CredentialsKind = "bearer"                    // RFC 6750
	Basic             CredentialsKind = "basic"                     // RFC 7617
	APIKey            CredentialsKind = "api_key"                   // in a header
	ClientCredentials CredentialsKind = "oauth2_client_credentials" // RFC 6749, 4.4
)

// Credentials authorize HTTP requests in the way that Kind names. Fields of other kinds
// must be empty.
type Credentials struct {
	// Kind is none, bearer, basic, api_key or oauth2_client_credentials.
	// Default: none.
	Kind CredentialsKind `yaml:"kind"`

	Token Secret `yaml:"token"` // bearer

	Username string `yaml:"username"` // basic
	Password Secret `yaml:"password"` // basic

	Header string `yaml:"header"` // api_key: name of the header; default: X-Api-Key
	Key    Secret `yaml:"key"`    // api_key

	// The OAuth 2 client credentials grant. A token is kept until it expires or
	// the receiver refuses it. Audience is sent if set.
	TokenURL     string   `yaml:"token_url"`
	ClientID     string   `yaml:"client_id"`
	ClientSecret Secret   `yaml:"client_secret"`
	Scopes       []string `yaml:"scopes"`
	Audience     string   `yaml:"audience"`
}

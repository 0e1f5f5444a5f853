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
	PasswordGrant     CredentialsKind = "oauth2_password"           // RFC 6749, 4.3
	PrivateKeyJWT     CredentialsKind = "private_key_jwt"           // RFC 7523, 2.2: SMART Backend Services, NHS
	JWTBearer         CredentialsKind = "jwt_bearer"                // RFC 7523, 2.1: Google service accounts
	ServiceLease      CredentialsKind = "s2s_lease"                 // HMCTS service-auth-provider: a token for a one-time password
	HMAC              CredentialsKind = "hmac"                      // a signature of each request in a header
)

// Credentials authorize HTTP requests in the way that Kind names. Fields of other kinds
// must be empty. The tag needed has the kinds that need a field, and the tag of has those
// that may have it. A field with the tag lines may have line breaks.
type Credentials struct {
	// Kind is none, bearer, basic, api_key, oauth2_client_credentials,
	// oauth2_password, private_key_jwt, jwt_bearer, s2s_lease or hmac. Default: none.
	Kind CredentialsKind `yaml:"kind" oneof:"none|bearer|basic|api_key|oauth2_client_credentials|oauth2_password|private_key_jwt|jwt_bearer|s2s_lease|hmac" doc:"How requests are authorized."`

	// Header is the header that has the credentials. Default: X-Api-Key for api_key,
	// ServiceAuthorization for s2s_lease, Authorization for the others.
	Header string `yaml:"header" of:"bearer|basic|api_key|oauth2_client_credentials|oauth2_password|private_key_jwt|jwt_bearer|s2s_lease|hmac" doc:"Header that has the credentials. Default: X-Api-Key for api_key, ServiceAuthorization for s2s_lease, Authorization for the others."`

	Token Secret `yaml:"token" needed:"bearer" doc:"Token of bearer."` // bearer

	// The user of basic and oauth2_password. For jwt_bearer, Username is the claim sub:
	// the user for whom the client acts. Default: no claim sub.
	Username string `yaml:"username" needed:"basic|oauth2_password" of:"jwt_bearer" doc:"User name."`
	Password Secret `yaml:"password" needed:"oauth2_password" of:"basic" doc:"Password."`

	Key Secret `yaml:"key" needed:"api_key" doc:"Key of api_key."` // api_key

	// The kinds that get tokens: oauth2_client_credentials, oauth2_password,
	// private_key_jwt, jwt_bearer and s2s_lease. A token is kept until it expires or the receiver
	// refuses it. For s2s_lease, ClientID is the microservice and ClientSecret is the
	// secret of its one-time passwords (RFC 6238) in base32.
	TokenURL     string   `yaml:"token_url" needed:"oauth2_client_credentials|oauth2_password|private_key_jwt|jwt_bearer|s2s_lease" pattern:"^[Hh][Tt][Tt][Pp][Ss]?://." doc:"Endpoint that gives tokens."`
	ClientID     string   `yaml:"client_id" needed:"oauth2_client_credentials|private_key_jwt|jwt_bearer|s2s_lease" of:"oauth2_password" doc:"Client at the token endpoint."`
	ClientSecret Secret   `yaml:"client_secret" needed:"oauth2_client_credentials|s2s_lease" of:"oauth2_password" doc:"The client's secret."`
	Scopes       []string `yaml:"scopes" of:"oauth2_client_credentials|oauth2_password|private_key_jwt|jwt_bearer" doc:"Scopes to ask for."`

	// Audience is sent to the token endpoint if it is set. For private_key_jwt and
	// jwt_bearer it is the claim aud. Default for these: TokenURL.
	Audience string `yaml:"audience" of:"oauth2_client_credentials|oauth2_password|private_key_jwt|jwt_bearer" doc:"Audience of the token or assertion."`

	// The key of private_key_jwt and jwt_bearer, RSA or EC, in PEM: the text itself, or a file that
	// is read again for each token. KeyID is the header kid. Default: no kid.
	PrivateKey Secret `yaml:"private_key" of:"private_key_jwt|jwt_bearer" lines:"true" doc:"Private key in PEM that signs the assertion."`
	KeyFile    string `yaml:"key_file" of:"private_key_jwt|jwt_bearer" doc:"File with the private key."`
	KeyID      string `yaml:"key_id" of:"private_key_jwt|jwt_bearer" doc:"Id of the key, in the header kid of the assertion."`

	// Algorithm signs. For private_key_jwt and jwt_bearer it is RS256, RS384, RS512,
	// PS256, PS384, PS512, ES256, ES384 or ES512. Default: RS384 for private_key_jwt,
	// RS256 for jwt_bearer, and for an EC key the one of its curve. For hmac it is sha1, sha256 or sha512. Default: sha256.
	Algorithm string `yaml:"algorithm" of:"private_key_jwt|jwt_bearer|hmac" doc:"Algorithm of the signature. Default: RS384 for private_key_jwt, RS256 for jwt_bearer, the one of its curve for an EC key, sha256 for hmac."`

	// The secret of hmac, as text, base64 or hex. Default of SecretEncoding: text.
	Secret         Secret `yaml:"secret" needed:"hmac" signs:"true" doc:"Secret that signs the request."`
	SecretEncoding string `yaml:"secret_encoding" of:"hmac" doc:"Encoding of the secret: text, base64 or hex. Default: text."`

	// Sign is the text that hmac signs, with placeholders: {method}, {host}, {path},
	// {query}, {timestamp}, {date}, {nonce}, {content_type}, {sha256}, {sha256_base64}
	// and {body}. Default: {body}.
	Sign string `yaml:"sign" of:"hmac" lines:"true" doc:"Text that hmac signs, with placeholders. Default: {body}."`

	// Encoding is how {signature} is written: hex or base64. Default: hex.
	Encoding string `yaml:"encoding" of:"hmac" doc:"Encoding of the signature: hex or base64. Default: hex."`

	// Value is what hmac sends in Header, and Headers are headers that it sends in
	// addition. They have the placeholders of Sign, except {body}, and {signature}.
	// Default of Value: {signature}.
	Value   string            `yaml:"value" of:"hmac" doc:"Value of header, for hmac. Default: {signature}."`
	Headers map[string]Secret `yaml:"headers" of:"hmac" doc:"Headers in addition to header, for hmac."`

	// Second are credentials that are sent in addition, in another header. They have
	// no second ones themselves.
	Second *Credentials `yaml:"second" doc:"A second set of credentials, in another header."`
}

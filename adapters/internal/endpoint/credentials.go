package endpoint

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// authorizer sets credentials in the headers of requests. It is safe for concurrent
// use.
type authorizer interface {
	// authorize sets the credentials of one request. Call refused if the receiver
	// refuses them. An error is classified.
	authorize(ctx context.Context, r exchange.Request) (refused func(), err error)

	// show sets what authorize would set, with secrets masked.
	show(r exchange.Request)
}

// tokenKinds are the kinds that get a token from an endpoint.
var tokenKinds = []adapters.CredentialsKind{
	adapters.ClientCredentials, adapters.PasswordGrant, adapters.PrivateKeyJWT, adapters.JWTBearer, adapters.ServiceLease,
}

// credentialsKinds are all kinds, in the order of the documentation.
var credentialsKinds = slices.Concat([]adapters.CredentialsKind{
	adapters.NoCredentials, adapters.Bearer, adapters.Basic, adapters.APIKey,
}, tokenKinds, []adapters.CredentialsKind{adapters.HMAC})

// withDefaults returns c with its defaults filled in.
func withDefaults(c adapters.Credentials) adapters.Credentials {
	c.Kind = cmp.Or(c.Kind, adapters.NoCredentials)
	switch c.Kind {
	case adapters.NoCredentials:
	case adapters.APIKey:
		c.Header = cmp.Or(c.Header, "X-Api-Key")
	case adapters.ServiceLease:
		c.Header = cmp.Or(c.Header, "ServiceAuthorization")
	default:
		c.Header = cmp.Or(c.Header, "Authorization")
	}
	if c.Kind == adapters.PrivateKeyJWT || c.Kind == adapters.JWTBearer {
		c.Audience = cmp.Or(c.Audience, c.TokenURL)
	}
	if c.Kind == adapters.HMAC {
		c.Algorithm = cmp.Or(c.Algorithm, "sha256")
		c.SecretEncoding = cmp.Or(c.SecretEncoding, encodingText)
		c.Encoding = cmp.Or(c.Encoding, encodingHex)
		c.Sign = cmp.Or(c.Sign, "{body}")
		c.Value = cmp.Or(c.Value, "{signature}")
	}
	if c.Second != nil {
		c.Second = new(withDefaults(*c.Second))
	}
	return c
}

// all are a and its second credentials.
func all(a adapters.Credentials) []adapters.Credentials {
	if a.Second == nil {
		return []adapters.Credentials{a}
	}
	return []adapters.Credentials{a, *a.Second}
}

// tokenTime is how long getting the tokens for one request may take.
func tokenTime(a adapters.Credentials) time.Duration {
	if slices.ContainsFunc(all(a), func(c adapters.Credentials) bool { return slices.Contains(tokenKinds, c.Kind) }) {
		return tokenTimeout
	}
	return 0
}

// authHeaders are the canonical names of the headers that a sets.
func authHeaders(a adapters.Credentials) []string {
	names := authNames(a)
	for i, name := range names {
		names[i] = http.CanonicalHeaderKey(name)
	}
	return names
}

// authNames are the names of the headers that a sets, as they are configured.
func authNames(a adapters.Credentials) (names []string) {
	for _, c := range all(a) {
		if c.Header != "" {
			names = append(names, c.Header)
		}
		for name := range c.Headers {
			names = append(names, name)
		}
	}
	return names
}

// parseAuth checks a and returns what authorizes requests: one authorizer for each of
// the credentials. Without a client it only checks.
func parseAuth(a adapters.Credentials, protocol map[string]string, client *exchange.Client) ([]authorizer, error) {
	errs := []error{checkAuth("auth", a, protocol)}
	if a.Second != nil {
		errs = append(errs, checkSecond(a, protocol))
	}
	var authorizers []authorizer
	for i, c := range all(a) {
		if errs[i] != nil || client == nil {
			continue
		}
		one, err := newAuthorizer(paths[i], c, client)
		if errs[i] = err; one != nil {
			authorizers = append(authorizers, one)
		}
	}
	return authorizers, errors.Join(errs...)
}

// paths are the names of the first and second credentials in the configuration.
var paths = []string{"auth", "auth.second"}

// newAuthorizer returns nil for no credentials. path is the name of c in errors.
func newAuthorizer(path string, c adapters.Credentials, client *exchange.Client) (authorizer, error) {
	header := http.CanonicalHeaderKey(c.Header)
	switch c.Kind {
	case adapters.Bearer:
		return static{header, "Bearer ", c.Token.Reveal}, nil
	case adapters.Basic:
		pair := c.Username + ":" + c.Password.Reveal()
		return static{header, "Basic ", func() string { return base64.StdEncoding.EncodeToString([]byte(pair)) }}, nil
	case adapters.APIKey:
		return static{header, "", c.Key.Reveal}, nil
	case adapters.HMAC:
		return newSigner(path, c)
	case adapters.NoCredentials:
		return nil, nil
	default:
		return newTokens(path, c, client)
	}
}

// static are credentials that are the same in all requests. They are inside a function,
// where fmt cannot see them.
type static struct {
	header, scheme string
	credentials    func() string
}

func (s static) authorize(_ context.Context, r exchange.Request) (func(), error) {
	r.Header.Set(s.header, s.scheme+s.credentials())
	return func() {}, nil
}

func (s static) show(r exchange.Request) { r.Header.Set(s.header, s.scheme+masked) }

// masked is shown instead of a credential.
var masked = adapters.Secret("masked").String()

// checkSecond checks a.Second alone and together with a.
func checkSecond(a adapters.Credentials, protocol map[string]string) error {
	if a.Kind == adapters.NoCredentials {
		return errors.New("auth.second: is sent in addition to other credentials: set auth.kind")
	}
	errs := []error{checkAuth("auth.second", *a.Second, protocol)}
	if a.Second.Kind == adapters.NoCredentials {
		errs = append(errs, errors.New("auth.second.kind: is required: name the kind of the second credentials"))
	}
	if a.Second.Second != nil {
		errs = append(errs, errors.New("auth.second.second: there are at most two credentials: remove it"))
	}
	first := authHeaders(adapters.Credentials{Header: a.Header, Headers: a.Headers})
	for _, name := range authHeaders(*a.Second) {
		if slices.Contains(first, name) {
			errs = append(errs, fmt.Errorf("auth.second.header: %s has the first credentials already: name another header", name))
		}
	}
	return errors.Join(errs...)
}

// credentialsField is a field of credentials, and the kinds that have it.
type credentialsField struct {
	name, value     string
	needed, allowed []adapters.CredentialsKind
	lines           bool // it may have line breaks
}

// credentialsFields are the fields that belong to kinds, by their tags.
func credentialsFields(a adapters.Credentials) (fields []credentialsField) {
	kinds := func(tag string) (list []adapters.CredentialsKind) {
		for kind := range strings.FieldsFuncSeq(tag, func(r rune) bool { return r == '|' }) {
			list = append(list, adapters.CredentialsKind(kind))
		}
		return list
	}
	v := reflect.ValueOf(a)
	for i, f := range reflect.VisibleFields(v.Type()) {
		needed, allowed := f.Tag.Get("needed"), f.Tag.Get("of")
		if needed == "" && allowed == "" {
			continue
		}
		one := credentialsField{name: f.Tag.Get("yaml"), needed: kinds(needed), allowed: kinds(allowed), lines: f.Tag.Get("lines") != ""}
		switch value := v.Field(i).Interface().(type) {
		case string:
			one.value = value
		case adapters.Secret:
			one.value = value.Reveal()
		case []string:
			one.value = strings.Join(value, " ")
		case map[string]adapters.Secret:
			one.value = strings.Repeat("set", min(len(value), 1))
		}
		fields = append(fields, one)
	}
	return fields
}

// checkAuth reports every field that is missing, wrong, or belongs to another kind. path
// is the name of the credentials in errors. protocol are the headers that the adapter
// itself sets.
func checkAuth(path string, a adapters.Credentials, protocol map[string]string) error {
	var errs []error
	wrong := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s.%s: "+format, append([]any{path, field}, args...)...))
	}
	if !slices.Contains(credentialsKinds, a.Kind) {
		wrong("kind", "%q is not one of %s", a.Kind, joined(credentialsKinds))
		return errors.Join(errs...)
	}
	for _, f := range credentialsFields(a) {
		belongs := slices.Concat(f.needed, f.allowed)
		plain := placeholder.Plain(f.value)
		switch {
		case f.value != "" && !slices.Contains(belongs, a.Kind):
			if a.Kind == adapters.NoCredentials {
				wrong(f.name, "belongs to kind %s; set %s.kind", joined(belongs), path)
				continue
			}
			wrong(f.name, "belongs to kind %s, not to %s", joined(belongs), a.Kind)
		case f.value == "" && slices.Contains(f.needed, a.Kind):
			wrong(f.name, "is required for kind %s", a.Kind)
		case !f.lines && plain != nil:
			wrong(f.name, "%w", plain)
		}
	}
	if a.Kind == adapters.Basic && strings.Contains(a.Username, ":") {
		wrong("username", "cannot hold a colon (RFC 7617)")
	}
	for _, header := range authHeaders(adapters.Credentials{Header: a.Header, Headers: a.Headers}) {
		field := "header"
		if header != http.CanonicalHeaderKey(a.Header) {
			field = fmt.Sprintf("headers[%q]", header)
		}
		if why := cmp.Or(protocol[header], reserved[header]); why != "" {
			wrong(field, "%s %s", header, why)
		} else if !token.MatchString(header) {
			wrong(field, "is not a header name")
		}
	}
	if a.TokenURL != "" {
		u, err := url.Parse(a.TokenURL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || !validHost(u.Host) || u.User != nil || u.Fragment != "" {
			wrong("token_url", "must be an https:// or http:// URL without credentials and fragment")
		}
	}
	return errors.Join(errs...)
}

// joined lists kinds as a sentence has them.
func joined(kinds []adapters.CredentialsKind) string {
	names := make([]string, len(kinds))
	for i, kind := range kinds {
		names[i] = string(kind)
	}
	return strings.Join(names, ", ")
}

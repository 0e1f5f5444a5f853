package rest

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// authorizer sets the credentials of one request. refused is to be called when
// the receiver did not take them. An error of an authorizer has its class.
type authorizer func(ctx context.Context, h http.Header) (refused func(), err error)

func parseAuth(a Auth, client *exchange.Client) (authorizer, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	switch a.Kind {
	case AuthBearer:
		return static("Authorization", "Bearer "+a.Token.Reveal()), nil
	case AuthBasic:
		pair := a.Username + ":" + a.Password.Reveal()
		return static("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(pair))), nil
	case AuthAPIKey:
		return static(http.CanonicalHeaderKey(a.Header), a.Key.Reveal()), nil
	case AuthClientCredentials:
		return newTokens(a, client).authorize, nil
	default:
		return func(context.Context, http.Header) (func(), error) { return func() {}, nil }, nil
	}
}

// static keeps the credential inside a function, where fmt cannot see it.
func static(name, value string) authorizer {
	return func(_ context.Context, h http.Header) (func(), error) {
		h.Set(name, value)
		return func() {}, nil
	}
}

// check reports every field that is missing, wrong, or of another kind.
func (a Auth) check() error {
	type field struct {
		name, value string
		kind        AuthKind
		optional    bool
	}
	fields := []field{
		{"token", a.Token.Reveal(), AuthBearer, false},
		{"username", a.Username, AuthBasic, false},
		{"password", a.Password.Reveal(), AuthBasic, true},
		{"header", a.Header, AuthAPIKey, false},
		{"key", a.Key.Reveal(), AuthAPIKey, false},
		{"token_url", a.TokenURL, AuthClientCredentials, false},
		{"client_id", a.ClientID, AuthClientCredentials, false},
		{"client_secret", a.ClientSecret.Reveal(), AuthClientCredentials, false},
		{"scopes", strings.Join(a.Scopes, " "), AuthClientCredentials, true},
		{"audience", a.Audience, AuthClientCredentials, true},
	}
	switch a.Kind {
	case AuthNone, AuthBearer, AuthBasic, AuthAPIKey, AuthClientCredentials:
	default:
		return fmt.Errorf("auth.kind: %q is not one of none, bearer, basic, api_key, oauth2_client_credentials", a.Kind)
	}
	var errs []error
	for _, f := range fields {
		switch {
		case f.kind != a.Kind && f.value != "":
			errs = append(errs, fmt.Errorf("auth.%s: belongs to kind %s, not to %s", f.name, f.kind, a.Kind))
		case f.kind == a.Kind && f.value == "" && !f.optional:
			errs = append(errs, fmt.Errorf("auth.%s: is required for kind %s", f.name, a.Kind))
		case plain(f.value) != nil:
			errs = append(errs, fmt.Errorf("auth.%s: %w", f.name, plain(f.value)))
		}
	}
	if a.Kind == AuthBasic && strings.Contains(a.Username, ":") {
		errs = append(errs, errors.New("auth.username: cannot hold a colon (RFC 7617)"))
	}
	if a.Kind == AuthAPIKey && a.Header != "" {
		name := http.CanonicalHeaderKey(a.Header)
		if why := reserved[name]; why != "" {
			errs = append(errs, fmt.Errorf("auth.header: %s %s", name, why))
		} else if !token.MatchString(a.Header) {
			errs = append(errs, errors.New("auth.header: is not a header name"))
		}
	}
	if a.TokenURL != "" {
		u, err := url.Parse(a.TokenURL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || !validHost(u.Host) || u.User != nil || u.Fragment != "" {
			errs = append(errs, errors.New("auth.token_url: must be an https:// or http:// URL without credentials and fragment"))
		}
	}
	return errors.Join(errs...)
}

package endpoint

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// authorizer sets the credentials of one request. Call refused if the receiver refuses
// them. An error of an authorizer is classified.
type authorizer func(ctx context.Context, h http.Header) (refused func(), err error)

// withDefaults returns c with its defaults filled in.
func withDefaults(c adapters.Credentials) adapters.Credentials {
	c.Kind = cmp.Or(c.Kind, adapters.NoCredentials)
	if c.Kind == adapters.APIKey {
		c.Header = cmp.Or(c.Header, "X-Api-Key")
	}
	return c
}

func parseAuth(a adapters.Credentials, protocol map[string]string, client *exchange.Client) (authorizer, error) {
	if err := checkAuth(a, protocol); err != nil {
		return nil, err
	}
	switch a.Kind {
	case adapters.Bearer:
		return static("Authorization", "Bearer "+a.Token.Reveal()), nil
	case adapters.Basic:
		pair := a.Username + ":" + a.Password.Reveal()
		return static("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(pair))), nil
	case adapters.APIKey:
		return static(http.CanonicalHeaderKey(a.Header), a.Key.Reveal()), nil
	case adapters.ClientCredentials:
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

// checkAuth reports every field that is missing, wrong, or belongs to another kind.
// protocol are the headers that the adapter itself sets.
func checkAuth(a adapters.Credentials, protocol map[string]string) error {
	type field struct {
		name, value string
		kind        adapters.CredentialsKind
		optional    bool
	}
	fields := []field{
		{"token", a.Token.Reveal(), adapters.Bearer, false},
		{"username", a.Username, adapters.Basic, false},
		{"password", a.Password.Reveal(), adapters.Basic, true},
		{"header", a.Header, adapters.APIKey, false},
		{"key", a.Key.Reveal(), adapters.APIKey, false},
		{"token_url", a.TokenURL, adapters.ClientCredentials, false},
		{"client_id", a.ClientID, adapters.ClientCredentials, false},
		{"client_secret", a.ClientSecret.Reveal(), adapters.ClientCredentials, false},
		{"scopes", strings.Join(a.Scopes, " "), adapters.ClientCredentials, true},
		{"audience", a.Audience, adapters.ClientCredentials, true},
	}
	switch a.Kind {
	case adapters.NoCredentials, adapters.Bearer, adapters.Basic, adapters.APIKey, adapters.ClientCredentials:
	default:
		return fmt.Errorf("auth.kind: %q is not one of none, bearer, basic, api_key, oauth2_client_credentials", a.Kind)
	}
	var errs []error
	for _, f := range fields {
		switch {
		case f.kind != a.Kind && f.value != "":
			if a.Kind == adapters.NoCredentials {
				errs = append(errs, fmt.Errorf("auth.%s: belongs to kind %s; set auth.kind", f.name, f.kind))
				continue
			}
			errs = append(errs, fmt.Errorf("auth.%s: belongs to kind %s, not to %s", f.name, f.kind, a.Kind))
		case f.kind == a.Kind && f.value == "" && !f.optional:
			errs = append(errs, fmt.Errorf("auth.%s: is required for kind %s", f.name, a.Kind))
		case placeholder.Plain(f.value) != nil:
			errs = append(errs, fmt.Errorf("auth.%s: %w", f.name, placeholder.Plain(f.value)))
		}
	}
	if a.Kind == adapters.Basic && strings.Contains(a.Username, ":") {
		errs = append(errs, errors.New("auth.username: cannot hold a colon (RFC 7617)"))
	}
	if a.Kind == adapters.APIKey && a.Header != "" {
		name := http.CanonicalHeaderKey(a.Header)
		if why := cmp.Or(protocol[name], reserved[name]); why != "" {
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

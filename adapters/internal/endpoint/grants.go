package endpoint

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// grant asks a token endpoint for tokens. One fetch at a time uses it.
type grant struct {
	// request asks for one token. An answer without one is an *oauth2.RetrieveError or
	// a badAnswer.
	request func(context.Context, oauth2.AuthStyle) (*oauth2.Token, error)

	// secrets are the values of the last request that no text may show. They are in a
	// function, so that fmt does not see them.
	secrets func() []string

	// style is the place of the client's secret. AuthStyleAutoDetect: not known yet.
	style oauth2.AuthStyle
}

// newGrant returns the grant of a's kind.
func newGrant(a adapters.Credentials, client *exchange.Client) (grant, error) {
	switch a.Kind {
	case adapters.ServiceLease:
		return newLease(a, client.TokenClient())
	case adapters.PrivateKeyJWT, adapters.JWTBearer:
		return newAssertion(a, client.TokenClient())
	default:
		return newShared(a, client.TokenClient()), nil
	}
}

// newShared returns the grant of a client that shares a secret with the endpoint, or of
// a user's password.
func newShared(a adapters.Credentials, client *http.Client) grant {
	g := newOAuth2(a, client, func() (url.Values, error) {
		params := url.Values{}
		if a.Audience != "" {
			params.Set("audience", a.Audience)
		}
		if a.Kind == adapters.PasswordGrant {
			params.Set("grant_type", "password")
			params.Set("username", a.Username)
			params.Set("password", a.Password.Reveal())
		}
		return params, nil
	})
	id, secret := url.QueryEscape(a.ClientID), url.QueryEscape(a.ClientSecret.Reveal())
	g.secrets = func() []string {
		// An endpoint may say what it was sent: the form's value, or the header's (RFC 6749, 2.3.1).
		return []string{
			a.ClientSecret.Reveal(), secret, base64.StdEncoding.EncodeToString([]byte(id + ":" + secret)),
			a.Password.Reveal(), url.QueryEscape(a.Password.Reveal()),
		}
	}
	if a.ClientSecret == "" {
		g.style = oauth2.AuthStyleInParams
	}
	return g
}

// newOAuth2 returns a grant of RFC 6749. params are added to the form of each request.
func newOAuth2(a adapters.Credentials, client *http.Client, params func() (url.Values, error)) grant {
	client.Transport = tokenAnswers{client.Transport}
	return grant{request: func(ctx context.Context, style oauth2.AuthStyle) (*oauth2.Token, error) {
		extra, err := params()
		if err != nil {
			return nil, err
		}
		config := &clientcredentials.Config{
			ClientID:       a.ClientID,
			ClientSecret:   a.ClientSecret.Reveal(),
			TokenURL:       a.TokenURL,
			Scopes:         a.Scopes,
			AuthStyle:      style,
			EndpointParams: extra,
		}
		return config.Token(context.WithValue(ctx, oauth2.HTTPClient, client))
	}}
}

// newLease returns the grant of HMCTS's service-auth-provider: POST /lease with the
// name of the microservice and a one-time password gives a JWT as text.
func newLease(a adapters.Credentials, client *http.Client) (grant, error) {
	key, err := totpKey(a.ClientSecret.Reveal())
	if err != nil {
		return grant{}, fmt.Errorf("client_secret: %w", err)
	}
	var sent string
	return grant{
		style: oauth2.AuthStyleInParams,
		request: func(ctx context.Context, _ oauth2.AuthStyle) (*oauth2.Token, error) {
			sent = totp(key, time.Now())
			body, err := json.Marshal(map[string]string{"microservice": a.ClientID, "oneTimePassword": sent})
			if err != nil {
				return nil, err
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.TokenURL, bytes.NewReader(body))
			if err != nil {
				return nil, err
			}
			req.Header.Set("Content-Type", "application/json")
			res, err := client.Do(req)
			if err != nil {
				return nil, err
			}
			defer func() { _ = res.Body.Close() }() // it was only read
			return readLease(res)
		},
		secrets: func() []string { return []string{a.ClientSecret.Reveal(), sent} },
	}, nil
}

// readLease reads the token of a lease. Its time of expiry is in the token itself.
func readLease(res *http.Response) (*oauth2.Token, error) {
	body, err := readBody(res)
	switch {
	case err != nil:
		return nil, err
	case !success(res):
		return nil, &oauth2.RetrieveError{Response: res, Body: body}
	}
	text := strings.Trim(string(body), "\" \t\r\n")
	var claims jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(text, &claims); err != nil {
		return nil, badAnswer(fmt.Sprintf("answered HTTP %d, but its body is %s, not a JWT: check token_url", res.StatusCode, form(body)))
	}
	token := &oauth2.Token{AccessToken: text}
	if claims.ExpiresAt != nil {
		token.Expiry = claims.ExpiresAt.Time
	}
	return token, nil
}

// readBody reads an answer of a token endpoint, without its byte-order mark.
func readBody(res *http.Response) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(res.Body, exchange.MaxAnswer))
	return bytes.TrimPrefix(bytes.TrimSpace(body), []byte("\uFEFF")), err
}

func success(res *http.Response) bool { return res.StatusCode >= 200 && res.StatusCode <= 299 }

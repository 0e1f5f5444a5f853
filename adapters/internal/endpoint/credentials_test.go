package endpoint_test

import (
	"context"
	"crypto/elliptic"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/adapters"
)

func TestStaticCredentials(t *testing.T) {
	for name, tc := range map[string]struct {
		auth         adapters.Credentials
		header, want string
	}{
		"bearer":            {adapters.Credentials{Kind: adapters.Bearer, Token: "tok"}, "Authorization", "Bearer tok"},
		"basic":             {adapters.Credentials{Kind: adapters.Basic, Username: "Aladdin", Password: "open sesame"}, "Authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="},
		"api key":           {adapters.Credentials{Kind: adapters.APIKey, Key: "k-1"}, "X-Api-Key", "k-1"},
		"api key elsewhere": {adapters.Credentials{Kind: adapters.APIKey, Header: "ocp-apim-subscription-key", Key: "k-1"}, "Ocp-Apim-Subscription-Key", "k-1"},
		"bearer elsewhere":  {adapters.Credentials{Kind: adapters.Bearer, Header: "X-Token", Token: "tok"}, "X-Token", "Bearer tok"},
		"second":            {adapters.Credentials{Kind: adapters.Bearer, Token: "tok", Second: &adapters.Credentials{Kind: adapters.APIKey, Key: "k-2"}}, "X-Api-Key", "k-2"},
		"first of two":      {adapters.Credentials{Kind: adapters.Bearer, Token: "tok", Second: &adapters.Credentials{Kind: adapters.APIKey, Key: "k-2"}}, "Authorization", "Bearer tok"},
		"none":              {adapters.Credentials{}, "Authorization", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCourt(t)
			if _, err := post(t, config{URL: c.URL, Auth: tc.auth}).Deliver(t.Context(), message()); err != nil {
				t.Fatal(err)
			}
			if got := c.request.Header.Get(tc.header); got != tc.want {
				t.Errorf("%s: %q, want %q", tc.header, got, tc.want)
			}
		})
	}
}

func TestAuthIsChecked(t *testing.T) {
	oauth := func(edit func(*adapters.Credentials)) adapters.Credentials {
		a := adapters.Credentials{Kind: adapters.ClientCredentials, TokenURL: "https://login.example/t", ClientID: "id", ClientSecret: "canary"}
		edit(&a)
		return a
	}
	key := adapters.Secret(pemOf(t, newEC(t, elliptic.P384())))
	assertion := func(edit func(*adapters.Credentials)) adapters.Credentials {
		a := adapters.Credentials{Kind: adapters.PrivateKeyJWT, TokenURL: "https://login.example/t", ClientID: "id", PrivateKey: key}
		edit(&a)
		return a
	}
	hmac := func(edit func(*adapters.Credentials)) adapters.Credentials {
		a := adapters.Credentials{Kind: adapters.HMAC, Secret: "canary"}
		edit(&a)
		return a
	}
	second := func(c adapters.Credentials) adapters.Credentials {
		return adapters.Credentials{Kind: adapters.Bearer, Token: "tok", Second: &c}
	}
	for name, tc := range map[string]struct {
		auth adapters.Credentials
		want string
	}{
		"unknown kind":                  {adapters.Credentials{Kind: "digest"}, `auth.kind: "digest" is not one of`},
		"no token":                      {adapters.Credentials{Kind: adapters.Bearer}, "auth.token: is required"},
		"token with newline":            {adapters.Credentials{Kind: adapters.Bearer, Token: "canary\n"}, "auth.token: has a control character"},
		"token without kind":            {adapters.Credentials{Token: "canary"}, "auth.token: belongs to kind bearer; set auth.kind"},
		"colon in the user":             {adapters.Credentials{Kind: adapters.Basic, Username: "a:b"}, "auth.username: cannot hold a colon"},
		"key in Host":                   {adapters.Credentials{Kind: adapters.APIKey, Header: "host", Key: "canary"}, "auth.header: Host comes from the url"},
		"key in a bad header":           {adapters.Credentials{Kind: adapters.APIKey, Header: "a b", Key: "canary"}, "auth.header: is not a header name"},
		"no token URL":                  {oauth(func(a *adapters.Credentials) { a.TokenURL = "" }), "auth.token_url: is required"},
		"bad token host":                {oauth(func(a *adapters.Credentials) { a.TokenURL = "https://x;y/" }), "auth.token_url: must be"},
		"bad token URL":                 {oauth(func(a *adapters.Credentials) { a.TokenURL = "https://u:canary@x/" }), "auth.token_url: must be"},
		"password without a user":       {adapters.Credentials{Kind: adapters.PasswordGrant, TokenURL: "https://login.example/t", Password: "canary"}, "auth.username: is required"},
		"header of nothing":             {adapters.Credentials{Header: "X-Token"}, "auth.header: belongs to kind bearer, basic"},
		"no key":                        {assertion(func(a *adapters.Credentials) { a.PrivateKey = "" }), "auth.key_file: is required, or private_key"},
		"two keys":                      {assertion(func(a *adapters.Credentials) { a.KeyFile = "/nowhere" }), "auth.key_file: is set together with private_key"},
		"no such key file":              {assertion(func(a *adapters.Credentials) { a.PrivateKey, a.KeyFile = "", "/nowhere" }), "auth.key_file: open /nowhere"},
		"a key that is none":            {assertion(func(a *adapters.Credentials) { a.PrivateKey = "canary" }), "auth.private_key: has no RSA or EC private key in PEM form"},
		"an encrypted key":              {assertion(func(a *adapters.Credentials) { a.PrivateKey = "-----BEGIN ENCRYPTED PRIVATE KEY-----" }), "auth.private_key: the key is encrypted"},
		"a shared secret's algorithm":   {assertion(func(a *adapters.Credentials) { a.Algorithm = "HS256" }), `auth.algorithm: "HS256" is not one of RS256`},
		"an algorithm for another key":  {assertion(func(a *adapters.Credentials) { a.Algorithm = "RS512" }), "auth.algorithm: RS512 does not fit the key"},
		"a curve for another algorithm": {assertion(func(a *adapters.Credentials) { a.Algorithm = "ES256" }), "auth.algorithm: ES256 does not fit the key"},
		"an odd one-time secret":        {adapters.Credentials{Kind: adapters.ServiceLease, TokenURL: "https://s2s.example/lease", ClientID: "agency", ClientSecret: "canary!"}, "auth.client_secret: is not base32"},
		"hash of another kind":          {hmac(func(a *adapters.Credentials) { a.Algorithm = "md5" }), `auth.algorithm: "md5" is not one of sha1, sha256, sha512`},
		"encoding of another kind":      {hmac(func(a *adapters.Credentials) { a.Encoding = "base32" }), `auth.encoding: "base32" is not one of hex, base64`},
		"secret in no encoding":         {hmac(func(a *adapters.Credentials) { a.SecretEncoding = "hex" }), "auth.secret: is not hex, as secret_encoding says"},
		"unknown secret encoding":       {hmac(func(a *adapters.Credentials) { a.SecretEncoding = "utf-8" }), `auth.secret_encoding: "utf-8" is not one of`},
		"signs what is not there":       {hmac(func(a *adapters.Credentials) { a.Sign = "{methode}" }), "auth.sign: {methode} is not a placeholder"},
		"body in a header":              {hmac(func(a *adapters.Credentials) { a.Value = "{body}" }), "auth.value: {body} is not a placeholder"},
		"the signature is not sent":     {hmac(func(a *adapters.Credentials) { a.Value = "agency" }), "auth.value: has no {signature}"},
		"header of the protocol":        {hmac(func(a *adapters.Credentials) { a.Headers = map[string]adapters.Secret{"host": "{host}"} }), `auth.headers["Host"]: Host comes from the url`},
		"second without first":          {adapters.Credentials{Second: &adapters.Credentials{Kind: adapters.Bearer, Token: "canary"}}, "auth.second: is sent in addition to other credentials: set auth.kind"},
		"second of no kind":             {second(adapters.Credentials{}), "auth.second.kind: is required"},
		"second in the same header":     {second(adapters.Credentials{Kind: adapters.Basic, Username: "u"}), "auth.second.header: Authorization has the first credentials already"},
		"second with a second":          {second(adapters.Credentials{Kind: adapters.APIKey, Key: "k", Second: &adapters.Credentials{}}), "auth.second.second: there are at most two"},
		"second that is wrong":          {second(adapters.Credentials{Kind: adapters.APIKey}), "auth.second.key: is required for kind api_key"},
		"second with a wrong secret":    {second(adapters.Credentials{Kind: adapters.ServiceLease, TokenURL: "https://s2s.example/lease", ClientID: "a", ClientSecret: "canary!"}), "auth.second.client_secret: is not base32"},
		"no secret":                     {oauth(func(a *adapters.Credentials) { a.ClientSecret = "" }), "auth.client_secret: is required"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newPoster(config{URL: "https://court.example", Auth: tc.auth})
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "canary") {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// login is a token endpoint that gives out token-1, token-2, ….
type login struct {
	*httptest.Server
	fetches atomic.Int32
	form    url.Values // of the last fetch
	answer  func(w http.ResponseWriter, n int32)
}

func newLogin(t *testing.T) *login {
	t.Helper()
	l := &login{answer: func(w http.ResponseWriter, n int32) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"Bearer","expires_in":3600}`, n)
	}}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		l.form = r.PostForm
		l.answer(w, l.fetches.Add(1))
	}))
	t.Cleanup(l.Close)
	return l
}

func (l *login) adapter(t *testing.T, c *court) *poster {
	t.Helper()
	return post(t, config{URL: c.URL, Auth: adapters.Credentials{
		Kind: adapters.ClientCredentials, TokenURL: l.URL + "/token", ClientID: "agency", ClientSecret: "client-canary",
		Scopes: []string{"a", "b"}, Audience: "https://court.example",
	}})
}

func TestTokenIsFetchedOnceAndKept(t *testing.T) {
	l, c := newLogin(t), newCourt(t)
	a := l.adapter(t, c)
	for range 3 {
		if _, err := a.Deliver(t.Context(), message()); err != nil {
			t.Fatal(err)
		}
		if got := c.request.Header.Get("Authorization"); got != "Bearer token-1" {
			t.Errorf("sent %s", got)
		}
	}
	if n := l.fetches.Load(); n != 1 {
		t.Errorf("%d fetches, want 1", n)
	}
	want := url.Values{"grant_type": {"client_credentials"}, "scope": {"a b"}, "audience": {"https://court.example"}}
	if diff := cmp.Diff(want, l.form); diff != "" {
		t.Errorf("form (-want +got):\n%s", diff)
	}
}

func TestTokenWithoutMuchLeftIsRenewed(t *testing.T) {
	l, c := newLogin(t), newCourt(t)
	l.answer = func(w http.ResponseWriter, n int32) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"access_token":"token-%d","expires_in":5}`, n)
	}
	a := l.adapter(t, c)
	for i := range 2 {
		if _, err := a.Deliver(t.Context(), message()); err != nil {
			t.Fatal(err)
		}
		if got, want := c.request.Header.Get("Authorization"), fmt.Sprintf("Bearer token-%d", i+1); got != want {
			t.Errorf("sent %s, want %s", got, want)
		}
	}
}

func TestRefusedTokenIsDropped(t *testing.T) {
	l, c := newLogin(t), newCourt(t)
	a := l.adapter(t, c)
	c.status = http.StatusUnauthorized
	if _, err := a.Deliver(t.Context(), message()); adapters.ClassOf(err) != adapters.ClassAuth {
		t.Fatalf("got %v (%s)", err, adapters.ClassOf(err))
	}
	if n := l.fetches.Load(); n != 1 {
		t.Errorf("%d fetches in one attempt, want 1: an adapter never tries again by itself", n)
	}
	c.status = http.StatusOK
	if _, err := a.Deliver(t.Context(), message()); err != nil {
		t.Fatal(err)
	}
	if got := c.request.Header.Get("Authorization"); got != "Bearer token-2" {
		t.Errorf("sent %s, want a new token", got)
	}
}

func TestTokenEndpointFailures(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(w http.ResponseWriter, n int32)
		want   adapters.Class
		text   string
		wait   time.Duration
	}{
		"wrong secret": {status(401, `{"error":"invalid_client","error_description":"client-canary is wrong"}`), adapters.ClassAuth, "invalid_client (a part is not shown, because it repeats what was sent)", 0},
		"header told":  {status(400, `{"error":"invalid_request","error_description":"Basic YWdlbmN5OmNsaWVudC1jYW5hcnk= is refused"}`), adapters.ClassAuth, "invalid_request (a part is not shown, because it repeats what was sent)", 0},
		"Azure AD":     {status(400, `{"error":"unauthorized_client","error_codes":[700016],"error_description":"not in the directory"}`), adapters.ClassAuth, "700016, unauthorized_client: not in the directory", 0},
		"error in 200": {status(200, `{"error":"access_denied"}`), adapters.ClassAuth, "HTTP 200: access_denied", 0},
		"redirect":     {redirectTo("http://127.0.0.1:1/client-canary"), adapters.ClassAuth, "HTTP 307", 0},
		"down":         {status(503, "client-canary"), adapters.ClassAuth, "HTTP 503: without a reason", 0},
		"busy": {func(w http.ResponseWriter, _ int32) {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(429)
		}, adapters.ClassThrottled, "HTTP 429", 7 * time.Second},
		"busy for a day": {func(w http.ResponseWriter, _ int32) {
			w.Header().Set("Retry-After", "86400")
			w.WriteHeader(503)
		}, adapters.ClassThrottled, "HTTP 503", time.Hour},
		"busy for how long": {status(429, ""), adapters.ClassThrottled, "HTTP 429", time.Second},
		"garbage in 200":    {status(200, "client-canary"), adapters.ClassAuth, "answered HTTP 200, but its body is text of another kind, not a token", 0},
		"no token":          {status(200, `{"token":"client-canary"}`), adapters.ClassAuth, "answered HTTP 200, but without an access_token", 0},
		"a login page":      {status(200, "<html>client-canary</html>"), adapters.ClassAuth, "answered HTTP 200, but its body is a page of HTML or XML, not a token", 0},
		"an empty body":     {status(200, ""), adapters.ClassAuth, "answered HTTP 200, but its body is empty, not a token", 0},
		"a null token":      {status(200, `{"access_token":null}`), adapters.ClassAuth, "without an access_token", 0},
		"a list":            {status(200, `["client-canary"]`), adapters.ClassAuth, "its body is JSON, not a token", 0},
		"header in it":      {status(200, `{"access_token":"a\r\nX: y"}`), adapters.ClassAuth, "control characters", 0},
		"hangs up":          {func(http.ResponseWriter, int32) { panic(http.ErrAbortHandler) }, adapters.ClassAuth, "the connection was closed", 0},
	} {
		t.Run(name, func(t *testing.T) {
			l, c := newLogin(t), newCourt(t)
			l.answer = tc.answer
			receipt, err := l.adapter(t, c).Deliver(t.Context(), message())
			if err == nil || adapters.ClassOf(err) != tc.want || !strings.Contains(err.Error(), tc.text) || adapters.RetryDelay(err) != tc.wait {
				t.Errorf("got %v (%s, wait %s), want %s with %q", err, adapters.ClassOf(err), adapters.RetryDelay(err), tc.want, tc.text)
			}
			if err != nil && (strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "OmNsaWVudC1j")) {
				t.Errorf("the error gives the secret away: %v", err)
			}
			if c.request != nil || receipt.Code != "" {
				t.Error("the court got a request")
			}
		})
	}
}

// A token endpoint that asks for a pause gets no requests, for any number of deliveries
// and attempts.
func TestTokenEndpointThatWantsQuietIsLeftAlone(t *testing.T) {
	l, c := newLogin(t), newCourt(t)
	give := l.answer
	l.answer = func(w http.ResponseWriter, _ int32) {
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
	}
	a := l.adapter(t, c)
	began := time.Now()
	for range 50 {
		_, err := a.Deliver(t.Context(), message())
		if adapters.ClassOf(err) != adapters.ClassThrottled || !strings.Contains(err.Error(), "HTTP 429") {
			t.Fatalf("got %v (%s)", err, adapters.ClassOf(err))
		}
		if wait := adapters.RetryDelay(err); wait <= 0 || wait > time.Second {
			t.Fatalf("wait %s", wait)
		}
	}
	if n := int(l.fetches.Load()); n > 1+int(time.Since(began)/time.Second) {
		t.Errorf("%d requests", n)
	}
	l.answer = give
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for wait := time.Second; wait > 0; <-look.C { // until the quiet that the endpoint asked for is over
		_, err := a.Deliver(t.Context(), message())
		wait = adapters.RetryDelay(err)
	}
	if c.request == nil {
		t.Error("the court got no request once the quiet was over")
	}
}

// The secret goes to the place where it was accepted before. It goes to the other place
// only if the endpoint does not know the client.
func TestPlaceOfTheSecretForTheTokenEndpoint(t *testing.T) {
	for name, tc := range map[string]struct {
		refusal int // of a secret in the header
		body    string
		fetches int32 // until there is an answer to keep
		got     bool
	}{
		"in the form: invalid_client":    {400, `{"error":"invalid_client"}`, 2, true},
		"in the form: 401 alone":         {401, ``, 2, true},
		"the client may not":             {401, `{"error":"unauthorized_client"}`, 1, false},
		"the request is bad":             {400, `{"error":"invalid_scope"}`, 1, false},
		"it is down":                     {503, ``, 1, false},
		"it is a gateway's page":         {404, `<html></html>`, 1, false},
		"it takes it in the header":      {0, ``, 1, true},
		"the client may not, with a 200": {200, `{"error":"access_denied"}`, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			l, c := newLogin(t), newCourt(t)
			give := l.answer
			l.answer = func(w http.ResponseWriter, n int32) {
				if tc.refusal != 0 && l.form.Get("client_secret") == "" {
					status(tc.refusal, tc.body)(w, n)
					return
				}
				give(w, n)
			}
			a := l.adapter(t, c)
			_, err := a.Deliver(t.Context(), message())
			if (err == nil) != tc.got || l.fetches.Load() != tc.fetches {
				t.Errorf("%d requests, %v", l.fetches.Load(), err)
			}
			if !tc.got {
				return
			}
			// It is remembered, also while the endpoint refuses.
			for _, code := range []int{401, 200} {
				c.status = http.StatusUnauthorized
				if _, err := a.Deliver(t.Context(), message()); adapters.ClassOf(err) != adapters.ClassAuth {
					t.Fatalf("got %v", err) // the token is dropped
				}
				c.status = http.StatusOK
				before := l.fetches.Load()
				was := l.answer
				if code == 401 {
					l.answer = status(401, `{"error":"invalid_client"}`)
				}
				_, err := a.Deliver(t.Context(), message())
				l.answer = was
				if (err == nil) != (code == 200) || l.fetches.Load() != before+1 {
					t.Errorf("%d: %d more requests, %v", code, l.fetches.Load()-before, err)
				}
			}
		})
	}
}

func status(code int, body string) func(http.ResponseWriter, int32) {
	return func(w http.ResponseWriter, _ int32) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

func redirectTo(location string) func(http.ResponseWriter, int32) {
	return func(w http.ResponseWriter, _ int32) {
		w.Header().Set("Location", location)
		w.WriteHeader(http.StatusTemporaryRedirect)
	}
}

func TestNoTokenEndpoint(t *testing.T) {
	l, c := newLogin(t), newCourt(t)
	l.Close()
	_, err := l.adapter(t, c).Deliver(t.Context(), message())
	if adapters.ClassOf(err) != adapters.ClassAuth || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v (%s)", err, adapters.ClassOf(err))
	}
}

func TestDeliveriesAtOnceUseOneToken(t *testing.T) {
	l := newLogin(t)
	receiver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer receiver.Close()
	a := l.adapter(t, &court{Server: receiver})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := a.Deliver(t.Context(), message()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := l.fetches.Load(); n != 1 {
		t.Errorf("%d fetches, want 1", n)
	}
}

func TestStoppedFetchIsTakenOverByAnotherDelivery(t *testing.T) {
	l, c := newLogin(t), newCourt(t)
	asked, release := make(chan int32, 10), make(chan struct{})
	give := l.answer
	l.answer = func(w http.ResponseWriter, n int32) {
		asked <- n
		if n == 1 {
			<-release
		}
		give(w, n)
	}
	a := l.adapter(t, c)
	ctx, stop := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := a.Deliver(ctx, message()); first <- err }()
	<-asked
	go func() { _, err := a.Deliver(t.Context(), message()); second <- err }()
	stop()
	if err := <-first; adapters.ClassOf(err) != adapters.ClassTransient || !errors.Is(err, context.Canceled) {
		t.Errorf("the stopped delivery: %v (%s)", err, adapters.ClassOf(err))
	}
	if err := <-second; err != nil {
		t.Errorf("the other delivery: %v", err)
	}
	close(release)
}

func TestWaitingForATokenEndsWithTheDelivery(t *testing.T) {
	l, c := newLogin(t), newCourt(t)
	asked, release := make(chan struct{}, 1), make(chan struct{})
	l.answer = func(http.ResponseWriter, int32) { asked <- struct{}{}; <-release }
	a := l.adapter(t, c)
	leader := make(chan error, 1)
	go func() { _, err := a.Deliver(t.Context(), message()); leader <- err }()
	<-asked
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := a.Deliver(ctx, message()); !errors.Is(err, context.Canceled) || adapters.ClassOf(err) != adapters.ClassTransient {
		t.Errorf("got %v (%s)", err, adapters.ClassOf(err))
	}
	close(release)
	if err := <-leader; adapters.ClassOf(err) != adapters.ClassAuth {
		t.Errorf("the delivery that fetched: %v", err)
	}
}

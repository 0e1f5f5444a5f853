package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

func TestAFailedFetchIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls, release := 0, make(chan struct{})
		down := &oauth2.RetrieveError{Response: &http.Response{StatusCode: 503}}
		tokens := &tokens{grant: grant{
			request: func(context.Context, oauth2.AuthStyle) (*oauth2.Token, error) { calls++; <-release; return nil, down },
			secrets: func() []string { return nil },
		}}
		const deliveries = 16
		results := make(chan error, deliveries)
		for range deliveries {
			go func() { _, err := tokens.get(t.Context()); results <- err }()
		}
		synctest.Wait() // one fetches, all others wait for it
		close(release)
		for range deliveries {
			if err := <-results; adapters.ClassOf(err) != adapters.ClassAuth || !strings.Contains(err.Error(), "HTTP 503") {
				t.Errorf("got %v (%s)", err, adapters.ClassOf(err))
			}
		}
		if calls != 1 {
			t.Errorf("%d fetches, want 1", calls)
		}
	})
}

func TestATokenEndpointThatHangsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tokens := &tokens{grant: grant{request: func(ctx context.Context, _ oauth2.AuthStyle) (*oauth2.Token, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}}
		start := time.Now()
		results := make(chan error, 2)
		for range 2 {
			go func() { _, err := tokens.get(t.Context()); results <- err }()
		}
		for range 2 {
			err := <-results
			if adapters.ClassOf(err) != adapters.ClassAuth || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "10s") {
				t.Errorf("got %v (%s)", err, adapters.ClassOf(err))
			}
		}
		if took := time.Since(start); took != tokenTimeout {
			t.Errorf("gave up after %s, want %s", took, tokenTimeout)
		}
	})
}

// A machine without a free descriptor says nothing about the token endpoint.
func TestATokenThatThisMachineCannotAskForIsLocal(t *testing.T) {
	tokens := &tokens{grant: grant{request: func(context.Context, oauth2.AuthStyle) (*oauth2.Token, error) {
		return nil, fmt.Errorf("Post: %w", &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)})
	}}}
	_, err := tokens.get(t.Context())
	if adapters.ClassOf(err) != adapters.ClassLocal || !strings.Contains(err.Error(), "this machine has no file descriptor") {
		t.Errorf("got %v (%s)", err, adapters.ClassOf(err))
	}
}

// An endpoint that asks for a pause without a duration gets fewer and fewer requests.
func TestATokenEndpointIsAskedLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		busy := &oauth2.RetrieveError{Response: &http.Response{StatusCode: http.StatusTooManyRequests}}
		tokens := &tokens{grant: grant{
			request: func(context.Context, oauth2.AuthStyle) (*oauth2.Token, error) { asked++; return nil, busy },
			secrets: func() []string { return nil },
		}}
		began := time.Now()
		for time.Since(began) < time.Hour {
			_, err := tokens.get(t.Context())
			wait := adapters.RetryDelay(err)
			if adapters.ClassOf(err) != adapters.ClassThrottled || wait <= 0 || wait > time.Minute {
				t.Fatalf("got %v (%s, wait %s)", err, adapters.ClassOf(err), wait)
			}
			time.Sleep(min(wait, time.Second))
		}
		if asked > 70 {
			t.Errorf("asked %d times in an hour", asked)
		}
	})
}

// Two token endpoints that are slow take the time of one, so that an attempt is as long
// as AttemptTimeout says.
func TestTwoTokensHaveTheTimeOfOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(takes time.Duration) *tokens {
			return &tokens{header: "X-Token", grant: grant{style: oauth2.AuthStyleInParams, request: func(ctx context.Context, _ oauth2.AuthStyle) (*oauth2.Token, error) {
				select {
				case <-time.After(takes):
					return &oauth2.Token{AccessToken: "t"}, nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}}}
		}
		e := &Endpoint{auth: []authorizer{slow(7 * time.Second), slow(7 * time.Second)}}
		start := time.Now()
		_, err := e.authorize(t.Context(), exchange.Request{Header: http.Header{}})
		if took := time.Since(start); took != tokenTimeout || adapters.ClassOf(err) != adapters.ClassAuth || !strings.Contains(err.Error(), "the timeout of 10s is up") {
			t.Errorf("after %s: %v (%s)", took, err, adapters.ClassOf(err))
		}
		synctest.Wait()    // until the fetch that was given up has ended
		start = time.Now() // the first token is kept
		if _, err := e.authorize(t.Context(), exchange.Request{Header: http.Header{}}); err != nil || time.Since(start) != 7*time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

package endpoint

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/hms-mkt/lockstep/adapters"
)

func TestAFailedFetchIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls, release := 0, make(chan struct{})
		down := &oauth2.RetrieveError{Response: &http.Response{StatusCode: 503}}
		tokens := &tokens{
			request: func(context.Context, oauth2.AuthStyle) (*oauth2.Token, error) { calls++; <-release; return nil, down },
			secret:  func() string { return "" },
		}
		const deliveries = 16
		results := make(chan error, deliveries)
		for range deliveries {
			go func() { _, err := tokens.get(t.Context()); results <- err }()
		}
		synctest.Wait() // one asks, all others wait for it
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
		tokens := &tokens{request: func(ctx context.Context, _ oauth2.AuthStyle) (*oauth2.Token, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
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

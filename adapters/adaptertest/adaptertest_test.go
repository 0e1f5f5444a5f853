package adaptertest_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/adaptertest"
)

// naive is an adapter by somebody who has not read the contract.
type naive struct {
	adaptertest.Setup
	client *http.Client
}

func (n naive) Deliver(ctx context.Context, msg adapters.Message) (adapters.Receipt, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.URL, bytes.NewReader(msg.Body))
	if err != nil {
		return adapters.Receipt{}, err
	}
	req.Header.Set("Authorization", "Bearer "+n.Secret.Reveal())
	req.Header.Set("Idempotency-Key", fmt.Sprintf("%s-%d", msg.IdempotencyKey, msg.Attempt))
	res, err := n.client.Do(req)
	if err != nil {
		return adapters.Receipt{}, err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return adapters.Receipt{}, err
	}
	if res.StatusCode >= 300 {
		return adapters.Receipt{}, fmt.Errorf("%s: %s", res.Status, body)
	}
	return adapters.Receipt{Code: res.Status, SHA256: "of something else"}, nil
}

// naiveQueue is the same for a protocol that is not HTTP.
type naiveQueue struct {
	secret string
	away   bool
	mu     sync.Mutex
	held   []adaptertest.Held
	answer adaptertest.Answer
}

func (n *naiveQueue) Deliver(_ context.Context, msg adapters.Message) (adapters.Receipt, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.away {
		return adapters.Receipt{}, adapters.Permanent(fmt.Errorf("cannot send %s", msg.Body))
	}
	if !strings.Contains(msg.IdempotencyKey, "-3") { // loses some
		n.held = append(n.held, adaptertest.Held{Key: msg.IdempotencyKey, Body: fmt.Appendf(nil, "%d %s", msg.Attempt, msg.Body)})
	}
	switch n.answer {
	case adaptertest.Lost:
		return adapters.Receipt{}, io.ErrUnexpectedEOF
	case adaptertest.Silent:
		return adapters.Receipt{}, os.ErrDeadlineExceeded
	default:
		return adapters.Receipt{}, nil
	}
}

// defective is the environment variable that makes TestNaive run.
const defective = "ADAPTERTEST_RUN_NAIVE"

// [TestTheSuiteCatches] runs TestNaive in a separate process, where it fails.
func TestNaive(t *testing.T) {
	if os.Getenv(defective) == "" {
		return
	}
	adaptertest.RunWith(t, func(_ *testing.T, secret adapters.Secret) adaptertest.Receiver {
		n := &naiveQueue{secret: secret.Reveal()}
		return adaptertest.Receiver{
			Adapter: n,
			Held: func() []adaptertest.Held {
				n.mu.Lock()
				defer n.mu.Unlock()
				return slices.Clone(n.held)
			},
			Away:   func(away bool) { n.away = away },
			Answer: func(how adaptertest.Answer) bool { n.answer = how; return true },
		}
	})
	adaptertest.Run(t, adaptertest.Harness{
		New: func(_ *testing.T, s adaptertest.Setup) adapters.Adapter {
			return naive{Setup: s, client: &http.Client{Timeout: s.Timeout}}
		},
		Accept: func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(http.StatusOK) },
		Refuse: func(w http.ResponseWriter, status int, reason string) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, reason)
		},
		Key: func(r *http.Request, _ []byte) string { return r.Header.Get("Idempotency-Key") },
	})
}

// The suite must catch the mistakes of a naive adapter.
func TestTheSuiteCatches(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNaive$", "-test.v",
		"-test.skip=/bad_receivers/an_answer_of_a_gigabyte") // which a naive adapter does read
	cmd.Env = append(os.Environ(), defective+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatal("a naive adapter passes the suite")
	}
	for _, name := range []string{
		"statuses/400", "statuses/401", "statuses/409", "statuses/429",
		"Retry-After/429_seconds", "Retry-After/503_date", "Retry-After/500_10^9",
		"requests/attempts_are_the_same", "requests/the_digest_is_of_what_was_sent",
		"bad_receivers/a_gzip_bomb", "bad_receivers/no_HTTP", "bad_receivers/a_bad_header", "bad_receivers/nothing_at_all",
		"bad_receivers/bytes_that_cannot_be_stored", "bad_receivers/a_garbled_error",
		"no_answer/the_timeout_names_itself", "no_answer/stopped_after_it_was_sent", "no_answer/nobody_listens",
		"no_answer/a_kept-alive_connection_breaks",
		"secrets/echoed_with_500", "redirects/302", "redirects/307",
		"gateways/404_with_a_page", "gateways/302_with_nothing",
		"a_message_arrives", "attempts_are_the_same", "many_at_once", "out_of_reach", "stopped_before_it_was_sent",
		"stopped_while_it_waits", "the_answer_is_lost", "the_answer_is_to_another_message", "printing_the_adapter",
	} {
		if !strings.Contains(string(out), "--- FAIL: TestNaive/"+name+" ") {
			t.Errorf("%s lets a naive adapter pass", name)
		}
	}
	if t.Failed() {
		t.Logf("%.20000s", out)
	}
}

package rest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

func storable(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// receiver answers every request with the same bytes, which need not be HTTP, and hangs
// up.
type receiver struct {
	net.Listener
	mu     sync.Mutex
	answer []byte
}

func newReceiver(f *testing.F) *receiver {
	f.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	r := &receiver{Listener: l}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() { r.serve(conn) })
		}
	})
	f.Cleanup(func() {
		_ = l.Close()
		served.Wait()
	})
	return r
}

func (r *receiver) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, req.Body)
	r.mu.Lock()
	answer := r.answer
	r.mu.Unlock()
	_, _ = conn.Write(answer)
}

func (r *receiver) set(answer []byte) {
	r.mu.Lock()
	r.answer = answer
	r.mu.Unlock()
}

// FuzzDeliver uses any bytes as an answer. Each attempt soon has a result that can be
// recorded, and nothing of the request is in it.
func FuzzDeliver(f *testing.F) {
	const (
		token = "tok-4711-secret"
		key   = "qk-0815-secret"
		name  = "Zebulon Quixote-Roe"
	)
	for _, seed := range answers(token, key, name) {
		f.Add(seed)
	}
	court := newReceiver(f)
	a, err := New(Config{
		URL: "http://" + court.Addr().String() + "/h/{key}?api_key=" + key, ExternalID: Source{Path: "/id"}, Timeout: 20 * time.Second,
		Auth: adapters.Credentials{Kind: adapters.Bearer, Token: token},
	})
	if err != nil {
		f.Fatal(err)
	}
	msg := adapters.Message{ID: "e-1", IdempotencyKey: "e-1", Type: "t", Key: "7", Body: []byte(`{"name":"` + name + `"}`)}
	f.Fuzz(func(t *testing.T, answer []byte) {
		court.set(answer)
		began := time.Now()
		receipt, err := a.Deliver(t.Context(), msg)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("took %s", took)
		}
		if err == nil && receipt.Code == "" || receipt.Code != "" && !storable(receipt.Code) {
			t.Errorf("%+v, %v", receipt, err)
		}
		if err != nil {
			text := err.Error()
			if len(text) > 500 || !storable(text) {
				t.Errorf("%q cannot be recorded", text)
			}
			for _, hidden := range []string{token, key, name} {
				if strings.Contains(text, hidden) {
					t.Errorf("%q shows %q", text, hidden)
				}
			}
		}
		if wait := adapters.RetryDelay(err); wait < 0 || wait > exchange.MaxRetryAfter {
			t.Errorf("wait of %s", wait)
		}
		if ref := receipt.Ref; ref != nil && (err != nil ||
			ref.ExternalID != "" && (!storable(ref.ExternalID) || len(ref.ExternalID) > adapters.MaxRef) || ref.ETag != "" && !adapters.ValidETag(ref.ETag)) {
			t.Errorf("reference %+v, %v", ref, err)
		}
	})
}

// answers are good and bad ones; some repeat what they were sent.
func answers(repeated ...string) [][]byte {
	var all [][]byte
	add := func(status int, header, body string) {
		all = append(all, fmt.Appendf(nil, "HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n%s", status, header, len(body), body))
	}
	zipped := func(body string) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = io.WriteString(z, body) // into memory
		_ = z.Close()
		return b.String()
	}
	const gzipped = "Content-Encoding: gzip\r\n"
	for _, status := range []int{200, 201, 202, 204, 400, 401, 403, 404, 409, 412, 422, 429, 500, 503} {
		add(status, "ETag: \"v3\"\r\nRetry-After: 7\r\n", `{"id":"CAL-1","title":"bad \u001b[31mroom\u0000","type":"https://court.example/p?x"}`)
	}
	for _, s := range repeated {
		add(422, "", `{"errCode":"7","errorDesc":"`+s+`","errLinkId":"`+strings.ToUpper(s)+`"}`)
		add(307, "Location: https://"+strings.ReplaceAll(s, " ", "")+"@"+strings.ReplaceAll(s, " ", "")+".example/"+"\r\n", "")
	}
	add(503, "Retry-After: Mon, 01 Mar 9999 10:00:00 GMT\r\nDate: Mon, 01 Mar 2027 10:00:00 GMT\r\n", "<html>")
	add(201, gzipped, zipped(`{"id":12345678901234567890}`))
	add(201, gzipped, zipped(`{"id":"`+strings.Repeat(" ", 1<<20)))
	add(422, gzipped, zipped(`{"title":"x"}`)[:20])
	add(201, gzipped, "not gzip")
	add(201, "ETag: \"a\x00b\"\r\n", `{"id":"\ud800"}`)
	add(201, "ETag: \""+strings.Repeat("x", 600)+"\"\r\n", `{"id":"`+strings.Repeat("x", 600)+`"}`)
	for _, raw := range []string{
		"", "HTTP/1.1", "HTTP/1.1 201 X\r\n", "HTTP/1.1 201 X\r\nContent-Length: 90\r\n\r\n{", "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 100 X\r\n\r\n",
		"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc", "HTTP/1.1 201 X\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"id\"\r\nzz\r\n",
		"HTTP/1.0 200 \x1b[31m\r\n\r\n{\"id\":\"1\"}", "HTTP/1.1 999 X\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 200 X\r\nA: " + strings.Repeat("x", 70<<10) + "\r\n\r\n",
		"HTTP/1.1 103 X\r\nLink: a\r\n\r\nHTTP/1.1 201 X\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 000 X\r\n\r\n", "HTTP/1.1 204 X\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 X\r\n\r\n" + strings.Repeat("x", 100<<10),
	} {
		all = append(all, []byte(raw))
	}
	return all
}

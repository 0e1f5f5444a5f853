package main

import (
	"bufio"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"slices"
	"strings"
	"sync"
	"testing"
)

// repeater is a receiver that repeats the request that it got, in every place of
// its answers. The first step of the path says what it does.
type repeater struct {
	*httptest.Server
	canaries []canary
	finder   *finder
	answers  map[string]answer

	mu      sync.Mutex
	turns   map[string]int
	arrived map[string]bool // names of the canaries that arrived
	most    int             // most texts to repeat in one request
}

// answer writes the receiver's bytes, which need not be HTTP.
type answer func(conn *bufio.Writer, said material)

// material is what a receiver may repeat.
type material struct {
	whole string   // the request as it came
	cores []string // of the canaries in it
	words string   // one of them, spelled in one way
	turn  int      // rises with each request
}

func newRepeater(t *testing.T, canaries []canary) *repeater {
	t.Helper()
	p := &repeater{canaries: canaries, finder: newFinder(canaries...), answers: map[string]answer{}, turns: map[string]int{}, arrived: map[string]bool{}}
	p.Server = httptest.NewServer(p)
	t.Cleanup(p.Close)
	return p
}

// secure returns a second, TLS, address of the receiver.
func (p *repeater) secure(t *testing.T, adjust func(*httptest.Server)) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(p)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	adjust(s)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (p *repeater) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	dump, err := httputil.DumpRequest(r, true)
	if err != nil {
		panic(http.ErrAbortHandler) // nobody listens any more
	}
	manner, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	respond := p.answers[manner]
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil || respond == nil {
		panic(http.ErrAbortHandler)
	}
	defer conn.Close()
	respond(buffered.Writer, p.listen(manner, string(dump), r.Header.Get("Authorization")))
	_ = buffered.Flush()
	if c, ok := conn.(*net.TCPConn); ok {
		_ = c.CloseWrite()
	}
}

// listen records a request, and decides what the answer repeats.
func (p *repeater) listen(manner, whole, authorization string) material {
	found := map[string]bool{}
	for s := range p.finder.find(whole) {
		found[s.name] = true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	said := material{whole: whole, turn: p.turns[manner]}
	p.turns[manner]++
	for _, canary := range p.canaries {
		if found[canary.name] {
			p.arrived[canary.name] = true
			said.cores = append(said.cores, canary.core)
		}
	}
	texts := said.cores
	if _, credentials, ok := strings.Cut(authorization, " "); ok {
		texts = append(slices.Clone(texts), credentials)
	}
	p.most = max(p.most, len(texts))
	if n := len(texts); n > 0 {
		ways := spellings()
		said.words = ways[said.turn/n%len(ways)](texts[said.turn%n])
	}
	return said
}

func (p *repeater) missing() (names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, canary := range p.canaries {
		if !p.arrived[canary.name] {
			names = append(names, canary.name)
		}
	}
	return names
}

// objects answers with a status. It repeats the request in its headers and in a
// body, which may have one of the shapes from which adapters take reasons.
func objects(status int, headers ...string) answer {
	return func(w *bufio.Writer, said material) {
		bodies := []any{
			map[string]any{"title": said.words, "type": "https://" + said.words, "instance": "/" + said.words, "detail": said.whole},
			map[string]any{"errCode": "1", "errorDesc": said.words, "errLinkId": said.words},
			map[string]any{"error": "invalid_request", "error_codes": []any{said.words}, "error_description": said.words},
			map[string]any{"statusCode": status, "message": "not accepted: " + said.words},
			map[string]any{"message": said.whole},
			"free text: " + said.whole,
		}
		body, _ := json.Marshal(bodies[said.turn%len(bodies)])
		all := strings.Join(said.cores, "-")
		fmt.Fprintf(w, "HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Type: application/problem+json; of=%s\r\nContent-Length: %d\r\n", status, all, all, len(body))
		fmt.Fprintf(w, "Location: https://user:%s@%s.example/%[1]s?q=%[1]s\r\nWWW-Authenticate: Bearer realm=%[1]s\r\n", all, said.words)
		for _, h := range headers {
			fmt.Fprintf(w, "%s\r\n", h)
		}
		fmt.Fprintf(w, "X-Heard: %s\r\n\r\n%s", all, body)
	}
}

// faults answers with a SOAP fault of either version, which repeats the request
// everywhere.
func faults(w *bufio.Writer, said material) {
	var whole, words strings.Builder
	_ = xml.EscapeText(&whole, []byte(said.whole))
	_ = xml.EscapeText(&words, []byte(said.words))
	bodies := []string{
		"<faultcode>S:Client</faultcode><faultstring>%[1]s</faultstring><faultactor>%[1]s</faultactor><detail>%[2]s</detail>",
		"<faultcode>S:%[1]s</faultcode><faultstring>%[2]s</faultstring>", "<faultcode>%[1]s</faultcode>",
		"<S:Code><S:Value>S:Sender</S:Value><S:Subcode><S:Value>S:%[1]s</S:Value></S:Subcode></S:Code><S:Reason><S:Text>no %[1]s</S:Text></S:Reason><S:Detail>%[2]s</S:Detail>",
		"<S:Code><S:Value>%[1]s</S:Value></S:Code><S:Reason><S:Text>%[2]s</S:Text></S:Reason>",
	}
	fault := fmt.Sprintf(bodies[said.turn%len(bodies)]+"<!-- %[1]s %[2]s -->", words.String(), whole.String())
	body := `<S:Envelope xmlns:S="http://schemas.xmlsoap.org/soap/envelope/"><S:Body><S:Fault>` + fault + `</S:Fault></S:Body></S:Envelope>`
	fmt.Fprintf(w, "HTTP/1.1 500 %s\r\nConnection: close\r\nContent-Type: text/xml; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s", strings.Join(said.cores, "-"), len(body), body)
}

// accepts answers 201 with an id.
func accepts(w *bufio.Writer, said material) {
	body, _ := json.Marshal(map[string]any{"id": fmt.Sprint("C-", said.turn), "you_said": said.whole})
	fmt.Fprintf(w, "HTTP/1.1 201 %s\r\nConnection: close\r\nContent-Length: %d\r\nX-Heard: %[1]s\r\n\r\n%[3]s", strings.Join(said.cores, "-"), len(body), body)
}

// says answers with bytes that are not HTTP, or not a whole answer. Each % is
// replaced with the request.
func says(text string) answer {
	return func(w *bufio.Writer, said material) {
		_, _ = w.WriteString(strings.ReplaceAll(text, "%", strings.Join(said.cores, "-")))
	}
}

// issues answers like a token endpoint that accepts the request.
func issues(token string) answer {
	return func(w *bufio.Writer, _ material) {
		body, _ := json.Marshal(map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": 3600})
		fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
}

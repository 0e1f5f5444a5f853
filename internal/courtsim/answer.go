package courtsim

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"time"
)

// reply is an answer before a fault changes it.
type reply struct {
	status      int
	contentType string
	header      map[string]string
	body        []byte
	detail      string // of a problem
	result      string // of a SOAP message: STORED, DUPLICATE, Fault Server …

	accepted  bool
	duplicate bool
	id        string // the booking's
}

func jsonReply(status int, v any) reply {
	b, err := json.Marshal(v)
	if err != nil {
		return problem(http.StatusInternalServerError, "internal", "The answer could not be written as JSON.")
	}
	return reply{status: status, contentType: "application/json", body: b}
}

// problem is an error answer of RFC 9457.
func problem(status int, kind, detail string) reply {
	rep := jsonReply(status, struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{"https://courtsim.invalid/problems/" + kind, http.StatusText(status), status, detail})
	rep.contentType, rep.detail = "application/problem+json", detail
	if status == http.StatusUnauthorized {
		rep.header = map[string]string{"WWW-Authenticate": "Bearer"}
	}
	return rep
}

func writeReply(w http.ResponseWriter, rep reply) {
	h := w.Header()
	if rep.contentType != "" {
		h.Set("Content-Type", rep.contentType)
	}
	for k, v := range rep.header {
		h.Set(k, v)
	}
	w.WriteHeader(rep.status)
	_, _ = w.Write(rep.body) // the caller may have closed the connection; the ledger has the entry
}

// answer writes rep as the fault says. To cut the connection it panics with
// [http.ErrAbortHandler], as net/http requires.
func (c *Court) answer(w http.ResponseWriter, r *http.Request, rep reply, do Action) {
	c.wait(r, max(do.Hang, do.Delay))
	if do.silent() {
		panic(http.ErrAbortHandler)
	}
	if do.Body != nil {
		rep.body = []byte(*do.Body)
	}
	do.setHeaders(w.Header())
	switch {
	case do.Drop == DropDuring:
		w.Header().Set("Content-Length", strconv.Itoa(len(rep.body)+1))
		rep.body = rep.body[:len(rep.body)/2]
		writeReply(w, rep)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case do.Drip > 0 || do.Repeat > 0 || do.Gzip:
		c.stream(w, r, rep, do)
	default:
		writeReply(w, rep)
	}
}

// stream writes a body slowly, several times or compressed.
func (c *Court) stream(w http.ResponseWriter, r *http.Request, rep reply, do Action) {
	body := rep.body
	rep.body = nil
	writeReply(w, rep)
	var out io.Writer = w
	if do.Gzip {
		z := gzip.NewWriter(w)
		defer z.Close()
		out = z
	}
	for range max(do.Repeat, 1) {
		if do.Drip == 0 {
			if _, err := out.Write(body); err != nil {
				return
			}
			continue
		}
		for i := range body {
			if _, err := out.Write(body[i : i+1]); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
			if !c.wait(r, do.Drip) {
				panic(http.ErrAbortHandler)
			}
		}
	}
}

// wait pauses for d. It returns false if the caller closes the connection or the court
// closes.
func (c *Court) wait(r *http.Request, d Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(time.Duration(d))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
	case <-c.closing:
	}
	return false
}

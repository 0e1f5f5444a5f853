package exchange

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// Answer is what a receiver said.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte // at most MaxAnswer bytes, or Request.Longest; neither cleaned nor redacted

	// Partial says that Body is not complete: it was longer than may be, could not
	// be decompressed, or was cut.
	Partial bool

	// Cut says why the body ended early: the connection broke or the timeout ended. A
	// later answer to the same request may be complete. Cut is nil for an answer that
	// is complete, too long or garbled.
	Cut error
}

// Code returns the status for a receipt, such as "HTTP 201".
func (a Answer) Code() string { return "HTTP " + strconv.Itoa(a.Status) }

// OK reports whether the status is one of the 2xx.
func (a Answer) OK() bool { return a.Status >= 200 && a.Status <= 299 }

func readAnswer(ctx context.Context, res *http.Response, longest int64) Answer {
	a := Answer{Status: res.StatusCode, Header: res.Header}
	if a.Status == http.StatusSwitchingProtocols {
		return a // its body is the connection itself, without an end
	}
	var body bytes.Buffer
	_, err := io.Copy(&body, io.LimitReader(res.Body, longest+1))
	if int64(body.Len()) > longest {
		body.Truncate(int(longest))
		a.Partial, err = true, nil
	}
	a.Body = body.Bytes()
	if err != nil {
		a.Partial = true
		if !garbled(err) {
			a.Cut = Describe(ctx, err)
		}
	}
	return a
}

// IsRef reports whether an id of an answer can be stored and sent back. An id with a
// replacement character has lost some of its characters.
func IsRef(id string) bool {
	return id != "" && len(id) <= adapters.MaxRef && placeholder.Plain(id) == nil && !strings.ContainsRune(id, utf8.RuneError)
}

// garbled reports whether err comes from decompressing a body that has arrived.
func garbled(err error) bool {
	var corrupt flate.CorruptInputError
	return errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) || errors.As(err, &corrupt)
}

package courtsim

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"
)

// Entry is one request that the court read.
type Entry struct {
	Seq            int64     `json:"seq"` // from 1, in the order of reading
	Time           time.Time `json:"time"`
	Method         string    `json:"method"`
	Path           string    `json:"path"`
	Operation      string    `json:"operation,omitempty"`       // over SOAP
	IdempotencyKey string    `json:"idempotency_key,omitempty"` // without quotes; over SOAP wsa:MessageID without urn:uuid:
	CaseReference  string    `json:"case_reference,omitempty"`  // from the body, or of the booking in the path
	BodySHA256     string    `json:"body_sha256"`               // hex
	Status         int       `json:"status"`                    // answered; 0 if the connection was cut without one
	Result         string    `json:"result,omitempty"`          // of a SOAP answer: STORED, DUPLICATE, Fault Server …
	Accepted       bool      `json:"accepted"`                  // the calendar changed because of it
	Duplicate      bool      `json:"duplicate"`                 // its idempotency key had been accepted before
	Fault          int       `json:"fault,omitempty"`           // number of the script's rule that struck, from 1
}

// ledger keeps the newest entries, as many as keep, or all if keep is 0.
type ledger struct {
	keep    int
	seq     int64
	entries []Entry
	out     io.Writer
	err     error // first failure of out
}

func (l *ledger) append(e Entry) {
	l.seq++
	e.Seq = l.seq
	l.entries = append(l.entries, e)
	// It removes half of the entries at once, so that copying is rare.
	if l.keep > 0 && len(l.entries) >= 2*l.keep {
		l.entries = slices.Clone(l.entries[len(l.entries)-l.keep:])
	}
	if l.out == nil || l.err != nil {
		return
	}
	line, err := json.Marshal(e)
	if err == nil {
		_, err = l.out.Write(append(line, '\n'))
	}
	if err != nil {
		l.err = fmt.Errorf("write ledger entry %d: %w; the file is incomplete from there", e.Seq, err)
	}
}

func (l *ledger) all() []Entry {
	entries := l.entries
	if l.keep > 0 && len(entries) > l.keep {
		entries = entries[len(entries)-l.keep:]
	}
	return append([]Entry{}, entries...) // never nil: JSON shows []
}

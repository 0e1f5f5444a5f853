package outbox

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// connectError is the reason why no connection could be made, in one line.
type connectError struct {
	text string
	err  error
}

func (e *connectError) Error() string { return e.text }
func (e *connectError) Unwrap() error { return e.err }

// plain makes one line of the error of a failed connection. The driver's text has a line
// for each attempt.
func plain(err error) error {
	refused, ok := errors.AsType[*pgconn.ConnectError](err)
	if _, done := errors.AsType[*connectError](err); !ok || done {
		return err
	}
	c := refused.Config
	return &connectError{fmt.Sprintf("cannot connect to database %q as %s: %s", c.Database, c.User, ConnectReason(refused)), err}
}

// ConnectReason returns the reason why a connection could not be made, once for each
// address. If the URL prefers TLS but does not require it, the driver tries each address
// twice. Only the attempt without TLS has the real reason.
func ConnectReason(err *pgconn.ConnectError) string {
	var addresses []string
	reasons := map[string]string{}
	for _, attempt := range attempts(err.Unwrap()) {
		address, reason := "", attempt
		if m := attemptText.FindStringSubmatch(attempt); m != nil {
			address, reason = m[1], m[2]
		}
		reason = repeated.ReplaceAllString(reason, "")
		if before, ok := reasons[address]; !ok {
			addresses = append(addresses, address)
		} else if strings.HasPrefix(reason, tlsFailed) && !strings.HasPrefix(before, tlsFailed) {
			continue
		}
		reasons[address] = reason
	}
	var texts []string
	for _, address := range addresses {
		text := reasons[address]
		if address != "" {
			text = address + ": " + text
		}
		if !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	return strings.Join(texts, "; ")
}

const tlsFailed = "tls error: "

var (
	// attemptText is the driver's text about an attempt: address (host): reason.
	attemptText = regexp.MustCompile(`(?s)^(\S+) \([^)]*\): (.*)$`)
	// repeated are parts of a reason that repeat the address, or name a new port each time.
	repeated = regexp.MustCompile(`^(dial error: |server error: |hostname resolving error: )|dial \w+ \S+: (connect: )?|(read|write) \w+ \S+->\S+: (read: |write: )?`)
)

func attempts(err error) []string {
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		var texts []string
		for _, e := range several.Unwrap() {
			texts = append(texts, attempts(e)...)
		}
		return texts
	}
	if err == nil {
		return nil
	}
	return strings.Split(strings.TrimPrefix(err.Error(), "hostname resolving error: "), "\n")
}

// Cause returns a text that is the same for errors with the same cause: the SQLSTATE or
// the text of the innermost error. The texts of the outer errors differ in ports and
// names.
func Cause(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	for {
		switch x := err.(type) { //nolint:errorlint // this loop unwraps the chain itself
		case interface{ Unwrap() error }:
			if inner := x.Unwrap(); inner != nil {
				err = inner
				continue
			}
		case interface{ Unwrap() []error }:
			if inner := x.Unwrap(); len(inner) > 0 {
				err = inner[len(inner)-1]
				continue
			}
		}
		return strings.TrimSpace(err.Error())
	}
}

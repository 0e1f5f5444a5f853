package exchange

import (
	"net/http"
	"strings"
	"time"
)

// MaxRetryAfter is the longest wait that a receiver can ask for.
const MaxRetryAfter = time.Hour

// RetryAfter reads the wait that an answer asks for (RFC 9110, 10.2.3), in seconds or
// as a date. A date is compared with the answer's own Date, so that the receiver's
// clock does not matter. A date in the past means no wait. The result is at most
// [MaxRetryAfter]. ok is false if there is no usable value.
func RetryAfter(h http.Header, now func() time.Time) (wait time.Duration, ok bool) {
	value := strings.TrimSpace(h.Get("Retry-After"))
	if value == "" {
		return 0, false
	}
	if strings.Trim(value, "0123456789") == "" {
		return seconds(value), true
	}
	until, err := http.ParseTime(value)
	if err != nil {
		return 0, false
	}
	from, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		from = now()
	}
	return min(max(until.Sub(from), 0), MaxRetryAfter), true
}

// seconds converts any number of digits.
func seconds(digits string) time.Duration {
	var n time.Duration
	for _, d := range digits {
		n = n*10 + time.Duration(d-'0')
		if n*time.Second >= MaxRetryAfter {
			return MaxRetryAfter
		}
	}
	return n * time.Second
}

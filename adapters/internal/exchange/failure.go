package exchange

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// timeoutError is the cause of a context that ended by the exchange's own timeout.
type timeoutError struct{ after time.Duration }

func (e *timeoutError) Error() string { return fmt.Sprintf("the timeout of %s is up", e.after) }

// Is makes the timeout a [context.DeadlineExceeded] for callers.
func (e *timeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// WithTimeout is [context.WithTimeout] with a cause that names the timeout.
func WithTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, &timeoutError{after: d})
}

// TimedOut reports whether a timeout of [WithTimeout] ended ctx.
func TimedOut(ctx context.Context) bool {
	var timeout *timeoutError
	return errors.As(context.Cause(ctx), &timeout)
}

// noAnswer gives the error of an exchange without an answer a class, and a text that is
// safe to store.
func noAnswer(ctx context.Context, r Request, p *progress, err error) error {
	sent, err := p.sent(ctx), p.alert(err)
	what := r.Method + " " + r.Target
	if refused, ok := errors.AsType[*addressError](err); ok {
		return adapters.Permanent(fmt.Errorf("%s: nothing was sent: %w", what, refused))
	}
	if refused, ok := errors.AsType[*proxyError](err); ok {
		return refused.classify(fmt.Errorf("%s: nothing was sent: %w", what, refused))
	}
	f := Failure{What: what, Sent: sent, Asked: p.asked.Load()}
	proxy := p.proxy.Load()
	if proxy == nil || sent || Exhausted(err) {
		return f.Error(ctx, err)
	}
	f.Via = *proxy
	failed := f.Error(ctx, err)
	if unreachable(err) && ctx.Err() == nil {
		return adapters.Common(failed)
	}
	return failed
}

// Failure is an exchange without an answer, of any protocol.
type Failure struct {
	What  string // what was sent and to whom, for messages; nothing from data
	Sent  bool   // the receiver may have got it
	Asked bool   // the receiver asked for a client certificate
	Via   string // the proxy that was used
}

// Error gives err a class, and a text that is safe to store. It is [adapters.Unknown] if the
// receiver may have the message, otherwise transient. If the receiver refused the client
// certificate, or is not trusted, it is [adapters.Auth].
func (f Failure) Error(ctx context.Context, err error) error {
	why := Describe(ctx, err)
	if f.Via != "" {
		why = fmt.Errorf("%w (proxy %s)", why, f.Via)
	}
	if alert, ok := refusedCertificate(err, f.Asked); ok {
		return adapters.Auth(fmt.Errorf("%s: the receiver refused the client certificate, or the lack of one (TLS alert: %s): check tls.cert_file", f.What, alert))
	}
	switch {
	case f.Sent:
		return adapters.Unknown(fmt.Errorf("%s: sent, but no answer: %w", f.What, why))
	case Exhausted(err):
		return adapters.Local(fmt.Errorf("%s: nothing was sent: %w", f.What, Exhaustion(why)))
	case untrusted(err):
		return adapters.Auth(fmt.Errorf("%s: nothing was sent: %w", f.What, why))
	}
	return adapters.Classify(adapters.ClassTransient, fmt.Errorf("%s: nothing was sent: %w", f.What, why))
}

// untrusted reports whether err is about the receiver's certificate. No message is the
// cause.
func untrusted(err error) bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](err)
	return ok
}

// Exhausted is [adapters.Exhausted], also for a name lookup, whose error keeps only the
// text of its cause.
func Exhausted(err error) bool {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return slices.ContainsFunc(lookupNeeds, func(e syscall.Errno) bool { return strings.HasSuffix(dns.Err, e.Error()) })
	}
	return adapters.Exhausted(err)
}

// Exhaustion says what to do about an error that is [Exhausted].
func Exhaustion(why error) error {
	return fmt.Errorf("this machine has no file descriptor, local port or memory left (%w): raise the limits of the process, such as ulimit -n", why)
}

// lookupNeeds are the errors of a machine that lacks what a name lookup needs.
var lookupNeeds = []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM}

// Describe returns an error whose text is safe to store. It wraps only the error of a
// context that ended. Other errors of net/http have URLs and bytes from the receiver in
// their texts.
func Describe(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		var timeout *timeoutError
		if cause := context.Cause(ctx); errors.As(cause, &timeout) {
			return timeout
		}
		return fmt.Errorf("stopped by the relay: %w", ctx.Err())
	}
	return errors.New(describe(err))
}

func describe(err error) string {
	var (
		dns       *net.DNSError
		untrusted *tls.CertificateVerificationError
		wrongHost x509.HostnameError
		expired   x509.CertificateInvalidError
		stranger  x509.UnknownAuthorityError
		record    tls.RecordHeaderError
		op        *net.OpError
		protocol  textproto.ProtocolError
		errno     syscall.Errno
	)
	if refused, ok := errors.AsType[*proxyError](err); ok {
		return refused.Error()
	}
	if errors.As(err, &op) && op.Op == proxyConnect {
		return "the proxy cannot be reached: " + describe(op.Err)
	}
	switch {
	case errors.As(err, &dns):
		return "DNS: " + adapters.Clean(dns.Err, maxReason)
	case errors.As(err, &wrongHost):
		return "TLS: the receiver's certificate is for another host name"
	case errors.As(err, &expired) && expired.Reason == x509.Expired:
		return "TLS: the receiver's certificate has expired or is not yet valid"
	case errors.As(err, &stranger):
		return "TLS: the receiver's certificate comes from an unknown authority: check tls.ca_file"
	case errors.As(err, &untrusted):
		return "TLS: the receiver's certificate is not trusted"
	case errors.As(err, &record):
		return "TLS: the receiver does not speak TLS on this port"
	case errors.As(err, &op) && op.Op == remoteError && strings.Contains(op.Err.Error(), "no application protocol"):
		return "TLS: the receiver does not speak HTTP/1.1, perhaps only HTTP/2: ask its operator for an address that does"
	case errors.As(err, &op) && op.Op == remoteError:
		return "TLS: the receiver ended the connection: " + adapters.Clean(op.Err.Error(), maxReason)
	case errors.As(err, &errno):
		return errno.Error()
	case strings.Contains(err.Error(), `malformed HTTP response "\x00\x00`): // a frame of HTTP/2 (RFC 9113, 3.4)
		return "the answer is HTTP/2, but Lockstep speaks HTTP/1.1: ask the receiver's operator for an address that does"
	case errors.As(err, &protocol), strings.Contains(err.Error(), "malformed"):
		return "a malformed answer"
	case strings.Contains(err.Error(), "response headers exceeded"):
		return fmt.Sprintf("the answer's headers are longer than %d bytes", maxAnswerHeader)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		strings.Contains(err.Error(), "server closed"):
		return "the connection was closed"
	case errors.As(err, &op):
		return "the connection failed (" + op.Op + ")"
	default:
		return "the exchange failed"
	}
}

// remoteError is the Op of the [net.OpError] with which crypto/tls reports an alert
// from the other side. The type of the alert itself is not exported.
const remoteError = "remote error"

// refusedCertificate reports whether err is a TLS alert about our certificate. With TLS 1.3
// it arrives after the request was written (RFC 8446, 6.2), but the receiver did not
// process the request. With TLS 1.2 a missing certificate is only a handshake failure
// (RFC 5246, 7.4.6), which counts if the receiver asked for one.
func refusedCertificate(err error, asked bool) (alert string, ok bool) {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != remoteError {
		return "", false
	}
	text := strings.TrimPrefix(op.Err.Error(), "tls: ")
	switch text {
	case "bad certificate", "unsupported certificate", "revoked certificate", "expired certificate",
		"unknown certificate", "unknown certificate authority", "access denied", "certificate required":
		return text, true
	case "handshake failure":
		return text, asked
	}
	return "", false
}

package adapters

import (
	"errors"
	"slices"
	"syscall"
	"time"
)

// classified marks an error with the class that decides what happens next.
type classified struct {
	class Class
	after time.Duration // wait that the receiver asked for; 0 if it did not ask
	err   error
}

func (e *classified) Error() string { return e.err.Error() }
func (e *classified) Unwrap() error { return e.err }

func classify(class Class, err error, after time.Duration) error {
	if err == nil {
		return nil
	}
	return &classified{class: class, after: after, err: err}
}

// Classify marks err with class; nil stays nil. Use it if the class comes from a table.
// Otherwise use the function that is named for the class.
func Classify(class Class, err error) error { return classify(class, err, 0) }

// RetryAfter marks a transient error after which the receiver asked to wait for d.
func RetryAfter(err error, d time.Duration) error { return classify(ClassTransient, err, d) }

// common marks an error that concerns all destinations.
type common struct{ error }

func (e common) Unwrap() error { return e.error }

// Common says that err concerns all destinations of the adapter, such as an error of
// the token endpoint. The relay then holds the whole sync, not only the message's
// destination. nil stays nil, and the class does not change.
func Common(err error) error {
	if err == nil {
		return nil
	}
	return common{err}
}

// IsCommon reports whether err was marked by [Common].
func IsCommon(err error) bool {
	_, ok := errors.AsType[common](err)
	return ok
}

// redacted marks an error whose text is safe to show.
type redacted struct{ error }

func (e redacted) Unwrap() error { return e.error }

// Redacted says that the text of err has no value of the message and no secret, except
// in our own words: text from outside went through [Redact]. The relay then shows it as
// it is. It redacts the text of any other error. nil stays nil.
func Redacted(err error) error {
	if err == nil {
		return nil
	}
	return redacted{err}
}

// IsRedacted reports whether err was marked by [Redacted].
func IsRedacted(err error) bool {
	_, ok := errors.AsType[redacted](err)
	return ok
}

// Throttled says that the receiver wants no requests for d. The relay holds the
// message's destination, or the whole sync if it has one destination. If d is 0, the
// relay waits for the delay of its backoff.
func Throttled(err error, d time.Duration) error { return classify(ClassThrottled, err, d) }

// Auth says that the credentials were refused. An adapter that caches a token
// drops it before it returns Auth.
func Auth(err error) error { return classify(ClassAuth, err, 0) }

// Forbidden says that this request was refused although the credentials were understood
// (HTTP 403). As for [Auth], the relay finds out whether the receiver refuses only this
// key or all of them.
func Forbidden(err error) error { return classify(ClassForbidden, err, 0) }

// Unexplained says that the answer may come from a gateway in front of the receiver: it
// is not in a form of the receiver's protocol. It counts against the receiver, not
// against the message. If only one key gets such answers, repeatedly, it counts as
// [Permanent]. If err is [Unknown], so is the outcome.
func Unexplained(err error) error { return classify(ClassUnexplained, err, 0) }

// Local says that nothing was sent because this machine lacked something, such as a
// file descriptor. An unmarked error is local too if it wraps EMFILE, ENFILE,
// EADDRNOTAVAIL, ENOBUFS or ENOMEM.
func Local(err error) error { return classify(ClassLocal, err, 0) }

// Permanent says that the receiver will never accept this message.
func Permanent(err error) error { return classify(ClassPermanent, err, 0) }

// Conflict says that the receiver has another state of the key (HTTP 409, 412).
func Conflict(err error) error { return classify(ClassConflict, err, 0) }

// Unknown says that the receiver may have the message: no answer came, or one that does
// not say so.
func Unknown(err error) error { return classify(ClassUnknown, err, 0) }

// unclear marks an unknown result of an attempt that the receiver answered.
type unclear struct{ error }

func (e unclear) Unwrap() error { return e.error }

// Unclear is [Unknown] for an answer of the receiver itself that does not say whether it
// has the message, such as a success without the expected id. The relay sends the
// message again only a few times, because each time the receiver may accept it.
func Unclear(err error) error {
	if err == nil {
		return nil
	}
	return Unknown(unclear{err})
}

// IsUnclear reports whether err was marked by [Unclear].
func IsUnclear(err error) bool {
	_, ok := errors.AsType[unclear](err)
	return ok
}

// IsUnknown reports whether err, or an error that it wraps, was marked by [Unknown].
func IsUnknown(err error) bool {
	for err != nil {
		c, ok := errors.AsType[*classified](err)
		if !ok || c.class == ClassUnknown {
			return ok
		}
		err = c.err
	}
	return false
}

// ClassOf returns the class of err, and [ClassDelivered] for nil. If err has several
// marks, the outermost counts. An unmarked error is [ClassLocal] if this machine lacked
// something (see [Exhausted]), otherwise [ClassTransient].
func ClassOf(err error) Class {
	if err == nil {
		return ClassDelivered
	}
	if c, ok := errors.AsType[*classified](err); ok {
		return c.class
	}
	if Exhausted(err) {
		return ClassLocal
	}
	return ClassTransient
}

// exhausted are the errors of a machine that has run out of something: file descriptors
// of the process or the system, local ports, buffers, memory.
var exhausted = []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.EADDRNOTAVAIL, syscall.ENOBUFS, syscall.ENOMEM}

// Exhausted reports whether err wraps the error of a machine without a free file
// descriptor, local port or memory.
func Exhausted(err error) bool {
	errno, ok := errors.AsType[syscall.Errno](err)
	return ok && slices.Contains(exhausted, errno)
}

// RetryDelay returns how long the receiver asked to wait, 0 if it did not.
func RetryDelay(err error) time.Duration {
	if c, ok := errors.AsType[*classified](err); ok {
		return c.after
	}
	return 0
}

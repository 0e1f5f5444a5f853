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
	after time.Duration // that the receiver asked to wait; 0 if it did not ask
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

// Classify marks err with class; nil stays nil. Use it where the class comes
// from a table; the named functions read better elsewhere.
func Classify(class Class, err error) error { return classify(class, err, 0) }

// RetryAfter marks a transient error after which the receiver asked to wait for d.
func RetryAfter(err error, d time.Duration) error { return classify(ClassTransient, err, d) }

// common marks an error that is about all destinations.
type common struct{ error }

func (e common) Unwrap() error { return e.error }

// Common says that err is about all destinations of the adapter alike, such as an
// error of the token endpoint: the relay holds the whole sync for it, and not the
// destination of the message. nil stays nil, and the class stays as it is.
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

// Throttled says that the receiver wants the destination of the message to wait for
// d, which is the whole sync where that has one destination. 0 leaves the delay to
// the backoff.
func Throttled(err error, d time.Duration) error { return classify(ClassThrottled, err, d) }

// Auth says that the credentials were refused. An adapter that caches a token
// drops it before it returns Auth.
func Auth(err error) error { return classify(ClassAuth, err, 0) }

// Forbidden says that this request was refused although the credentials were
// understood (HTTP 403). The relay finds out whether one row or all are meant,
// as it does for [Auth].
func Forbidden(err error) error { return classify(ClassForbidden, err, 0) }

// Unexplained says that the answer may come from something in front of the
// receiver, such as a gateway: it refuses, and gives no reason in a form that the
// receiver's protocol has. It counts against the receiver's health, not against
// the message, until one key alone gets such answers again and again.
func Unexplained(err error) error { return classify(ClassUnexplained, err, 0) }

// Local says that this machine lacked something that the attempt needed, such as
// a file descriptor, and that nothing was sent. An error without a mark that wraps
// EMFILE, ENFILE, EADDRNOTAVAIL, ENOBUFS or ENOMEM is local too.
func Local(err error) error { return classify(ClassLocal, err, 0) }

// Permanent says that the same message can never be accepted.
func Permanent(err error) error { return classify(ClassPermanent, err, 0) }

// Conflict says that the receiver holds something else for the key (HTTP 409, 412).
func Conflict(err error) error { return classify(ClassConflict, err, 0) }

// Unknown says that the request may have reached the receiver, but no answer came.
func Unknown(err error) error { return classify(ClassUnknown, err, 0) }

// ClassOf returns the class of err, and [ClassDelivered] for nil. The outermost mark
// counts. An error without a mark is [ClassLocal] if this machine lacked something,
// otherwise [ClassTransient].
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

// exhausted are the errors of a machine that has no more of something: file
// descriptors of the process and of the system, local ports, buffers, memory.
var exhausted = []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.EADDRNOTAVAIL, syscall.ENOBUFS, syscall.ENOMEM}

// Exhausted reports whether err wraps an error that says that this machine has
// no file descriptor, local port or memory left.
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

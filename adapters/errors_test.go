package adapters_test

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

func TestClassOf(t *testing.T) {
	cause := errors.New("cause")
	for name, tc := range map[string]struct {
		err   error
		class adapters.Class
		after time.Duration
	}{
		"nil":             {nil, adapters.ClassDelivered, 0},
		"unmarked":        {cause, adapters.ClassTransient, 0},
		"retry after":     {adapters.RetryAfter(cause, time.Minute), adapters.ClassTransient, time.Minute},
		"throttled":       {adapters.Throttled(cause, time.Second), adapters.ClassThrottled, time.Second},
		"auth":            {adapters.Auth(cause), adapters.ClassAuth, 0},
		"forbidden":       {adapters.Forbidden(cause), adapters.ClassForbidden, 0},
		"permanent":       {adapters.Permanent(cause), adapters.ClassPermanent, 0},
		"conflict":        {adapters.Conflict(cause), adapters.ClassConflict, 0},
		"unknown":         {adapters.Unknown(cause), adapters.ClassUnknown, 0},
		"unexplained":     {adapters.Unexplained(cause), adapters.ClassUnexplained, 0},
		"local":           {adapters.Local(cause), adapters.ClassLocal, 0},
		"wrapped":         {fmt.Errorf("delivering: %w", adapters.Permanent(cause)), adapters.ClassPermanent, 0},
		"outermost wins":  {adapters.Auth(adapters.Throttled(cause, time.Second)), adapters.ClassAuth, 0},
		"classified":      {adapters.Classify(adapters.ClassConflict, cause), adapters.ClassConflict, 0},
		"joined to other": {errors.Join(cause, adapters.Unknown(cause)), adapters.ClassUnknown, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := adapters.ClassOf(tc.err); got != tc.class {
				t.Errorf("class %s, want %s", got, tc.class)
			}
			if got := adapters.RetryDelay(tc.err); got != tc.after {
				t.Errorf("delay %s, want %s", got, tc.after)
			}
			if tc.err != nil && !errors.Is(tc.err, cause) {
				t.Error("the cause is lost")
			}
		})
	}
}

func TestAnExhaustedMachineIsLocal(t *testing.T) {
	for errno, want := range map[syscall.Errno]adapters.Class{
		syscall.EMFILE: adapters.ClassLocal, syscall.ENFILE: adapters.ClassLocal, syscall.EADDRNOTAVAIL: adapters.ClassLocal,
		syscall.ENOBUFS: adapters.ClassLocal, syscall.ENOMEM: adapters.ClassLocal,
		syscall.ECONNREFUSED: adapters.ClassTransient, syscall.ENOSPC: adapters.ClassTransient,
	} {
		err := fmt.Errorf("file drop: %w", &os.PathError{Op: "open", Path: "/srv/court/x", Err: errno})
		if got := adapters.ClassOf(err); got != want {
			t.Errorf("%v is %s, want %s", errno, got, want)
		}
		if got := adapters.ClassOf(adapters.Unknown(err)); got != adapters.ClassUnknown {
			t.Errorf("%v, marked as unknown, is %s", errno, got)
		}
	}
}

func TestMarkingNilStaysNil(t *testing.T) {
	for name, err := range map[string]error{
		"Classify": adapters.Classify(adapters.ClassAuth, nil), "RetryAfter": adapters.RetryAfter(nil, 1), "Throttled": adapters.Throttled(nil, 1),
		"Auth": adapters.Auth(nil), "Forbidden": adapters.Forbidden(nil), "Permanent": adapters.Permanent(nil),
		"Conflict": adapters.Conflict(nil), "Unknown": adapters.Unknown(nil), "Unexplained": adapters.Unexplained(nil), "Local": adapters.Local(nil),
	} {
		if err != nil {
			t.Errorf("%s(nil) is %v", name, err)
		}
	}
}

func TestFieldsKeepDigits(t *testing.T) {
	fields, err := adapters.Message{Body: []byte(`{"caseId":12345678901234567890.10}`)}.Fields()
	if err != nil || fmt.Sprint(fields["caseId"]) != "12345678901234567890.10" {
		t.Errorf("got %v, %v", fields, err)
	}
	for _, body := range []string{"", "[1]", "null", `{"a":1}{"b":2}`, `{"a":1} x`} {
		if fields, err := (adapters.Message{Body: []byte(body)}).Fields(); err == nil {
			t.Errorf("%q was read as %v", body, fields)
		}
	}
}

func TestCommonKeepsTheClass(t *testing.T) {
	err := fmt.Errorf("deliver: %w", adapters.Common(adapters.Throttled(errors.New("quiet"), time.Minute)))
	if !adapters.IsCommon(err) || adapters.ClassOf(err) != adapters.ClassThrottled || adapters.RetryDelay(err) != time.Minute {
		t.Errorf("common %t, class %s, delay %s", adapters.IsCommon(err), adapters.ClassOf(err), adapters.RetryDelay(err))
	}
	if adapters.Common(nil) != nil || adapters.IsCommon(adapters.Auth(errors.New("x"))) {
		t.Error("what is not common counts as such")
	}
}

package operate

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
)

func TestAPauseIsChangedOnlyAsItWasSeen(t *testing.T) {
	t.Parallel()
	url := pgtest.New(t)
	d := outboxtest.Connect(t, url)
	d.Sync("Court")
	d.Fail(d.Event("H-1"))
	d.Event("H-2")
	operator := outboxtest.Connect(t, pgtest.AsRole(t, url, "outbox_operator"))
	read := func(scope string) Pause {
		t.Helper()
		tx, err := operator.Conn.Begin(t.Context())
		outboxtest.Must(t, err)
		defer func() { _ = tx.Rollback(t.Context()) }()
		p, err := ReadPause(t.Context(), tx, "Court", scope)
		outboxtest.Must(t, err)
		return p
	}
	maria, jo := Actor{"maria", "moves house"}, Actor{"jo", "is back"}
	none := read("")
	if none.Paused || none.Waiting != 1 || none.Oldest == nil {
		t.Errorf("got %+v", none)
	}
	outboxtest.Must(t, SetPause(t.Context(), operator, maria, "Court", "", none.Fingerprint(), End{After: time.Hour}))
	seen := read("")
	if !seen.Paused || seen.Reason != "moves house" || !strings.HasSuffix(seen.By, "/maria") || seen.Until == nil || time.Until(*seen.Until) > time.Hour+time.Minute {
		t.Errorf("got %+v", seen)
	}
	err := SetPause(t.Context(), operator, jo, "Court", "", none.Fingerprint(), End{})
	if was, ok := errors.AsType[*PauseChanged](err); !ok || was.Now.Reason != "moves house" || !strings.Contains(err.Error(), "nothing was changed: sync Court is now paused by") {
		t.Errorf("a second pause on an old page: %v", err)
	}
	if scope := read("ny07"); scope.Paused {
		t.Errorf("got %+v", scope)
	}
	outboxtest.Must(t, LiftPause(t.Context(), operator, jo, "Court", "", seen.Fingerprint()))
	if err := LiftPause(t.Context(), operator, jo, "Court", "", seen.Fingerprint()); !errors.As(err, new(*PauseChanged)) {
		t.Errorf("resumed twice: %v", err)
	}
	if err := SetPause(t.Context(), operator, jo, "NoSync", "", "none", End{}); err == nil || !strings.Contains(err.Error(), "is not registered") {
		t.Errorf("an unknown sync: %v", err)
	}
	got := strings.Join(outboxtest.List[string](d, `SELECT substring(actor FROM '/.*') || ' ' || outcome FROM outbox.delivery_log ORDER BY id`), ", ")
	if got != "/maria paused, /jo resumed" {
		t.Errorf("the log has %s", got)
	}
}

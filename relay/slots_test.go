package relay

import (
	"testing"
	"testing/synctest"
	"time"
)

// A suspect waits for the attempts in flight, and no other attempt of its sync begins meanwhile. If the
// wait takes too long, the sync sends as before.
func TestAnExclusiveSlotWaitsForAttemptsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all, reserve := newSlots(4, 2)
		s, other := all.share(reserve, 4), all.share(reserve, 4)
		if !s.acquire() {
			t.Fatal("no slot although all are free")
		}
		next := make(chan bool, 1)
		alone := make(chan bool, 1)
		go func() { alone <- s.acquireExclusive(time.Second) }()
		synctest.Wait()
		go func() { next <- s.acquire() }()
		synctest.Wait()
		if len(next) > 0 {
			t.Error("another delivery of the sync began while a suspect waits")
		}
		if !other.acquire() {
			t.Error("the other sync waits too")
		}
		began := time.Now()
		if <-alone {
			t.Error("alone although one is in flight")
		}
		if waited := time.Since(began); waited != time.Second {
			t.Errorf("waited %s, want its patience of 1s", waited)
		}
		if !<-next {
			t.Error("the sync does not send as before")
		}

		go func() { alone <- s.acquireExclusive(time.Minute) }()
		synctest.Wait()
		s.release()
		s.release()
		if !<-alone {
			t.Error("not alone although nothing is in flight")
		}
		elsewhere := make(chan bool, 1)
		go func() { elsewhere <- other.acquireExclusive(time.Minute) }()
		other.release()
		synctest.Wait()
		if len(elsewhere) > 0 {
			t.Error("suspects of two syncs are in flight at a time")
		}
		s.releaseExclusive()
		if !<-elsewhere {
			t.Error("the other sync's suspect had no turn")
		}
		other.releaseExclusive()
		if all.shared != 2 || s.used+other.used != 0 || s.acquireExclusive(0) != true {
			t.Errorf("in the end %d shared slots are free and %d are used", all.shared, s.used+other.used)
		}
	})
}

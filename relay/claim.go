package relay

import (
	"context"
	"math"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// claimLoop looks for due deliveries until ctx ends. attempts outlives it.
func (p *pipeline) claimLoop(ctx, attempts context.Context) {
	var (
		walk     claimWalk                // from old to new
		sweep    = claimWalk{pass: true}  // once more from the beginning to where walk stands
		fresh    = claimWalk{fresh: true} // of what came lately
		share    = freshShare{credit: 1}
		pace     = pacer{bears: mostCrowded}
		swept    = time.Now() // when the last sweep ended
		sweeping bool
		lastTend time.Time
		lastNote time.Time
		parked   outbox.ParkedCursor
		calls    = p.relay.caller("claim deliveries", p.sync.Name)
		pause    = busyPoll
	)
	defer p.claiming.end()
	for ctx.Err() == nil {
		p = p.now()
		p.claiming.begin()
		p.full.Store(true) // before the room is counted: a recording in between must not go unnoticed
		found, err := foundSome, error(nil)
		if walk.behind() { // first: the others would leave no room, for there is always work
			err = p.claimFresh(ctx, attempts, &walk, &fresh, &share, max(0, pace.free(p, time.Time{})))
		}
		if err == nil && (sweeping || time.Since(swept) > max(sweepEvery, 10*sweep.spent)) {
			// Before the walk, for the same reason. Without room it waits for some.
			if room := pace.room(p, sweep.asked); room > 0 {
				if sweeping, err = p.sweep(ctx, attempts, &sweep, &walk, room); !sweeping {
					swept = time.Now()
				}
			}
		}
		if room := pace.room(p, walk.asked); err == nil && (room >= pace.most/2 || time.Since(walk.asked) >= walk.rest) {
			p.walked.Store(new(outbox.End())) // for all that a recording knows
			walk.pass = walk.passed < mostPassed
			found, err = p.claim(ctx, attempts, &walk, room)
			p.walked.Store(new(walk.cursor))
			p.behind.Store(walk.cursor.Behind(walk.settled) > farBehind)
			if pace.waits = found == foundMore || found == foundFull; !pace.waits {
				pace.bears = mostCrowded
			}
		}
		if err == nil && time.Since(lastTend) > tendEvery {
			err = p.tend(ctx, &parked)
			lastTend = time.Now()
		}
		if err == nil && time.Since(lastNote) > tendEvery {
			_, err = p.noteDelivery(ctx)
			lastNote = time.Now()
		}
		p.full.Store(err == nil && found == foundFull)
		p.claiming.end()
		if err != nil {
			// Nothing shortens this pause: neither a sweep that is due nor who would wake the loop.
			sleep(ctx, calls.failed(ctx, err))
			pause = busyPoll
			continue
		}
		calls.worked(ctx)
		switch found {
		case foundMore:
			pause = 0
		case foundSome:
			pause = min(busyPoll, p.relay.config.Poll)
			if p.sync.Notify {
				pause = min(5*busyPoll, p.relay.config.Poll) // writers say when there is more
			}
		case foundFull:
			pause = max(p.relay.config.Poll-time.Since(walk.asked), time.Millisecond) // a recording wakes the loop, a rate limit does not
			if p.rate != nil {
				pause = min(pause, 4*busyPoll)
			}
		default:
			pause = min(max(2*pause, time.Millisecond), p.relay.config.Poll)
		}
		if sweeping && pace.room(p, sweep.asked) > 0 {
			pause = 0
		}
		if pause == 0 {
			continue
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-p.woken:
		case <-t.C:
		}
		t.Stop()
	}
}

// claimWalk is a walk over the due deliveries of a sync.
type claimWalk struct {
	cursor  outbox.Cursor
	fresh   bool          // it looks only at what came lately
	pass    bool          // it leaves what waits for a delivery under way as it is
	passed  int           // rows it left so, to be looked at by the next sweep
	per     int           // rows looked at for each that was claimed, lately
	asked   time.Time     // when the database was asked last
	spent   time.Duration // on asking it
	starved bool          // the last page brought hardly any, and more is to be looked at
	rest    time.Duration // after a page that brought hardly any, while there is enough else to do
	settled outbox.Cursor // the time before which all have committed, mostly, when the database was asked last
}

// lags reports whether the walk is busy with old deliveries that wait behind
// others.
func (w *claimWalk) lags() bool { return w.starved && w.cursor.Before(w.settled) }

type findings int

const (
	foundNone findings = iota
	foundSome
	foundMore // and there is more to be looked at now
	foundFull // no room to claim any
)

// claim asks for up to room deliveries from the walk's cursor on and hands them
// to the senders.
func (p *pipeline) claim(ctx, attempts context.Context, w *claimWalk, room int) (findings, error) {
	goesOn := room == 0 && w.lags() // up to what there will be room for
	if room == 0 && !goesOn && time.Since(w.asked) < p.relay.config.Poll {
		return foundFull, nil
	}
	w.asked, w.starved, w.rest = time.Now(), false, 0
	page := 0 // only the hold is looked at
	switch {
	case goesOn:
		page = maxPage
	case room > 0:
		page = min(max(w.per*room, room, leastPage), maxPage)
	}
	before := w.cursor
	request := outbox.ClaimRequest{
		Sync: p.sync.Name, From: w.cursor, Budget: room, Page: page, Pass: w.pass, Fresh: w.fresh, Lease: p.relay.config.Lease, Wanted: p.wanted(),
	}
	// A stop must not lose the answer: what was claimed is then released.
	claims, err := p.relay.store.Claim(attempts, request)
	took := time.Since(w.asked)
	w.spent += took
	p.accept(claims, w.asked, false)
	p.begun += len(claims.Deliveries)
	if err != nil {
		return foundNone, err
	}
	p.relay.config.Observer.Claim(p.sync.Name, len(claims.Deliveries), took)
	w.cursor = claims.Next
	if claims.Hold != nil || int64(w.asked.Sub(began)) > p.heldAt.Load() {
		p.setHold(claims.Hold)
	}
	if claims.Hold != nil {
		if claims.Hold.ProbeDue && p.slots.workers() > 0 {
			return foundNone, p.probe(ctx, attempts)
		}
		return foundNone, nil
	}
	if claims.Suspects > 0 {
		p.suspect(false)
	}
	w.settled = claims.Settled
	w.passed += max(0, claims.Seen-claims.Parked-len(claims.Deliveries))
	w.starved = page > 0 && claims.Seen >= page && len(claims.Deliveries) <= page/100
	if got := len(claims.Deliveries); got > 0 {
		w.per = max((claims.Seen+got-1)/got, w.per-1) // others that claim too are not met each time
	} else if claims.More {
		w.per = min(4*max(w.per, 1), maxPage)
	}
	if w.starved && claims.Parked == 0 {
		w.rest = min(4*took, p.relay.config.Poll)
	}
	switch {
	case goesOn && w.starved && before.Before(w.cursor):
		return foundMore, nil
	case room == 0:
		w.starved = false // there is one to claim
		return foundFull, nil
	case claims.More:
		return foundMore, nil
	case len(claims.Deliveries) > 0:
		return foundSome, nil
	}
	return foundNone, nil
}

// behind reports whether the walk is so far behind the clock that what comes now
// would wait.
func (w *claimWalk) behind() bool { return w.cursor.Behind(w.settled) > freshAfter }

// freshShare gives what came lately a fixed share of everything that is claimed
// while the walk is behind: one delivery in four. All others go by age, and both
// go on, however much there is of either.
type freshShare struct {
	accepted int64   // by the pipeline, ever, when the share was counted last
	credit   float64 // deliveries that may be claimed on it
}

// of is how many fresh deliveries may be claimed now.
func (s *freshShare) of(p *pipeline, room int) int {
	accepted := p.accepted.Load()
	s.credit = min(s.credit+float64(accepted-s.accepted)/freshOneIn, float64(max(1, p.slots.usable()/freshOneIn)))
	s.accepted = accepted
	return min(room, int(s.credit))
}

// claimFresh looks for what came lately: a new hearing must not wait for all the
// older ones of other keys. When there is more than the share allows, it goes by
// age for a few seconds and then leaves what is older to the main walk.
func (p *pipeline) claimFresh(ctx, attempts context.Context, main, fresh *claimWalk, share *freshShare, room int) error {
	if main.lags() {
		room = (room + 1) / 2 // the main walk claims hardly any
	} else {
		room = share.of(p, room)
	}
	if room == 0 || !fresh.starved && time.Since(fresh.asked) < fresh.rest {
		return nil
	}
	if fresh.cursor.Before(main.cursor) || fresh.cursor.Behind(main.settled) > freshFor {
		fresh.cursor = main.settled
	}
	before := p.begun
	found, err := p.claim(ctx, attempts, fresh, room)
	share.credit = max(0, share.credit-float64(p.begun-before))
	if fresh.rest = 0; found != foundMore {
		fresh.rest = freshEvery
	}
	return err
}

// sweep goes a page further on a walk from the beginning to where the other walk
// stands: it finds what committed late, leases that ended, rows that were locked,
// and what the other walk passed and has to be put aside since.
func (p *pipeline) sweep(ctx, attempts context.Context, w, main *claimWalk, room int) (more bool, err error) {
	if p.hold.Load() != nil {
		return false, nil
	}
	if w.cursor == (outbox.Cursor{}) {
		w.spent, w.passed = 0, 0
	}
	found := foundNone
	if w.cursor.Before(main.cursor) {
		if found, err = p.claim(ctx, attempts, w, room); err != nil {
			return true, err
		}
	}
	if found == foundMore && w.cursor.Before(main.cursor) {
		return true, nil
	}
	w.cursor, main.passed = outbox.Cursor{}, w.passed
	return false, nil
}

// tend is the slow housekeeping of a sync: parked rows that sleep, holds that
// ended.
func (p *pipeline) tend(ctx context.Context, parked *outbox.ParkedCursor) error {
	_, next, err := p.relay.store.RecheckParked(ctx, p.sync.Name, *parked, 1000)
	if err != nil {
		return err
	}
	*parked = next
	return p.relay.store.EndHolds(ctx, p.sync.Name, max(p.relay.config.Lease, probeMost))
}

// pacer finds out how many deliveries to claim beyond those in flight: about
// what is finished in prefetchFor. Should the relay die, each of them goes
// through the care that is taken of deliveries that may have killed it.
type pacer struct {
	most     int // deliveries to have claimed at a time
	at       time.Time
	recorded int64
	ahead    float64

	waits  bool          // the walk may have left somebody out
	judged time.Time     // every crowdedAgain
	begun  int           // what walks had claimed then
	had    time.Time     // when they had their share last
	bears  time.Duration // for how long they may go without
}

// room is for how many more deliveries there is room now. asked is when the walk
// that asks for it looked last.
func (c *pacer) room(p *pipeline, asked time.Time) int {
	room := c.free(p, asked)
	c.shareOut(p, time.Now(), room)
	return max(0, room)
}

// free is the same without deciding how much recordings may claim.
func (c *pacer) free(p *pipeline, asked time.Time) int {
	now, recorded := time.Now(), p.recorded.Load()
	if passed := now.Sub(c.at); passed > 20*time.Millisecond {
		c.ahead = float64(recorded-c.recorded) * float64(prefetchFor) / float64(passed)
		c.at, c.recorded = now, recorded
	}
	ahead := min(int(c.ahead), maxPrefetch)
	if size := p.payload.Load(); size > 0 {
		ahead = min(ahead, int(maxPrefetchBytes/size))
	}
	limit := p.slots.usable()
	if limit == 0 || p.slots.starting() {
		ahead = 0
	}
	c.most = limit + ahead
	room := c.most - int(p.outstanding.Load())
	if room < c.most/4 && len(p.queue) > 0 && time.Since(asked) < mostPatience {
		room = 0 // a claim costs more than its rows: no small ones while there is work
	}
	if p.rate != nil {
		room = min(room, int(p.rate.Tokens())) // claimed when it may be sent, however slow the rate
	}
	return room
}

// shareOut sees to it that walks claim an eighth of what the senders can do at a
// time, every 100 ms, while somebody waits. Recordings, which go on with the keys
// under way, must leave it to them.
func (c *pacer) shareOut(p *pipeline, now time.Time, room int) {
	share := max(1, p.slots.usable()/8)
	if room >= share || c.had.IsZero() {
		p.goOn.Store(math.MaxInt64)
	}
	if now.Sub(c.judged) < crowdedAgain {
		return
	}
	if p.begun-c.begun >= share || !c.waits {
		c.had = now
	}
	c.judged, c.begun = now, p.begun
	if now.Sub(c.had) > c.bears {
		c.bears = crowdedAgain
		p.goOn.Store(int64(c.most - share))
	}
}

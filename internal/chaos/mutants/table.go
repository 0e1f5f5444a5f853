package main

// Packages with tests that catch.
const (
	chaos      = "internal/chaos"
	endpoint   = "adapters/internal/endpoint"
	migrations = "migrations"
	outbox     = "outbox"
	relay      = "relay"
	soap       = "adapters/soap"
	webhook    = "adapters/webhook"
)

// Files that mistakes are made in.
const (
	claim    = "outbox/claim.go"
	next     = "outbox/next.go"
	scan     = "outbox/scan.go"
	record   = "outbox/record.go"
	store    = "outbox/store.go"
	schema   = "migrations/outbox/00001_outbox.sql"
	deliver  = "relay/deliver.go"
	judgment = "relay/judge.go"
	recorder = "relay/record.go"
	claimer  = "relay/claim.go"
	pipeline = "relay/pipeline.go"
)

// noSweep takes the walk from the beginning away.
var noSweep = edit{file: claimer, old: `	if w.cursor.Before(main.cursor) {`, new: `	if false {`}

// mutants are mistakes that systems like this are known for. Where only one
// order of two sessions shows a mistake, tests that are stepped by hand catch it.
var mutants = []mutant{
	{
		"no claim token in the recording",
		[]edit{
			{file: record, old: `WHERE d.ctid = i.tid
              AND d.sync = i.sync AND d.key = i.key AND d.event_seq = i.event_seq AND d.claim = i.claim
`, new: `WHERE d.sync = i.sync AND d.key = i.key AND d.event_seq = i.event_seq
`},
			{file: record, old: `WHERE d.sync = i.sync AND d.key = i.key AND d.event_seq = i.event_seq AND d.claim = i.claim
              FOR UPDATE`, new: `WHERE d.sync = i.sync AND d.key = i.key AND d.event_seq = i.event_seq
              FOR UPDATE`},
		},
		chaos, "TestFault04StalledWithAnAnswerInHand",
	},
	{
		"recorded before it is sent",
		[]edit{{file: deliver, old: `	receipt, err := p.call(ctx, p.message(d))`, new: `	p.relay.store.Record(ctx, []outbox.Result{{Delivery: d, Outcome: outbox.Delivered, Attempt: true, AnsweredAt: started}}, outbox.ClaimRequest{Sync: p.sync.Name})
	receipt, err := p.call(ctx, p.message(d))`}},
		chaos, "TestFault02KilledDuringTheCall/the_court_forgets",
	},
	{
		"no head-of-key test",
		[]edit{{file: claim, old: `WHERE f.tid = p.tid AND p.suspect`, new: `WHERE p.suspect`}},
		chaos, "TestFault07RelaysKilledAtRandom",
	},
	{
		"a head-of-key test for pending rows only",
		[]edit{{file: claim, old: `     WHERE f.sync = $1 AND f.key = p.key
`, new: `     WHERE f.sync = $1 AND f.key = p.key AND (f.state = 'pending' OR f.event_seq = p.event_seq)
`}},
		chaos, "TestFault07RelaysKilledAtRandom",
	},
	{
		"parking without the lock on the row in front",
		[]edit{{file: claim, old: `WHERE f.ctid = r.first
              FOR KEY SHARE SKIP LOCKED) AS f`, new: `WHERE f.ctid = r.first) AS f`}},
		migrations, "TestParkingBesideTheFinishOfTheRowInFront",
	},
	{
		"a replay that does not wait for what is under way behind it",
		[]edit{{file: claim, old: `     WHERE l.may
`}},
		migrations, "TestReplayThatCommitsWhileANewerEventIsBeingSent",
	},
	{
		"a lease that never ends",
		[]edit{{file: claim, old: `AND (d.state IN ('pending', 'retry') OR d.lease_until < now())`, new: `AND d.state IN ('pending', 'retry')`, times: 2}},
		chaos, "TestFault01KilledBeforeSending/one_delivery",
	},
	{
		"a lease that has always ended",
		[]edit{{file: claim, old: `OR d.lease_until < now())`, new: `OR d.lease_until < 'infinity')`, times: 2}},
		chaos, "TestFault01KilledBeforeSending/one_delivery",
	},
	{
		"a cursor by seq",
		[]edit{
			noSweep, // with it, late rows are found all the same
			{file: claim, old: `AND (d.due_at, d.event_seq) >= ($6, $7)`, new: `AND d.event_seq >= $7 AND $6::timestamptz IS NOT NULL`},
			{file: claim, old: `	c.Next = c.next
`, new: `	c.Next = Cursor{due: c.next.due, seq: max(c.next.seq, r.From.seq)}
`},
			{file: scan, old: `			c.next = c.Settled
`, new: `			c.next = c.Settled
			if lastSeq != nil {
				c.next.seq = *lastSeq
			}
`},
		},
		chaos, "TestFault07RelaysKilledAtRandom",
	},
	{
		"no walk from the beginning",
		[]edit{noSweep},
		chaos, "TestFault01KilledBeforeSending/one_delivery",
	},
	{
		"fresh events that wait for the parking of old ones",
		[]edit{{file: claimer, old: `if walk.behind() {`, new: `if false {`}},
		relay, "TestFreshEventOvertakesTheParkingOfOldOnes",
	},
	{
		"fresh events without a share beside busy keys",
		[]edit{{file: claimer, old: `return min(room, int(s.credit))`, new: `return 0`}},
		relay, "TestFreshKeyBesideManyBusyKeysOnFewWorkers",
	},
	{
		"one death that makes a suspect",
		[]edit{{file: schema, old: `GENERATED ALWAYS AS (crashes > 1)`, new: `GENERATED ALWAYS AS (crashes > 0)`}},
		relay, "TestDeliveriesOfOneDeadRelayGoTogether",
	},
	{
		"a slot for the sync with the most in flight",
		[]edit{{file: "relay/slots.go", old: `s.used < next.used`, new: `s.used > next.used`}},
		relay, "TestBusySyncsHaveEqualShares",
	},
	{
		"a worker that counts though its call does not return",
		[]edit{{file: "relay/leave.go", old: `	p.slots.lose(workers)
`, new: ``}},
		relay, "TestASyncAllOfWhoseWorkersHangStallsOnlyItself",
	},
	{
		"a second attempt beside one that does not return",
		[]edit{{file: "relay/leave.go", old: `	p.left.add(event)
`, new: ``}},
		relay, "TestAnAttemptThatDoesNotReturnIsLeftBehind",
	},
	{
		"lines under way that take all the room",
		[]edit{{file: recorder, old: `max(0, goOn-stay)`, new: `max(int64(len(results)), goOn-stay)`}},
		relay, "TestFreshKeyBesideLongLines",
	},
	{
		"lines that make room go behind a younger backlog",
		[]edit{{file: recorder, old: `			next.From = outbox.Cursor{} // they keep`, new: `			// they keep`}},
		relay, "TestLinesThatMakeRoomKeepTheirAge",
	},
	{
		"recording in two transactions",
		[]edit{
			{file: record, old: `  FROM removed AS h
)` + "`" + `
`, new: `  FROM removed AS h
     WHERE false
)` + "`" + `
`},
			{file: record, old: `	return claims, nil
`, new: `	for i := range results {
		if d := results[i].Delivery; done[i] && results[i].Outcome.Finished() {
			_, err := s.pool.Exec(ctx, "INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, attempt, outcome, code, claim, relay) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
				d.Sync, d.Event.ID, d.Event.Type, d.Key, d.Total+1, string(results[i].Outcome), results[i].Code, d.Claim, s.relay)
			if err != nil {
				return scanned{}, err
			}
		}
	}
	return claims, nil
`},
		},
		chaos, "TestFault03KilledBesideItsRecording/inside,_the_backend_dies_too",
	},
	{
		"a lost answer to a recording repeats the request",
		[]edit{{file: recorder, old: `			pause = calls.failed(context.WithoutCancel(attempts), err)
`, new: `			for i := range waiting {
				waiting[i] = p.attempt(attempts, work{Delivery: waiting[i].Delivery, leaseEnd: time.Now().Add(p.relay.config.Lease)})
			}
			pause = calls.failed(context.WithoutCancel(attempts), err)
`}},
		chaos, "TestFault03KilledBesideItsRecording/before_the_commit,_only_the_backend_dies",
	},
	{
		"a body that is not kept for the next attempt",
		[]edit{{file: record, old: `body = coalesce(h.body, d.body),`, new: `body = d.body,`}},
		relay, "TestRetryKeepsBytesOverAChangedMapping",
	},
	{
		"an idempotency key for each attempt",
		[]edit{{file: deliver, old: `	if d.Revision > 1 {
		key = fmt.Sprintf("%s:%d", d.Event.ID, d.Revision)`, new: `	if d.Total > 0 {
		key = fmt.Sprintf("%s:%d", d.Event.ID, d.Total+1)`}},
		chaos, "TestFault03KilledBesideItsRecording/before_the_recording",
	},
	{
		"the lease is not looked at before sending",
		[]edit{
			{file: deliver, old: `p.draining.Load() || time.Until(w.leaseEnd) < p.sync.AttemptTimeout()+leaseMargin`, new: `p.draining.Load()`},
			{file: deliver, old: `if time.Until(w.leaseEnd) < leaseMargin {`, new: `if false {`},
		},
		chaos, "TestFault04StalledWithUnsentClaims",
	},
	{
		"a release that counts as a crash",
		[]edit{{file: record, old: `           crashes = greatest(d.crashes - 1, 0),
           attempts`, new: `           attempts`}},
		chaos, "TestFault08Stopped/drained_in_time",
	},
	{
		"crashes that are not counted",
		[]edit{{file: claim, old: `crashes = d.crashes + 1,`, new: `crashes = d.crashes,`}},
		chaos, "TestFault06EventThatKillsRelays",
	},
	{
		"what a stop cuts off costs budget",
		[]edit{{file: judgment, old: `		cutOff(result, err)
		return
`, new: `		cutOff(result, err)
		result.Charge = true
		return
`}},
		chaos, "TestFault08Stopped/not_drained_in_time",
	},
	{
		"a throttle costs budget",
		[]edit{{file: judgment, old: `		p.holdSync(outbox.HoldThrottle,`, new: `		p.retry(w, result, asked)
		p.holdSync(outbox.HoldThrottle,`}},
		relay, "TestThrottleHoldsTheSyncAndOthersFlow",
	},
	{
		"a finish that does not wake the next of its key",
		[]edit{{file: next, old: `AND (f.claims OR f.passed)`, new: `AND f.claims`}},
		outbox, "TestFinishPromotesTheNext",
	},
	{
		"a discard that does not wake the next of its key",
		[]edit{{file: schema, old: `    PERFORM outbox.promote_next(d.sync, d.key, d.event_seq);
`}},
		migrations, "TestSupersedeAfterADiscardOfTheNewerRow",
	},
	{
		"a row that the walk has passed stays behind it",
		[]edit{{file: next, old: `f.state = 'queued' OR (f.due_at, f.event_seq) < ($8, $9) AS passed`, new: `f.state = 'queued' OR (f.due_at, f.event_seq) < ($8, $9) AND false AS passed`}},
		outbox, "TestPassedRowIsMadeDueWhereItCannotBeClaimed",
	},
	{
		"a row that the walk has passed stays behind it when the one in front is discarded",
		[]edit{{file: schema, old: `next.state IN ('queued', 'pending') THEN`, new: `next.state = 'queued' THEN`}},
		migrations, "TestDiscardMakesDueWhatAWalkHasPassed",
	},
	{
		"a walk that passes by what waits behind a failed delivery",
		[]edit{{file: claim, old: `(r.waits OR NOT $11 OR`, new: `(NOT $11 OR`}},
		outbox, "TestWalkThatPassesParksBehindAFailedDelivery",
	},
	{
		"a parked row that somebody holds is forgotten",
		[]edit{{file: pipeline, old: `	p.asleep.add(c.Asleep)
`}},
		relay, "TestKeyIsGoneOnWithOnceNobodyHoldsItsNext",
	},
	{
		"a discard without the lock on the row in front",
		[]edit{{file: schema, old: `front.event_seq = ahead
                FOR KEY SHARE;`, new: `front.event_seq = ahead;`}},
		migrations, "TestDiscardOfTheSecondBesideTheFinishOfTheFirst",
	},
	{
		"a pool that keeps the connections of a demoted primary",
		[]edit{{file: store, old: `		s.pool.Reset()
`, times: 2}},
		outbox, "TestConnectionsThatAreReadOnlyAreLeft",
	},
	{
		"hosts from data are not judged",
		[]edit{{file: "adapters/internal/endpoint/hosts.go", old: `		return host == allowed
	})`, new: `		return host == allowed
	}) || true`}},
		endpoint, "TestHostsFromData",
	},
	{
		"addresses of hosts from data are not judged",
		[]edit{{file: "adapters/internal/exchange/guard.go", old: `|| public(ip) {`, new: `|| true {`}},
		endpoint, "TestHostsFromData",
	},
	{
		"a token that is kept although it was refused",
		[]edit{{file: "adapters/internal/endpoint/endpoint.go", old: `		refused()
`, new: `		_ = refused
`}},
		endpoint, "TestRefusedTokenIsDropped",
	},
	{
		"a webhook id for each attempt",
		[]edit{{file: "adapters/webhook/webhook.go", old: `req.Header.Set("Webhook-Id", msg.IdempotencyKey)`, new: `req.Header.Set("Webhook-Id", fmt.Sprint(msg.IdempotencyKey, "-", msg.Attempt))`}},
		webhook, "TestConformance",
	},
	{
		"a webhook signed with its first secret only",
		[]edit{{file: "adapters/webhook/webhook.go", old: `strings.Join(signatures, " ")`, new: `signatures[0]`}},
		webhook, "TestRotation",
	},
	{
		"a value that becomes markup",
		[]edit{{file: "adapters/soap/render.go", old: `_, _ = escapeText.WriteString(w, s)`, new: `w.raw(s)`}},
		soap, "TestValuesNeverBecomeMarkup",
	},
	{
		"a nonce for all attempts",
		[]edit{{file: "adapters/soap/soap.go", old: `		a.token = func() *token {`, new: `		same := nonce()
		nonce = func() []byte { return same }
		a.token = func() *token {`}},
		soap, "TestPHPGetsAFreshTokenAndTheSameMessageIDPerAttempt",
	},
	{
		"a MessageID for each attempt",
		[]edit{{file: "adapters/soap/addressing.go", old: `	id, err := uuid.Parse(key)`, new: `	id, err := uuid.Parse(key)
	return uuid.NewString()`}},
		soap, "TestPHPKnowsAMessageAgain",
	},
	{
		"a fault inside HTTP 200 taken for a delivery",
		[]edit{{file: "adapters/soap/judge.go", old: `	if m.fault == nil {
		return byStatus, reason
	}`, new: `	if m.fault == nil || ans.OK() {
		return byStatus, reason
	}`}},
		soap, "TestPHPAnswersAreClassified",
	},
	{
		"a short throttle that shortens a long one",
		[]edit{{file: outbox, in: "Store.Hold", old: `greatest(h.until, excluded.until)`, new: `excluded.until`}},
		outbox, "TestAShortHoldDoesNotShortenALongOne",
	},
	{
		"a lift that ends every hold",
		[]edit{{file: outbox, in: "Store.Lift", old: ` AND kind IN ('auth', 'breaker')`}},
		outbox, "TestModel",
	},
	{
		"a rejection that does not clear the breaker's count",
		[]edit{{file: relay, in: "pipeline.failed", old: `p.health.answered()`}},
		relay, "TestARejectionShowsThatTheReceiverIsUp",
	},
	{
		"a backfill that brings back what was discarded",
		[]edit{{file: outbox, old: `'superseded', 'discarded')`, new: `'superseded')`}},
		outbox, "TestABackfillBringsNothingBack",
	},
	{
		"a backfill that leaves out what open writers insert",
		[]edit{{file: outbox, old: `OR s.backfill_unseen @> p.seq`, new: `OR false`}},
		outbox, "TestABackfillFromNowAddsWhatWasNotCommitted",
	},
	{
		"a fan-out to syncs that are retired",
		[]edit{{file: schema, in: "outbox.fan_out", old: `ON s.retired_at IS NULL AND e.type LIKE`, new: `ON e.type LIKE`}},
		migrations, "TestFanOutFollowsPatterns",
	},
	{
		"backoff that counts throttles",
		[]edit{{file: relay, in: "pipeline.retry", old: `budget.delay(d.Charged + 1)`, new: `budget.delay(d.Attempts + 1)`}},
		relay, "TestBackoffCountsFailuresAndNoThrottles",
	},
	{
		"a last delay that goes beyond the budget",
		[]edit{{file: relay, in: "pipeline.retry", old: `result.Delay = min(result.Delay, budget.MaxAge-spent)`}},
		relay, "TestTheLastAttemptLiesWithinTheBudget",
	},
	{
		"no cap of an hour for what an adapter asks for",
		[]edit{{file: relay, in: "pipeline.failed", old: `min(adapters.RetryDelay(err), time.Hour)`, new: `adapters.RetryDelay(err)`}},
		relay, "TestNoReceiverMakesUsWaitForMoreThanAnHour",
	},
	{
		"a probe without an answer that the next one follows at once",
		[]edit{{file: relay, in: "pipeline.probed", old: `case r.Outcome == outbox.Retry, r.Outcome == outbox.Unknown:`, new: `case r.Outcome == outbox.Retry:`}},
		relay, "TestAProbeWithoutAnAnswerIsFollowedByAPause",
	},
	{
		"a probe that is filtered lifts the hold",
		[]edit{{file: relay, in: "pipeline.probed", old: `r.Outcome.Finished() && r.Attempt`, new: `r.Outcome.Finished()`}},
		relay, "TestAProbeThatIsNotSentLiftsNoHold",
	},
	{
		"a probe that cannot be mapped lifts the hold",
		[]edit{{file: relay, in: "pipeline.probed", old: `r.Outcome == outbox.Failed && r.Attempt`, new: `r.Outcome == outbox.Failed`}},
		relay, "TestAProbeThatIsNotSentLiftsNoHold",
	},
	{
		"a probe that costs budget",
		[]edit{{file: relay, in: "pipeline.retry", old: `if w.probe || p.hold.Load() != nil {`, new: `if false {`}},
		relay, "TestNoRowPaysForAProbe",
	},
	{
		"a finish that claims a suspect",
		[]edit{{file: outbox, in: "claimNext", pattern: `AND (c\.crashes = 0|NOT c\.suspect)`}},
		outbox, "TestAFinishLeavesASuspectToBeSentAlone",
	},
	{
		"a finish that claims a replay while a later event is under way",
		[]edit{{file: outbox, in: "claimNext", old: `AND NOT EXISTS (SELECT FROM outbox.delivery AS r WHERE r.sync = $1 AND r.key = n.key AND r.revision > 1 OFFSET 0)`}},
		outbox, "TestNobodyGoesOnWithAReplayBesideWhatIsUnderWay",
	},
	{
		"a finish that claims during a hold",
		[]edit{{file: outbox, in: "claimNext", old: "AND NOT EXISTS (SELECT` + holdsInForce + `)", new: `AND $2::boolean IS NOT NULL`}},
		outbox, "TestAFinishGoesOnWithNothingDuringAHold",
	},
	{
		"no claim token where a claim is given back",
		[]edit{{file: outbox, in: "recordUnfinished", old: ` AND d.claim = i.claim`}},
		outbox, "TestAClaimTakenOverIsNotGivenBack",
	},
	{
		"a takeover's row taken for the recording",
		[]edit{{file: outbox, in: "whatBecame", old: `l.outcome = 'unknown' AND l.took_ms IS NOT NULL`, new: `l.outcome = 'unknown'`}},
		outbox, "TestClaimThatIsGoneChangesNothing",
	},
	{
		"a recording that waits for who holds the row",
		[]edit{{file: outbox, in: "recordFinished", old: `FOR UPDATE SKIP LOCKED`, new: `FOR UPDATE`}},
		outbox, "TestLockedRowHoldsUpNobody",
	},
	{
		"a requeue that keeps the budget used up",
		[]edit{{file: schema, in: "outbox.complete_requeue", old: `NEW.charged := 0;`}},
		relay, "TestARequeueIsANewLife",
	},
	{
		"a requeue that keeps the time used up",
		[]edit{{file: schema, in: "outbox.complete_requeue", old: `NEW.spent_ms := 0;`}},
		relay, "TestARequeueIsANewLife",
	},
	{
		"a requeue that keeps the deaths of relays",
		[]edit{{file: schema, in: "outbox.complete_requeue", old: `NEW.crashes := 0;`}},
		relay, "TestARequeueIsANewLife",
	},
	{
		"a reference that goes back",
		[]edit{{file: outbox, in: "recordReferences", old: `excluded.version >= r.version`, new: `excluded.version <> r.version`}},
		relay, "TestReferenceNeverGoesBack",
	},
	{
		"a slot of one's own that comes back as shared",
		[]edit{{file: "relay/slots.go", pattern: `if s\.used > s\.reserve \{`, new: `if true {`}},
		relay, "TestAsManySlotsComeBackAsWereTaken",
	},
	{
		"a shared slot that comes back as one's own",
		[]edit{{file: "relay/slots.go", pattern: `if s\.used > s\.reserve \{`, new: `if false {`}},
		relay, "TestAsManySlotsComeBackAsWereTaken",
	},
	{
		"suspects that are not alone",
		[]edit{{
			file: relay, pattern: `p\.relay\.alone\.RLock\(\)\s+defer p\.relay\.alone\.RUnlock\(\)|a\.alone\[0\]\.share\.used == 0`,
			new: `func() bool { return true }()`,
		}},
		relay, "TestASuspectHasItsSyncToItself",
	},
}

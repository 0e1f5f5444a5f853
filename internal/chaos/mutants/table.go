package main

// Packages with tests that catch.
const (
	caldav     = "adapters/caldav"
	hl7        = "adapters/hl7"
	chaos      = "internal/chaos"
	config     = "internal/config"
	console    = "internal/console"
	endpoint   = "adapters/internal/endpoint"
	migrations = "migrations"
	operate    = "internal/operate"
	outbox     = "outbox"
	relay      = "relay"
	rest       = "adapters/rest"
	soap       = "adapters/soap"
	webhook    = "adapters/webhook"
)

// Where mistakes are made that are not in one of these packages.
const (
	schema   = "migrations/outbox/00001_outbox"
	exchange = "adapters/internal/exchange"
)

// mutants are mistakes that systems like this are known for. Where only one
// order of two sessions shows a mistake, tests that are stepped by hand catch it.
var mutants = []mutant{
	{
		"no claim token in the recording of what is finished",
		[]edit{
			{file: outbox, in: "recordFinished", old: ` AND _.claim = _.claim`, times: 3},
			// A lane that was claimed since is another row, and so is its delivery: where they are is a token too.
			{file: outbox, in: "recordFinished", old: `WHERE l.ctid = i.lane AND l.sync`, new: `WHERE l.sync`},
			{file: outbox, in: "recordFinished", old: `WHERE d.ctid = i.tid AND d.sync`, new: `WHERE d.sync`},
			{file: outbox, in: "recordFinished", old: `i.is_last AND l.ctid = i.lane`, new: `i.is_last AND l.sync = $1 AND l.key = i.key`, times: 2},
			{file: outbox, in: "recordFinished", old: `WHERE d.ctid = i.tid RETURNING`, new: `WHERE d.sync = $1 AND d.key = i.key AND d.event_seq = i.event_seq RETURNING`},
		},
		chaos, "TestFault04StalledAfterAnAnswer/late_success,_being_sent",
	},
	{
		"no claim token in the recording of what is not finished",
		[]edit{{file: outbox, in: "recordUnfinished", old: ` AND _.claim = _.claim`}},
		chaos, "TestFault04StalledAfterAnAnswer/late_failure,_being_sent",
	},
	{
		"no claim token where lanes are settled",
		[]edit{{file: outbox, in: "settleLanes", old: ` AND _.claim = _.claim`}},
		chaos, "TestFault04StalledAfterAnAnswer/late_failure,_being_sent",
	},
	{
		"recorded before it is sent",
		[]edit{{file: relay, in: "pipeline.attempt", old: `started := time.Now()`, new: `started := time.Now()
	p.relay.store.Record(ctx, p.sync.Name, []outbox.Result{{Delivery: d, Outcome: outbox.Delivered, Attempt: true, AnsweredAt: started}})`}},
		chaos, "TestFault02KilledDuringTheCall/the_court_forgets",
	},
	{
		"the first delivery is the one that was written first",
		[]edit{
			{file: outbox, in: "firstDeliveries", old: `ORDER BY _.event_seq LIMIT`, new: `ORDER BY _1.changed_in LIMIT`},
			{file: outbox, in: "settleLanes", old: `ORDER BY _.event_seq LIMIT`, new: `ORDER BY _1.changed_in LIMIT`},
		},
		outbox, "TestTheFirstOfALaneHasTheLowestNumber",
	},
	{
		"the first delivery is the first that was not tried",
		[]edit{{file: outbox, in: "firstDeliveries", old: `ORDER BY _.event_seq LIMIT`, new: `AND _1.state = 'pending' ORDER BY _1.event_seq LIMIT`}},
		outbox, "TestTheFirstOfALaneHasTheLowestNumber",
	},
	{
		"a lease that never ends",
		[]edit{{file: outbox, in: "dueLanes", old: "` + notSuspect + `", new: `l.claim IS NULL`}},
		chaos, "TestFault01KilledBeforeSending/one_delivery",
	},
	{
		"a lease that has always ended",
		[]edit{
			{file: outbox, in: "claimPicked", old: `now() + $5::interval`, new: `now()`},
			{file: outbox, in: "claimKey", old: `now() + $5::interval`, new: `now()`},
			{file: outbox, in: "openLanes", old: `now() + $5::interval`, new: `now()`},
		},
		chaos, "TestFault01KilledBeforeSending/one_delivery",
	},
	{
		"transactions that ran at the last poll are not read again",
		[]edit{{file: outbox, in: "openLanes", old: `pg_visible_in_snapshot(_.xid, pg_current_snapshot())`, new: `false`}},
		chaos, "TestFault16TransactionsLeftOpen",
	},
	{
		"the cursor moves past keys without capacity",
		[]edit{{file: outbox, in: "openLanes", old: `min(_._) AS n`, new: `min(0) FILTER (WHERE false) AS n`}},
		chaos, "TestFault08Stopped/drained_in_time",
	},
	{
		"keys that were found while their lane was claimed are forgotten",
		[]edit{{file: outbox, in: "Arrivals.learn", old: `a.check[key] = keyToCheck{found.check.claims[i], seq}`, new: `_ = seq`}},
		chaos, "TestFault17bEventWhileTheLaneIsClosed",
	},
	{
		"keys with a failed first delivery use capacity",
		[]edit{{file: outbox, in: "openLanes", old: `(SELECT f.found FROM any_failed AS f)`, new: `false`}},
		outbox, "TestLanesBehindFailedDeliveriesTakeNoCapacity",
	},
	{
		"a claim that locks lanes which it does not take",
		[]edit{{file: outbox, in: "claimLanes", part: "picked_lane", old: `LIMIT (SELECT 2 * n FROM capacity)) AS l`, new: `LIMIT (SELECT 2 * n FROM capacity) FOR UPDATE SKIP LOCKED) AS l`}},
		outbox, "TestAClaimLocksOnlyTheLanesItClaims",
	},
	{
		"of two deliveries that came while a lane was claimed the later one is remembered",
		[]edit{{file: outbox, in: "Arrivals.learn", old: `seq = min(seq, known.seq)`, new: `_ = known`}},
		outbox, "TestTheEarlierOfTwoDeliveriesIsJudged",
	},
	{
		"lanes whose deliveries could not be read are kept",
		[]edit{{file: outbox, in: "claim.first", old: `c.Deliveries, failed, idle = nil, nil, keys`, new: `c.Deliveries, failed, idle = nil, nil, nil`}},
		outbox, "TestAClaimThatFailsLosesNothing",
	},
	{
		"a lane is closed although another delivery is there",
		[]edit{
			{file: outbox, in: "settleLanes", old: `WHERE l.ctid = f.lane AND f.tid IS NULL`, new: `WHERE l.ctid = f.lane AND (f.tid IS NULL OR NOT f.may_stay)`},
			{file: outbox, in: "settleLanes", old: `f.tid IS NOT NULL AND f.lane NOT IN`, new: `f.may_stay AND f.tid IS NOT NULL AND f.lane NOT IN`},
		},
		outbox, "TestAFinishedKeyLeavesNoLane",
	},
	{
		"a lane that is released is never due",
		[]edit{{file: outbox, in: "settleLanes", pattern: `greatest\(\w+\.due_at, .*\)`, new: `'infinity'`}},
		chaos, "TestFault20bFewKeysOfADeadReceiver",
	},
	{
		"suspects are claimed with the others",
		[]edit{
			{file: outbox, in: "dueLanes", old: "AND ` + notSuspect + `"},
			{file: outbox, in: "claimLanes", old: "AND ` + notSuspect + `"},
		},
		relay, "TestSuspectIsSentAloneAndStopsNobody",
	},
	{
		"a requeue that relays do not find",
		[]edit{{file: schema, in: "outbox.complete_requeue", old: `NEW.changed_in := pg_current_xact_id();`}},
		relay, "TestARequeueIsANewLife",
	},
	{
		"a delivery that is being discarded is sent",
		[]edit{{file: outbox, in: "unlocked", pattern: `\(\w+\.xmax = .*SKIP LOCKED\)\)`, new: `true`}},
		chaos, "TestFault17DiscardDuringAClaim",
	},
	{
		"lanes are opened claimed during a hold",
		[]edit{{file: outbox, in: "openLanes", old: `'' IN (SELECT scope FROM scope_on_hold) THEN 0`, new: `false THEN 0`}},
		chaos, "TestFault17PauseClaimsNothing",
	},
	{
		"a page changes what is no longer as it was chosen",
		[]edit{{file: operate, in: "Order.find", old: ` AND d.changed_in = k.life::xid8`}},
		chaos, "TestFault17dBulkRequeueDuringDeliveries",
	},
	{
		"a set has what failed after its moment",
		[]edit{{file: operate, in: "notFailedSince", old: `AND l.at > $8`, new: `AND l.at > $8 AND false`}},
		chaos, "TestFault17dBulkRequeueDuringDeliveries",
	},
	{
		"the latest have no share during a backlog",
		[]edit{{file: relay, in: "schedule.next", old: `min(r.Capacity, int(s.credit))`, new: `0`}},
		relay, "TestFreshKeyAfterAnOutage",
	},
	{
		"new keys have no share while lanes are due",
		[]edit{{file: relay, in: "schedule.next", old: `r.Lanes = r.Capacity / newKeysOneIn`, new: `r.Lanes = r.Capacity`}},
		relay, "TestFreshKeyAmongManyBusyKeysOnFewWorkers",
	},
	{
		"one death that makes a suspect",
		[]edit{
			{file: outbox, in: "notSuspect", old: ` < 2`, new: ` < 1`},
			{file: outbox, in: "isSuspect", old: "`l.crashes > 0 AND ` + crashes + ` >= 2`", new: "crashes + ` >= 1`"},
		},
		relay, "TestDeliveriesOfOneDeadRelayGoTogether",
	},
	{
		"a slot for the sync with the most in flight",
		[]edit{{file: relay, in: "slots.next", old: `s.used < next.used`, new: `s.used > next.used`}},
		relay, "TestBusySyncsHaveEqualShares",
	},
	{
		"a worker that counts though its call does not return",
		[]edit{{file: relay, in: "pipeline.abandon", old: `p.slots.lose(workers)`}},
		relay, "TestASyncWithAllWorkersHangingStallsOnlyItself",
	},
	{
		"a second attempt while one does not return",
		[]edit{{file: relay, in: "pipeline.abandon", old: `p.abandoned.add(event)`}},
		relay, "TestAnAttemptThatDoesNotReturnIsAbandoned",
	},
	{
		"a lane is kept although others wait",
		[]edit{{file: relay, in: "schedule.stays", old: `!s.othersWait ||`, new: `true ||`}},
		relay, "TestStays",
	},
	{
		"recording in two transactions",
		[]edit{
			{file: outbox, in: "recordFinished", part: "logged", old: `FROM removed AS r`, new: `FROM removed AS r WHERE false`},
			{file: outbox, in: "Store.Record", old: `var missing []int`, new: `for i := range results {
		if d := results[i].Delivery; r.Done[i] && results[i].Outcome.Finished() {
			_, err := s.pool.Exec(ctx, "INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, attempt, outcome, code, claim, relay) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
				d.Sync, d.Event.ID, d.Event.Type, d.Key, d.Total+1, string(results[i].Outcome), results[i].Code, d.Claim, s.relay)
			if err != nil {
				r.Err = err
				return r
			}
		}
	}
	var missing []int`},
		},
		chaos, "TestFault03KilledDuringItsRecording/inside,_the_backend_dies_too",
	},
	{
		"a lost answer to a recording repeats the request",
		[]edit{{file: relay, in: "pipeline.recordLoop", old: `pause = calls.failed(context.WithoutCancel(attempts), err)`, new: `for i := range waiting {
				waiting[i].Result = p.attempt(attempts, work{Delivery: waiting[i].Delivery, leaseEnd: time.Now().Add(p.relay.config.Lease)})
			}
			pause = calls.failed(context.WithoutCancel(attempts), err)`}},
		chaos, "TestFault03KilledDuringItsRecording/before_the_commit,_only_the_backend_dies",
	},
	{
		"a body that is not kept for the next attempt",
		[]edit{{file: outbox, in: "recordUnfinished", old: `coalesce(r.body, d.body)`, new: `d.body`}},
		relay, "TestRetryKeepsBytesOverAChangedMapping",
	},
	{
		"an idempotency key for each attempt",
		[]edit{{file: relay, in: "idempotencyKey", old: `key := d.Event.ID`, new: `key := fmt.Sprintf("%s:%d", d.Event.ID, d.Total+1)`}},
		chaos, "TestFault03KilledDuringItsRecording/before_the_recording",
	},
	{
		"a body is kept on another route",
		[]edit{{file: relay, in: "pipeline.isRendered", old: `requestIn(d.MappingVersion) == to.request() && `, new: ``}},
		relay, "TestRetryOnAnotherRouteIsAnotherRequest",
	},
	{
		"another route keeps the idempotency key",
		[]edit{{file: relay, in: "pipeline.prepare", old: ` || d.MappingVersion != "" && to.request() != requestIn(d.MappingVersion)`, new: ``}},
		relay, "TestRequeueOnAnotherRouteHasAnotherKey",
	},
	{
		"the lease is not checked before sending",
		[]edit{
			{file: relay, in: "pipeline.mayStart", old: `time.Until(w.leaseEnd) < p.sync.AttemptTimeout()+leaseMargin`, new: `false`},
			{file: relay, in: "pipeline.attempt", old: `time.Until(w.leaseEnd) < leaseMargin`, new: `false`},
		},
		chaos, "TestFault04StalledWithUnsentClaims",
	},
	{
		"a release that counts as a crash",
		[]edit{{file: outbox, in: "settleLanes", old: `THEN 0 ELSE _.crashes END`, new: `THEN 0 ELSE _1.crashes + 1 END`}},
		chaos, "TestFault08Stopped/drained_in_time",
	},
	{
		"crashes that are not counted",
		[]edit{{file: outbox, in: "claimPicked", old: "crashes = ` + crashes + `", new: `crashes = l.crashes`}},
		chaos, "TestFault06EventThatKillsRelays",
	},
	{
		"an attempt that a stop cuts off costs budget",
		[]edit{{file: relay, in: "pipeline.failed", old: `cutOff(result, err)`, new: `cutOff(result, err)
		result.Charge = true`}},
		chaos, "TestFault08Stopped/not_drained_in_time",
	},
	{
		"a throttle costs budget",
		[]edit{{file: relay, in: "pipeline.failed", old: `p.putOnHold(w.to, outbox.HoldThrottle,`, new: `p.retry(w, result, asked)
		p.putOnHold(w.to, outbox.HoldThrottle,`}},
		relay, "TestThrottleHoldsTheSyncAndOthersFlow",
	},
	{
		"a discard that leaves the lane as it was",
		[]edit{{file: schema, in: "outbox.discard", old: `SET due_at = CASE WHEN _.claim IS NULL THEN clock_timestamp() ELSE _.due_at END`, new: `SET due_at = _1.due_at`}},
		chaos, "TestFault21OddRows",
	},
	{
		"a pool that keeps the connections of a demoted primary",
		[]edit{{file: outbox, in: "Store.reset", old: `s.pool.Reset()`}},
		outbox, "TestConnectionsThatAreReadOnlyAreLeft",
	},
	{
		"hosts from data are not judged",
		[]edit{{file: endpoint, in: "hosts.has", old: `return host == allowed`, new: `return true`}},
		endpoint, "TestHostsFromData",
	},
	{
		"addresses of hosts from data are not judged",
		[]edit{{file: exchange, in: "judge", old: `public(ip)`, new: `true`}},
		endpoint, "TestHostsFromData",
	},
	{
		"a token that is kept although it was refused",
		[]edit{{file: endpoint, in: "Endpoint.Deliver", old: `refused()`, new: `_ = refused`}},
		endpoint, "TestRefusedTokenIsDropped",
	},
	{
		"one id for all assertions",
		[]edit{{file: endpoint, in: "assertedClaims", old: `newID()`, new: `a.ClientID`}},
		endpoint, "TestPrivateKeyJWT",
	},
	{
		"a refusal drops only the last of two tokens",
		[]edit{{file: endpoint, in: "Endpoint.authorize", old: `drop = append(drop, one)`, new: `drop = append(drop[:0:0], one)`}},
		endpoint, "TestServiceTokenBesideTheBearer",
	},
	{
		"a configuration that is still being written is used",
		[]edit{{file: config, in: "Watch.Changed", old: `!maps.Equal(read, w.seen)`, new: `false`}},
		config, "TestWatch",
	},
	{
		"a wrong configuration is reported again and again",
		[]edit{{file: config, in: "Watch.Changed", old: `w.used, w.seen = read, nil`, new: `w.seen = nil
	if err == nil {
		w.used = read
	}`}},
		config, "TestWatch",
	},
	{
		"a webhook id for each attempt",
		[]edit{{file: webhook, in: "Adapter.request", old: `req.Header.Set("Webhook-Id", msg.IdempotencyKey)`, new: `req.Header.Set("Webhook-Id", fmt.Sprint(msg.IdempotencyKey, "-", msg.Attempt))`}},
		webhook, "TestConformance",
	},
	{
		"a webhook signed with its first secret only",
		[]edit{{file: webhook, in: "Adapter.request", old: `strings.Join(signatures, " ")`, new: `signatures[0]`}},
		webhook, "TestRotation",
	},
	{
		"a value that becomes markup",
		[]edit{{file: soap, in: "writer.text", old: `_, _ = escapeText.WriteString(w, s)`, new: `w.raw(s)`}},
		soap, "TestValuesNeverBecomeMarkup",
	},
	{
		"a nonce for all attempts",
		[]edit{{file: soap, in: "newAdapter", old: `a.token = func() *token {`, new: `same := nonce()
		nonce = func() []byte { return same }
		a.token = func() *token {`}},
		soap, "TestPHPGetsAFreshTokenAndTheSameMessageIDPerAttempt",
	},
	{
		"a MessageID for each attempt",
		[]edit{{file: soap, in: "operation.write", old: `v.message.Msg.IdempotencyKey, o.action`, new: `fmt.Sprint(v.message.Msg.IdempotencyKey, v.message.Msg.Attempt), o.action`}},
		soap, "TestPHPKnowsAMessageAgain",
	},
	{
		"a fault inside HTTP 200 taken for a delivery",
		[]edit{{file: soap, in: "Adapter.meaning", old: `byStatus := exchange.Outcomes{}.ClassOfStatus(ans)`, new: `byStatus := exchange.Outcomes{}.ClassOfStatus(ans)
	if ans.OK() {
		return byStatus, reason
	}`}},
		soap, "TestPHPAnswersAreClassified",
	},
	{
		"a page with status 200 taken for a delivery",
		[]edit{{file: exchange, in: "Rules.meaning", old: `case a.IsPage():`, new: `case a.IsPage() && named:`}},
		rest, "TestConformance",
	},
	{
		"a message without end to a receiver that answers nothing clear",
		[]edit{{file: relay, in: "pipeline.unclear", old: `times >= unclearTimes`, new: `times >= 1000*unclearTimes`}},
		relay, "TestADeliveryFailsAfterFiveAnswersThatDoNotSayWhetherItArrived",
	},
	{
		"a result that no entry of answers knows, taken for a delivery",
		[]edit{{file: soap, in: "Adapter.meaning", old: `why != "" && ans.OK()`, new: `why == "?"`}},
		soap, "TestResultsThatNoEntryOfAnswersMatches",
	},
	{
		"a short throttle that shortens a long one",
		[]edit{{file: outbox, in: "Store.Hold", old: `greatest(_.until, excluded.until)`, new: `excluded.until`}},
		outbox, "TestAShortHoldDoesNotShortenALongOne",
	},
	{
		"a lift that ends every hold",
		[]edit{{file: outbox, in: "Store.Lift", old: ` AND kind IN ('auth', 'breaker')`}},
		outbox, "TestModel",
	},
	{
		"a hold of one scope that holds all",
		[]edit{{file: outbox, in: "Store.Hold", old: `SELECT name, $6,`, new: `SELECT name, left($6::text, 0),`}},
		relay, "TestAThrottleHoldsItsScopeOnly",
	},
	{
		"a lift of one scope that lifts all",
		[]edit{{file: outbox, in: "Store.Lift", old: `scope = $2`, new: `$2::text IS NOT NULL`}},
		outbox, "TestHoldsOfScopesAreKeptApart",
	},
	{
		"a throttle that ends in one scope ends in all",
		[]edit{{file: outbox, in: "Store.EndHolds", old: `h.scope = o.scope AND `, times: 2}},
		outbox, "TestHoldsOfScopesAreKeptApart",
	},
	{
		"a scope that is forgotten when the lane is released",
		[]edit{{file: outbox, in: "Result.laneScope", old: `r.Scope == nil`, new: `true`}},
		outbox, "TestClaimsLeaveScopesOnHold",
	},
	{
		"a relay that releases a lane without its scope",
		[]edit{
			{file: relay, in: "pipeline.finish", old: `result.Scope = &w.to`, new: `_ = w.to`},
			{file: relay, in: "pipeline.place", old: `released.Scope = &w.to`, new: `_ = w.to`},
		},
		relay, "TestAScopeIsPausedAndResumed",
	},
	{
		"a probe of another scope",
		[]edit{
			{file: outbox, in: "Store.Probe", old: `_.scope = $5 AND _.due_at <= now()`, new: `_1.due_at <= now()`, times: 2},
			{file: outbox, in: "Store.Probe", old: `coalesce(_.scope, '') = $5`, new: `true`},
		},
		outbox, "TestAProbeIsMadeInItsScope",
	},
	{
		"a scope that is probed while the whole sync is on hold",
		[]edit{{file: outbox, in: "Store.Probe", old: `OR _.kind IN ('auth', 'breaker') AND _.scope <> $5`}},
		outbox, "TestAProbeIsMadeInItsScope",
	},
	{
		"a probe of a scope that lifts the hold of the whole sync",
		[]edit{{file: relay, in: "pipeline.probed", old: `p.relay.store.Lift(ctx, p.sync.Name, w.probe.of)`, new: `p.relay.store.Lift(ctx, p.sync.Name, "")`}},
		relay, "TestAProbeIsSentToItsScope",
	},
	{
		"a destination that takes all slots from others",
		[]edit{{file: relay, in: "destinations.allowed", old: `most = slots / busyOneIn`, new: `most = slots`}},
		relay, "TestDestinations",
	},
	{
		"a destination on hold that leaves the others half of the slots",
		[]edit{{file: relay, in: "destinations.hold", old: `d.open--`}},
		relay, "TestDestinations",
	},
	{
		"a breaker that counts all scopes together",
		[]edit{{file: relay, in: "pipeline.retry", old: `p.healths.of(w.to).fail`, new: `p.healths.of("").fail`}},
		relay, "TestADestinationAloneTripsItsBreaker",
	},
	{
		"a rejection that does not clear the breaker's count",
		[]edit{{file: relay, in: "pipeline.failed", old: `p.healths.of(w.to).answered()`}},
		relay, "TestARejectionShowsThatTheReceiverIsUp",
	},
	{
		"a backfill that adds discarded deliveries",
		[]edit{{file: schema, in: "outbox.ends_delivery", old: `superseded, discarded}`, new: `superseded}`}},
		outbox, "TestABackfillAddsNoFinishedEvents",
	},
	{
		"a backfill that leaves out events of open writers",
		[]edit{{file: outbox, in: "Backfill.addPage", old: `OR s.backfill_unseen @> p.seq`, new: `OR false`}},
		outbox, "TestABackfillFromNowAddsUncommittedEvents",
	},
	{
		"a delivery that starts after the closing of its window",
		[]edit{{file: relay, in: "pipeline.attempt", old: `!p.hours.open(time.Now())`, new: `false`}},
		relay, "TestScriptedNothingStartsOutsideTheWindow",
	},
	{
		"a window that is kept by the relay's clock",
		[]edit{{file: outbox, in: "keepWindow", old: `c.now >= $3 AND c.now < $4`, new: `true`}},
		outbox, "TestAWindowIsKeptByTheDatabasesClock",
	},
	{
		"a window that closes at the first of two times",
		[]edit{{file: relay, in: "Window.instant", old: `!found.IsZero() && !last`, new: `!found.IsZero()`}},
		relay, "TestWindowsOpenAndClose",
	},
	{
		"a fan-out to syncs that are retired",
		[]edit{{file: schema, in: "outbox.fan_out", old: `JOIN outbox.sync AS _ ON _.retired_at IS NULL AND outbox.takes`, new: `JOIN outbox.sync AS _1 ON outbox.takes`}},
		migrations, "TestFanOutFollowsPatterns",
	},
	{
		"operator events for every pattern",
		[]edit{{file: schema, in: "outbox.takes", old: `WHEN NOT starts_with(type, 'lockstep:') THEN likes`, new: `WHEN true THEN likes`}},
		migrations, "TestOperatorEventsGoToTheirOwnPatternsOnly",
	},
	{
		"operator events for the sync that they are about",
		[]edit{{file: schema, in: "outbox.takes", old: `key <> sync`, new: `true`}},
		migrations, "TestOperatorEventsGoToTheirOwnPatternsOnly",
	},
	{
		"operator events of everybody",
		[]edit{{file: schema, in: "outbox.refuse_operator_event", old: `OR NOT (SELECT`, new: `AND NOT (SELECT`}},
		migrations, "TestNobodyElseWritesOperatorEvents",
	},
	{
		"a second failure that is not told",
		[]edit{{file: schema, in: "outbox.complete_requeue", old: `NEW.failure_told := false;`}},
		migrations, "TestEachFailureIsToldOnce",
	},
	{
		"alerts that wait for an operator",
		[]edit{{file: schema, in: "outbox.raise_alerts", old: `FOR NO KEY UPDATE SKIP LOCKED`, new: `FOR NO KEY UPDATE`, times: 2}},
		migrations, "TestRowsInUseAreToldLater",
	},
	{
		"two relays that tell at once",
		[]edit{{file: schema, in: "outbox.raise_alerts", old: `NOT pg_try_advisory_xact_lock(1869967994)`, new: `false`}},
		migrations, "TestTwoRelaysTellOnce",
	},
	{
		"operator events about operator events",
		[]edit{{file: schema, in: "outbox.raise_alerts", old: `place.operator_likes = '{}'`, new: `true`}},
		migrations, "TestOperatorEventsRaiseNone",
	},
	{
		"a key that is escalated with each of its events",
		[]edit{{file: schema, in: "outbox.raise_alerts", old: `AND o.escalated)`, new: `AND false)`}},
		migrations, "TestAKeyIsEscalatedOnce",
	},
	{
		"a message that is told without a pause",
		[]edit{{file: schema, in: "outbox.raise_alerts", old: `interval := '5 minutes'`, new: `interval := '0'`}},
		migrations, "TestEachFailureIsToldOnce",
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
		"an uncertain delivery that is sent without a look",
		[]edit{{file: relay, in: "pipeline.attempt", old: `if d.Uncertain {`, new: `if false {`}},
		relay, "TestLostAnswerIsReadBeforeTheNextAttempt",
	},
	{
		"a lost answer that leaves nothing uncertain",
		[]edit{{file: outbox, in: "recordUnfinished", old: `uncertain = r.outcome = 'unknown' OR d.uncertain`, new: `uncertain = d.uncertain`}},
		relay, "TestLostAnswerIsReadBeforeTheNextAttempt",
	},
	{
		"a dead relay that leaves nothing uncertain",
		[]edit{{file: outbox, in: "claimedColumns", old: `c.uncertain OR c.lost_claim IS NOT NULL`, new: `c.uncertain`}},
		relay, "TestDeliveryOfADeadRelayIsReadFirst",
	},
	{
		"a read that found drift makes the delivery certain",
		[]edit{{file: outbox, in: "recordUnfinished", old: `r.outcome = 'read' AND r.class IS NULL`, new: `r.outcome IN ('read', 'failed')`}},
		relay, "TestReadThatFindsDriftFails",
	},
	{
		"steps with one idempotency key",
		[]edit{{file: relay, in: "idempotencyKey", old: `if d.Step > 0 {`, new: `if false {`}},
		relay, "TestEventInSteps",
	},
	{
		"a new event of a calendar that overwrites one that is there",
		[]edit{{file: caldav, in: "Adapter.Deliver", old: `h.Set("If-None-Match", "*")`}},
		caldav, "TestChangesByOthers",
	},
	{
		"a change in a calendar that overwrites somebody else's",
		[]edit{{file: caldav, in: "Adapter.Deliver", old: `h.Set("If-Match", p.etag)`}},
		caldav, "TestChangesByOthers",
	},
	{
		"an HL7 acknowledgement of another message that counts for this one",
		[]edit{{file: hl7, in: "Adapter.deliver", old: `answer.of != controlID(msg.IdempotencyKey)`, new: `false`}},
		hl7, "TestAnswers",
	},
	{
		"an HL7 connection that is used again after a missing answer",
		[]edit{{file: hl7, in: "pool.put", old: `!keep || p.closed`, new: `p.closed`}},
		hl7, "TestAnswers",
	},
	{
		"HL7 values that are not escaped",
		[]edit{{file: hl7, in: "escape", old: `escapes.Replace(text)`, new: `text`}},
		hl7, "TestMessages",
	},
	{
		"a probe without an answer that the next one follows at once",
		[]edit{{file: relay, in: "pipeline.probed", old: `case r.Outcome == outbox.Retry, r.Outcome == outbox.Unknown,`, new: `case r.Outcome == outbox.Retry,`}},
		relay, "TestAProbeWithoutAnAnswerIsFollowedByAPause",
	},
	{
		"a probe that is filtered lifts the hold",
		[]edit{{file: relay, in: "pipeline.probed", old: `r.Outcome.Succeeded() && r.Attempt`, new: `r.Outcome.Succeeded()`}},
		relay, "TestAProbeThatIsNotSentLiftsNoHold",
	},
	{
		"a probe that cannot be mapped lifts the hold",
		[]edit{{file: relay, in: "pipeline.probed", old: `r.Outcome == outbox.Failed && r.Attempt`, new: `r.Outcome == outbox.Failed`}},
		relay, "TestAProbeThatIsNotSentLiftsNoHold",
	},
	{
		"a probe that costs budget",
		[]edit{{file: relay, in: "pipeline.retry", old: `if w.probe.granted() || p.held(w.to) {`, new: `if false {`}},
		relay, "TestNoRowPaysForAProbe",
	},
	{
		"a finish that claims a suspect",
		[]edit{{file: outbox, in: "settleLanes", old: `AND _.crashes < 2`}},
		outbox, "TestASuspectIsLeftToBeSentAlone",
	},
	{
		"a finish that claims during a hold",
		[]edit{{file: outbox, in: "settleLanes", old: ` AND NOT EXISTS (SELECT FROM scope_on_hold AS h WHERE h.scope IN ('', l.lane_scope))`}},
		outbox, "TestRecordReturnsNothingDuringAHold",
	},
	{
		"a takeover's row taken for the recording",
		[]edit{{file: outbox, in: "resultsNotRecorded", old: `AND _.took_ms IS NOT NULL`}},
		outbox, "TestClaimThatIsGoneChangesNothing",
	},
	{
		"a recording that waits for a locked row",
		[]edit{{file: outbox, in: "recordFinished", old: `_.ctid = _.ctid FOR UPDATE SKIP LOCKED`, new: `_1.ctid = _2.ctid FOR UPDATE`}},
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
		"a reference that goes back",
		[]edit{{file: outbox, in: "recordReferences", old: `excluded.event_seq >= old.event_seq AND `}},
		outbox, "TestReferenceOfALaterDeliveryStays",
	},
	{
		"a reference that a person has set and that an attempt from before overwrites",
		[]edit{{file: outbox, in: "recordReferences", old: ` AND excluded.times_set = old.times_set`}},
		outbox, "TestAReferenceThatIsSetStays",
	},
	{
		"a reference that a person has set and that a copy read before overwrites",
		[]edit{{file: outbox, in: "recordUnfinished", old: `WHERE excluded.times_set = old.times_set`}},
		outbox, "TestAReferenceThatIsSetStays",
	},
	{
		"a reference of a record that was lost, which stays that of a later event",
		[]edit{{file: outbox, in: "recordUnfinished", old: `event_seq = 0 --`, new: `event_seq = old.event_seq --`}},
		outbox, "TestReferenceOfARecordThatIsCreatedAgainIsKept",
	},
	{
		"learned values that stay with another record",
		[]edit{{file: schema, in: "outbox.set_reference", old: `r.external_id IS NOT DISTINCT FROM new_id`, new: `true`}},
		migrations, "TestLearnedValuesStayWithTheirRecord",
	},
	{
		"references that are written in any order",
		[]edit{{file: outbox, in: "recordReferences", old: `ORDER BY r.key COLLATE "C"`}},
		outbox, "TestReferencesAreRecordedInTheOrderOfTheKeys/delivered",
	},
	{
		"a body that keeps a reference that was replaced",
		[]edit{{file: relay, in: "pipeline.isRendered", old: ` && (!to.mapper.UsesRef() || d.MappingVersion != to.version())`, new: ``}},
		relay, "TestRetryAfterAReferenceWasSetIsAnotherRequest/a_body_with_the_id",
	},
	{
		"a body that goes to another route than it was made for",
		[]edit{{file: outbox, in: "recordUnfinished", old: `r.body IS NULL AND d.body_sha256 IS NOT NULL`, new: `false`}},
		relay, "TestBodyStaysOnItsRouteIfNothingWasSent",
	},
	{
		"a search for missed events that reads all deliveries of the key",
		[]edit{{file: schema, in: "outbox.was_missed", old: `d.event_seq = e.seq`, new: `d.event_id = e.id`}},
		migrations, "TestCheckForMissedEventsOfOneKeyReadsEachDeliveryOnce",
	},
	{
		"a pause that does not end by itself",
		[]edit{{file: outbox, in: "holdsInForce", old: `kind IN ('auth', 'breaker') OR`, new: `kind IN ('auth', 'breaker', 'operator') OR`}},
		migrations, "TestPauseEndsByItself",
	},
	{
		"an undone retirement that does not wait for open writers",
		[]edit{{file: schema, in: "outbox.resume_retired", old: `outbox.begin_backfill(resume_retired.sync, retired, true)`, new: `outbox.begin_backfill(resume_retired.sync, retired, false)`}},
		migrations, "TestUndoOfARetirementAddsWhatWasMissed",
	},
	{
		"an undone retirement without the events from meanwhile",
		[]edit{{file: schema, in: "outbox.resume_retired", old: `outbox.begin_backfill(resume_retired.sync, retired, true)`, new: `outbox.begin_backfill(resume_retired.sync, 'infinity', true)`}},
		migrations, "TestUndoOfARetirementAddsWhatWasMissed",
	},
	{
		"a discard that does not wait for a claim in progress",
		[]edit{{file: schema, in: "outbox.discard", old: `PERFORM outbox.wait_for_claims();`}},
		outbox, "TestADiscardWaitsForAClaimInProgress/discard,_COMMIT,_the_lane_is_there_false",
	},
	{
		"a discard of everything that does not wait for a claim in progress",
		[]edit{{file: schema, in: "outbox.discard_all", old: `PERFORM outbox.wait_for_claims();`}},
		outbox, "TestADiscardWaitsForAClaimInProgress/discard_all,_COMMIT,_the_lane_is_there_false",
	},
	{
		"a relay that leaves its heartbeat behind when it stops",
		[]edit{{file: relay, in: "Relay.beat", old: `r.endBeat(ctx, h)`}},
		relay, "TestRelaysShowThatTheyRun",
	},
	{
		"a slot of one's own that comes back as shared",
		[]edit{{file: relay, in: "share.free", old: `s.used > s.reserve`, new: `true`}},
		relay, "TestAsManySlotsComeBackAsWereTaken",
	},
	{
		"a shared slot that comes back as one's own",
		[]edit{{file: relay, in: "share.free", old: `s.used > s.reserve`, new: `false`}},
		relay, "TestAsManySlotsComeBackAsWereTaken",
	},
	{
		"suspects that are not alone",
		[]edit{{file: relay, in: "slots.grant", old: `a.exclusive[0].share.used == 0`, new: `true`}},
		relay, "TestSuspectIsSentAloneAndStopsNobody",
	},
	{
		"a date format that the login decides",
		[]edit{{file: outbox, in: "UseFormats", old: `"datestyle": "ISO, MDY", `}},
		outbox, "TestSettingsOfTheLoginChangeNothing",
	},
	{
		"a sequence that was begun anew and is not noticed",
		[]edit{{file: schema, in: "outbox.sequence_trouble", old: `ELSIF next <= highest THEN`, new: `ELSIF false THEN`}},
		outbox, "TestNumbersThatBeginAnewAreNoticed",
	},
	{
		"an event that is hidden and fails",
		[]edit{{file: relay, in: "pipeline.attempt", old: `err := p.relay.store.CheckPrivileges(ctx)`, new: `err := error(nil)`}},
		relay, "TestEventsThatAreHiddenFailNothing",
	},
	{
		"a repair for retired syncs",
		[]edit{{file: schema, in: "outbox.repair", old: `JOIN outbox.sync AS s ON s.retired_at IS NULL AND`, new: `JOIN outbox.sync AS s ON`}},
		migrations, "TestEventsWrittenWithTriggersOffAreFound",
	},
	{
		"a repair of what a backfill is about to add",
		[]edit{{file: schema, in: "outbox.repair", old: `IS NOT NULL AND m.type LIKE`, new: `IS NULL AND m.type LIKE`}},
		migrations, "TestRepairLeavesEventsToABackfill",
	},
	{
		"wrong tokens that are counted by what strangers say of their address",
		[]edit{
			{file: console, in: "Console.browser", old: `if !c.isProxy(from) {`, new: `if false {`},
			{file: console, in: "Console.browser", old: `err != nil || !c.isProxy(from)`, new: `err != nil`},
		},
		console, "TestWhatStrangersSayOfTheirAddressDoesNotCount",
	},
	{
		"pages without a login once the last user is removed",
		[]edit{{file: console, in: "Console.visitor", old: `case c.hadUsers.Load():`, new: `case false:`}},
		console, "TestPagesStayClosedWhenTheLastUserIsRemoved",
	},
	{
		"pages without a login that are served through a proxy",
		[]edit{{file: console, in: "Console.visitor", old: `r.Header.Get(name) != ""`, new: `false`}},
		console, "TestPagesWithoutALoginAreNotServedThroughAProxy",
	},
	{
		"a reading from before an action that is shown after it",
		[]edit{{file: console, in: "latest.younger", old: ` && last.changes == l.changes.Load()`}},
		console, "TestAReadingFromBeforeAnActionIsNotShared",
	},
}

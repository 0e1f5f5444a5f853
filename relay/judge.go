package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
)

// succeeded sets the result of an attempt that the receiver accepted.
func (p *pipeline) succeeded(w work, result *outbox.Result, receipt adapters.Receipt) {
	switch {
	case receipt.More && result.Delivery.Step+1 >= maxSteps:
		result.Outcome, result.Failed, result.Class = outbox.Failed, true, string(adapters.ClassPermanent)
		result.Error = fmt.Sprintf("the adapter asks for more than %d steps for one event", maxSteps)
		return
	case receipt.More:
		result.Outcome = outbox.Step
	case receipt.Duplicate:
		result.Outcome = outbox.Duplicate
	case receipt.Accepted:
		result.Outcome = outbox.Accepted
	default:
		result.Outcome = outbox.Delivered
	}
	result.Ref = reference(receipt.Ref, result.Delivery)
	if receipt.NoID {
		p.log.Warn("the answer lacks the receiver's id, which later events of the key need",
			"event", result.Delivery.Event.ID, "key", result.Delivery.Key, "code", result.Code)
	}
	if receipt.NoETag && !p.saidNoETag.Swap(true) {
		p.log.Warn("if_match is set, but the answer has no ETag that it can send: later requests for such keys go without If-Match; this is said once",
			"event", result.Delivery.Event.ID, "key", result.Delivery.Key, "code", result.Code)
	}
	if w.to != "" {
		p.healths.of("").answered() // things that all destinations need, such as the token endpoint, work
	}
	p.healths.of(w.to).succeeded(result.Delivery.Key, startOf(result))
	p.slots.grow()
}

// failed sets the result of an attempt that failed, by the class of its error.
func (p *pipeline) failed(ctx context.Context, w work, result *outbox.Result, receipt adapters.Receipt, err error) {
	d := w.Delivery
	class := adapters.ClassOf(err)
	if p.relay.cut.Load() && ctx.Err() != nil && result.Code == "" {
		cutOff(result, err)
		return
	}
	switch {
	case class == adapters.ClassConflict && receipt.Ref != nil:
		class = p.moved(result, *receipt.Ref, &err)
	case class == adapters.ClassConflict:
		if class = p.readBack(ctx, result, &receipt, &err); class == adapters.ClassDelivered {
			p.succeeded(w, result, receipt)
			return
		}
	}
	if adapters.IsCommon(err) {
		w.to = "" // the cause is common to all destinations
	}
	result.Outcome = outbox.Retry
	result.Class, result.Error = string(adapters.ClassOf(err)), textOf(err, d.Event.Payload)
	asked := min(adapters.RetryDelay(err), time.Hour)

	switch class {
	case adapters.ClassPermanent:
		result.Outcome, result.Failed = outbox.Failed, true
		if result.Attempt = result.Code != ""; result.Attempt {
			p.healths.of(w.to).answered()
			p.slots.grow()
		}
	case adapters.ClassThrottled:
		result.Attempt = result.Code != "" // without a code, the token endpoint asked to slow down
		result.Delay = asked
		if result.Delay <= 0 {
			result.Delay = p.sync.Retry.delay(d.Attempts + 1)
		}
		p.putOnHold(w.to, outbox.HoldThrottle, result.Delay, result.Error)
	case adapters.ClassConflict: // the copy was read: one more attempt with the new reference
	case adapters.ClassAuth, adapters.ClassForbidden:
		p.refused(w, class, result)
	case adapters.ClassUnexplained:
		result.Class = string(adapters.ClassTransient)
		if adapters.IsUnknown(err) {
			result.Outcome, result.Class = outbox.Unknown, string(adapters.ClassUnknown)
		}
		p.unexplained(w, result, asked)
	case adapters.ClassLocal:
		result.Attempt = false // nothing was sent
		result.Delay = min(p.sync.Retry.delay(1), localMost)
	case adapters.ClassUnknown:
		result.Outcome = outbox.Unknown
		if adapters.IsUnclear(err) {
			p.unclear(w, result)
		} else {
			p.retry(w, result, asked)
		}
	default:
		if adapters.IsCommon(err) && result.Code == "" && ctx.Err() == nil {
			p.unreachable(w, result)
		} else {
			p.retry(w, result, asked)
		}
	}
	if result.Failed {
		p.healths.of(w.to).forget(d.Key)
	}
	p.report(ctx, d, result)
}

// retry schedules the next attempt within the retry budget. It puts the scope on hold if too
// many keys failed in a row.
func (p *pipeline) retry(w work, result *outbox.Result, asked time.Duration) {
	d, budget := w.Delivery, p.sync.Retry
	if p.healths.of(w.to).fail(d.Key) && !w.probe.granted() {
		p.putOnHold(w.to, outbox.HoldBreaker, time.Second, "the last "+fmt.Sprint(breakerKeys)+" deliveries or more, each of another key, all failed, the last one: "+result.Error)
	}
	result.Delay = asked
	if asked <= 0 {
		result.Delay = budget.delay(d.Charged + 1)
	}
	if w.probe.granted() || p.held(w.to) {
		return // the receiver is known to be down, so the attempt costs no budget
	}
	result.Charge = true
	spent := d.Spent + result.Took
	switch {
	case budget.Attempts > 0 && d.Charged+1 >= budget.Attempts:
		result.Failed = true
		result.Error = adapters.Clean(fmt.Sprintf("gave up after %d attempts: %s", d.Charged+1, result.Error), maxError)
	case spent >= budget.MaxAge:
		result.Failed = true
		result.Error = adapters.Clean(fmt.Sprintf("gave up after %s of retries: %s", budget.MaxAge, result.Error), maxError)
	default:
		result.Delay = min(result.Delay, budget.MaxAge-spent)
		result.Spend = result.Took + result.Delay
	}
	if result.Failed && result.Outcome == outbox.Retry {
		result.Outcome = outbox.Failed
	}
}

// refused handles a refusal, which may be about the credentials or about this record. The
// receiver's answers to other keys show which. If the receiver refuses everything, the
// scope is put on hold and probed, and no delivery fails. If it accepts other keys, this
// delivery fails.
func (p *pipeline) refused(w work, class adapters.Class, result *outbox.Result) {
	d := w.Delivery
	if result.Attempt = result.Code != ""; !result.Attempt {
		// Without an answer of the receiver there was no attempt: the token endpoint or the receiver's TLS refused. No record is
		// the cause.
		if result.Class = string(adapters.ClassAuth); !w.probe.granted() {
			p.putOnHold(w.to, outbox.HoldAuth, probeFirst, result.Error)
		}
		return
	}
	about, times := p.healths.of(w.to).refuse(d.Key, startOf(result), result.AnsweredAt)
	switch {
	case w.probe.granted() || p.held(w.to): // the next probe decides when it is sent
	case about == refusesAll:
		result.Class = string(adapters.ClassAuth)
		p.putOnHold(w.to, outbox.HoldAuth, probeFirst, result.Error)
	case about == refusesRecord:
		singledOut(result, fmt.Sprintf("the receiver refuses this record with %s, the last %d times, while it accepts others", result.Code, times))
	case class == adapters.ClassAuth && d.Class != string(adapters.ClassAuth): // the adapter has just dropped its token
	default:
		result.Delay = min(p.sync.Retry.delay(times), probeMost)
	}
}

// unreachable handles an attempt that sent nothing because of something that all
// destinations need, such as a proxy. The sync is put on hold and probed. No record is the
// cause, so it is no attempt and costs no budget.
func (p *pipeline) unreachable(w work, result *outbox.Result) {
	result.Attempt = false
	if !w.probe.granted() {
		p.putOnHold(w.to, outbox.HoldBreaker, time.Second, result.Error)
	}
}

// unexplained handles a refusal without a reason, which may come from a gateway in front of
// the receiver. It is a temporary failure, and counts for the breaker. If only this record
// gets such answers while the receiver accepts others, the delivery fails.
func (p *pipeline) unexplained(w work, result *outbox.Result, asked time.Duration) {
	alone, times := p.healths.of(w.to).unexplained(w.Key, result.AnsweredAt)
	if alone && !w.probe.granted() && !p.held(w.to) {
		singledOut(result, fmt.Sprintf("the receiver answers this record with %s and no reason, the last %d times, while it accepts others", result.Code, times))
		return
	}
	p.retry(w, result, asked)
}

// unclear handles an answer that does not say whether the receiver has the message. Each
// further attempt may be accepted once more, so the delivery fails after a few of them. This
// also holds for probes.
func (p *pipeline) unclear(w work, result *outbox.Result) {
	times := w.Unclear + 1
	result.Unclear = true
	p.retry(w, result, 0)
	if times >= unclearTimes && !result.Failed {
		result.Failed = true
		result.Error = adapters.Clean(fmt.Sprintf("gave up after %d answers that do not say whether the receiver has it: %s", times, result.Error), maxError)
	}
}

// singledOut fails a delivery whose record is the cause.
func singledOut(result *outbox.Result, why string) {
	result.Outcome, result.Failed, result.Class = outbox.Failed, true, string(adapters.ClassPermanent)
	result.Error = adapters.Clean(why+": "+result.Error, maxError)
}

// startOf is when the attempt of a result began, on the monotonic clock.
func startOf(result *outbox.Result) time.Time { return result.AnsweredAt.Add(-result.Took) }

// cutOff sets the result of an attempt that a stop has cut off before there was an answer.
// It costs no budget. The receiver may have seen the request.
func cutOff(result *outbox.Result, err error) {
	result.Outcome, result.Class = outbox.Unknown, string(adapters.ClassUnknown)
	result.Error = adapters.Clean("cut off by the relay's stop: "+textOf(err, result.Delivery.Event.Payload), maxError)
}

// readBack reads the receiver's copy after a conflict, if the adapter can, and returns the
// class that follows from the copy.
func (p *pipeline) readBack(ctx context.Context, result *outbox.Result, receipt *adapters.Receipt, err *error) adapters.Class {
	d := result.Delivery
	m := p.message(d)
	reader, ok := p.sync.Adapter.(adapters.Reader)
	if !ok || !reader.Reads(m) {
		return adapters.ClassPermanent
	}
	reading, readErr := p.readInto(ctx, reader, m, result)
	if readErr != nil {
		result.Read.Class, result.Read.Error = string(adapters.ClassOf(readErr)), textOf(readErr, d.Event.Payload)
		*err = adapters.Classify(adapters.ClassTransient, fmt.Errorf("%w; reading back failed: %s", *err, result.Read.Error))
		return adapters.ClassTransient
	}
	switch reading.Standing {
	case adapters.Equal:
		receipt.Ref, receipt.More, result.Reason = reading.Ref, reading.More, settled
		return adapters.ClassDelivered
	case adapters.Absent, adapters.Older:
		if reading.Ref == nil {
			reading.Ref = new(m.Ref)
		}
		return p.moved(result, *reading.Ref, err)
	case adapters.Newer, adapters.Foreign:
	}
	*err = fmt.Errorf("%w; %s", *err, result.Read.Says)
	return adapters.ClassPermanent
}

// look reads what the receiver has, before an uncertain delivery is sent again. It reports
// false if the adapter cannot read it: then the delivery is sent.
func (p *pipeline) look(ctx context.Context, w work) (result outbox.Result, ok bool) {
	d, m := w.Delivery, p.message(w.Delivery)
	reader, ok := p.sync.Adapter.(adapters.Reader)
	if !ok || !reader.Reads(m) {
		return result, false
	}
	result = outbox.Result{Delivery: d, Outcome: outbox.Read}
	reading, err := p.readInto(ctx, reader, m, &result)
	result.Code, result.AnsweredAt, result.Took = result.Read.Code, time.Now(), result.Read.Took
	if err != nil {
		switch adapters.ClassOf(err) {
		case adapters.ClassUnknown: // a read changes nothing, so it can be made again
			err = adapters.Classify(adapters.ClassTransient, err)
		case adapters.ClassConflict: // it is read already
			err = adapters.Permanent(err)
		default:
		}
		p.failed(ctx, w, &result, adapters.Receipt{}, err)
		result.Attempt, result.SHA256 = false, ""
		result.Error = adapters.Clean("reading what the receiver has failed: "+result.Error, maxError)
		result.Read.Class, result.Read.Error = result.Class, result.Error
		if result.Outcome = outbox.Read; result.Failed {
			result.Outcome = outbox.Failed
		}
		return result, true
	}
	switch reading.Standing {
	case adapters.Equal:
		p.succeeded(w, &result, adapters.Receipt{Duplicate: true, More: reading.More, Ref: reading.Ref})
		result.Reason = settled
	case adapters.Absent, adapters.Older:
		if reading.Ref != nil {
			result.Ref = reference(reading.Ref, d)
		}
	case adapters.Newer, adapters.Foreign:
		result.Outcome, result.Failed, result.Class = outbox.Failed, true, string(adapters.ClassConflict)
		result.Error = result.Read.Says
		p.healths.of(w.to).forget(d.Key)
		p.report(ctx, d, &result)
	}
	return result, true
}

// settled is the reason of a delivery that was finished because the receiver has it.
const settled = "settled by reading what the receiver has"

// readInto reads what the receiver has, and notes it in the result for the log.
func (p *pipeline) readInto(ctx context.Context, r adapters.Reader, m adapters.Message, result *outbox.Result) (adapters.Reading, error) {
	started := time.Now()
	reading, err := p.read(ctx, r, m)
	result.Read = &outbox.Reading{Code: adapters.Clean(reading.Code, 100), Took: time.Since(started)}
	if err == nil {
		result.Read.Says = found(reading, result.Delivery.Event.Payload)
	}
	return reading, err
}

// found says what was read, for the log.
func found(r adapters.Reading, payload []byte) string {
	says := map[adapters.Standing]string{
		adapters.Absent:  "the receiver has no record of this key",
		adapters.Older:   "the receiver has an earlier state",
		adapters.Equal:   "the receiver has this state",
		adapters.Newer:   "drift: the receiver holds a newer state",
		adapters.Foreign: "drift: the receiver's copy was changed by somebody else",
	}[r.Standing]
	if r.Differs != "" {
		says += ": " + redact(r.Differs, payload)
	}
	return adapters.Clean(says, maxError)
}

// moved keeps a reference that a conflict has shown, for one more attempt.
func (p *pipeline) moved(result *outbox.Result, ref adapters.Ref, err *error) adapters.Class {
	d := result.Delivery
	if d.Class == string(adapters.ClassConflict) {
		*err = fmt.Errorf("%w; the attempt before had a conflict too", *err)
		return adapters.ClassPermanent
	}
	result.Ref = reference(&ref, d)
	return adapters.ClassConflict
}

// maxSteps is the most steps of one event.
const maxSteps = 16

const (
	probeFirst = 2 * time.Second  // pause before the first probe of a refused scope, if all due deliveries were refused before
	probeMost  = 30 * time.Second // longest pause between probes
	localMost  = 30 * time.Second // longest delay after a fault of this machine
)

func (p *pipeline) inDatabase(what string, do func(context.Context) error) {
	ctx := context.Background() // the store bounds the call, and a stop must not cancel it
	calls := p.relay.caller(what, p.sync.Name)
	if err := do(ctx); err != nil {
		calls.failed(ctx, err)
	} else {
		calls.troubles.worked(ctx, calls)
	}
}

func (p *pipeline) report(ctx context.Context, d *outbox.Delivery, r *outbox.Result) {
	args := []any{
		"event", d.Event.ID, "key", d.Key, "attempt", d.Total + 1, "class", r.Class, "code", r.Code, "error", r.Error,
	}
	if r.Failed {
		p.log.ErrorContext(ctx, "delivery failed", args...)
		return
	}
	p.log.WarnContext(ctx, "attempt failed", append(args, "retry_in", r.Delay.Round(time.Millisecond))...)
}

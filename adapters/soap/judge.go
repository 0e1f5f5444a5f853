package soap

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// judge turns an answer to msg into the result of the attempt.
func (a *Adapter) judge(req exchange.Request, ans exchange.Answer, msg adapters.Message) (adapters.Receipt, error) {
	m, err := readMessage(ans)
	if err != nil {
		return a.judgeOther(req, ans, err)
	}
	class, reason := a.meaning(m, ans)
	receipt, err := exchange.Result(class, req, ans, func() string {
		if reason != "" {
			return reason
		}
		return adapters.Clean(m.fault.text(a.known, req.Redact), maxFault)
	})
	if m.fault != nil {
		receipt.Code += " " + shortCode(m.fault.codes[0].code(a.known), req)
	}
	if err != nil {
		return receipt, err
	}
	if ans.Cut != nil && !m.whole { // nothing is missing where only the length was wrong
		return receipt, adapters.Unknown(fmt.Errorf("%s %s: answered %s, but the end of the SOAP message was cut off: %w",
			req.Method, req.Target, ans.Code(), ans.Cut))
	}
	if a.externalID != nil && a.id(m) == "" {
		switch {
		case a.require == adapters.RequireID:
			return exchange.IDMissing(req, ans, a.idAt)
		case a.require == "" && msg.Ref.ExternalID == "":
			receipt.NoID = true
		}
	}
	receipt.Ref = a.ref(m, msg)
	return receipt, nil
}

// meaning returns the class of a SOAP message, and the reason of a failure in our own
// words. It is empty if the fault says the reason.
func (a *Adapter) meaning(m *message, ans exchange.Answer) (class adapters.Class, reason string) {
	if m.fault == nil {
		reason = "a SOAP message without a fault"
	}
	for i, r := range a.rules {
		if r.any() && (m.fault != nil || !ans.OK()) {
			break
		}
		if r.matches(m) {
			if m.fault == nil {
				reason = fmt.Sprintf("its body matches answers[%d]", i)
			}
			return r.class, reason
		}
		if r.undecided(m) {
			return adapters.ClassUnknown, fmt.Sprintf("it ends before the element that answers[%d] needs", i)
		}
	}
	byStatus := exchange.Outcomes{}.ClassOfStatus(ans)
	if m.fault == nil {
		if why := a.unmatched(m); why != "" && ans.OK() {
			return adapters.ClassUnknown, why
		}
		return byStatus, reason
	}
	class = m.fault.class()
	if class == adapters.ClassAuth {
		return class, reason
	}
	switch ans.Status { // these say more than the code of a fault
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired, http.StatusTooManyRequests:
		class = byStatus
	case http.StatusServiceUnavailable:
		if class == adapters.ClassTransient {
			class = byStatus // throttled with a Retry-After
		}
	}
	return class, reason
}

// judgeOther judges an answer that is no SOAP message; why says why not.
func (a *Adapter) judgeOther(req exchange.Request, ans exchange.Answer, why error) (adapters.Receipt, error) {
	class := a.outcomes.Class(ans)
	if _, ok := a.configured[ans.Status]; ans.OK() && !ok {
		oneWay := ans.Status == http.StatusAccepted && len(ans.Body) == 0 && ans.Cut == nil
		if !oneWay {
			class = adapters.ClassUnknown
		}
	}
	if ans.Cut != nil {
		why = errors.New("its end was cut off")
	}
	return exchange.Result(class, req, ans, func() string {
		return cmp.Or(req.Reason(ans), "no SOAP message: "+req.Redact(why.Error()))
	})
}

// maxFault bounds what an error shows of a fault, in bytes.
const maxFault = 400

// maxCode bounds the code of a fault in a receipt, in bytes.
const maxCode = 80

func shortCode(code string, req exchange.Request) string {
	if code = req.Redact(code); code == adapters.Hidden {
		return "fault"
	}
	return cmp.Or(adapters.Clean(code, maxCode), "fault")
}

// ref returns the new reference of the message's key, or nil if the answer does not
// change it.
func (a *Adapter) ref(m *message, msg adapters.Message) *adapters.Ref {
	id := a.id(m)
	if id == "" || id == msg.Ref.ExternalID {
		return nil
	}
	return &adapters.Ref{ExternalID: id, ETag: msg.Ref.ETag, Version: msg.Version}
}

// id returns the receiver's id in a message, or "".
func (a *Adapter) id(m *message) string {
	if a.externalID == nil {
		return ""
	}
	found := m.find(a.externalID)
	if i := slices.IndexFunc(found, exchange.IsRef); i >= 0 {
		return found[i]
	}
	return ""
}

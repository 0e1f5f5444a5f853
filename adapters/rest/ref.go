package rest

import (
	"regexp"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

var etag = regexp.MustCompile(`^(W/)?"[\x21\x23-\x7e]*"$`) // RFC 9110, 8.8.3, ASCII only

func validETag(s string) bool { return len(s) <= adapters.MaxRef && etag.MatchString(s) }

// id returns the receiver's id in an answer. It ignores values that cannot be stored or
// sent back, because they are empty, too long or have control characters.
func (a *Adapter) id(ans exchange.Answer) (string, bool) {
	if a.externalID == nil {
		return "", false
	}
	id, _ := ans.JSON().Text(a.externalID)
	if !exchange.IsRef(id) {
		return "", false
	}
	return id, true
}

// ref returns the new reference of the message's key, or nil if the answer does not
// change it. An accepted change without a new ETag makes the old ETag invalid.
// id is the receiver's id in the answer, if it has one.
func (a *Adapter) ref(msg adapters.Message, ans exchange.Answer, id string) *adapters.Ref {
	ref := adapters.Ref{ExternalID: msg.Ref.ExternalID, ETag: msg.Ref.ETag, Version: msg.Version}
	if ans.OK() {
		ref.ETag = ""
		if tag := ans.Header.Get("ETag"); validETag(tag) {
			ref.ETag = tag
		}
	}
	if id != "" {
		ref.ExternalID = id
	}
	if ref.ExternalID == msg.Ref.ExternalID && ref.ETag == msg.Ref.ETag {
		return nil
	}
	return &ref
}

package rest

import (
	"regexp"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

var etag = regexp.MustCompile(`^(W/)?"[\x21\x23-\x7e]*"$`) // RFC 9110, 8.8.3, ASCII only

func validETag(s string) bool { return len(s) <= adapters.MaxRef && etag.MatchString(s) }

// ref returns the new reference of the message's key, or nil if the answer does not
// change it. An accepted change without a new ETag makes the old ETag invalid.
func (a *Adapter) ref(msg adapters.Message, ans exchange.Answer) *adapters.Ref {
	ref := adapters.Ref{ExternalID: msg.Ref.ExternalID, ETag: msg.Ref.ETag, Version: msg.Version}
	if ans.OK() {
		ref.ETag = ""
		if tag := ans.Header.Get("ETag"); validETag(tag) {
			ref.ETag = tag
		}
	}
	if id, ok := a.externalID.find(ans); ok {
		ref.ExternalID = id
	}
	if ref.ExternalID == msg.Ref.ExternalID && ref.ETag == msg.Ref.ETag {
		return nil
	}
	return &ref
}

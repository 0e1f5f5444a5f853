package rest

import (
	"maps"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// condition returns the ETag for the header If-Match, or nothing.
func (t *target) condition(tag string) (string, bool) {
	weak := strings.HasPrefix(tag, "W/") // never matches by RFC 9110, 13.1.1; some receivers compare it nevertheless
	return tag, adapters.ValidETag(tag) && (t.ifMatch == "weak" || t.ifMatch == "true" && !weak)
}

// ref returns the new reference of the message's key, or nil if the answer does not
// change it. An accepted change without a new ETag makes the old ETag invalid.
// id is the receiver's id in the answer, if it has one.
func (t *target) ref(msg adapters.Message, ans exchange.Answer, id string) *adapters.Ref {
	was := msg.Ref
	ref := adapters.Ref{ExternalID: was.ExternalID, ETag: was.ETag, Version: msg.Version, Learned: was.Learned}
	if ans.OK() {
		ref.ETag = ""
		if tag := ans.Header.Get("ETag"); adapters.ValidETag(tag) {
			ref.ETag = tag
		}
	}
	if id != "" {
		ref.ExternalID = id
	}
	for name, from := range t.learn {
		value, ok := from.find(ans)
		if !ok || value == ref.Learned[name] {
			continue
		}
		if ref.Learned = maps.Clone(ref.Learned); ref.Learned == nil {
			ref.Learned = map[string]string{}
		}
		ref.Learned[name] = value
	}
	if ref.ExternalID == was.ExternalID && ref.ETag == was.ETag && maps.Equal(ref.Learned, was.Learned) {
		return nil
	}
	return &ref
}

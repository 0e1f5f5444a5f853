package rest

import (
	"maps"
	"net/http"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// condition returns the value of the header If-Match, or nothing.
func (t *target) condition(known adapters.Ref) (string, bool) {
	tag := known.ETag
	valid, weak := adapters.ValidETag(tag), strings.HasPrefix(tag, "W/") // a weak one never matches by RFC 9110, 13.1.1; some receivers compare it nevertheless
	switch t.ifMatch {
	case "weak":
		return tag, valid
	case "true", "any":
		if valid && !weak {
			return tag, true
		}
	}
	return "*", t.ifMatch == "any" && known.ExternalID != ""
}

// tag returns the ETag in an answer, or nothing.
func (t *target) tag(ans exchange.Answer) string {
	if t.etag == nil || t.etag.header != "" {
		return tagOf(t.etag, exchange.Document{}, ans.Header)
	}
	return tagOf(t.etag, ans.JSON(), ans.Header)
}

// tagOf returns the ETag in a record, or in the header of an answer that is about it. Without
// from it is the header ETag.
func tagOf(from *source, record exchange.Document, header http.Header) string {
	tag := header.Get("ETag")
	if from != nil {
		if tag = from.in(record, header); tag != "" && !adapters.ValidETag(tag) {
			tag = `"` + tag + `"` // such as Microsoft Graph's changeKey
		}
	}
	if !adapters.ValidETag(tag) {
		return ""
	}
	return tag
}

// lacksTag reports whether later requests have no If-Match because of this success,
// although they are to have one.
func (t *target) lacksTag(req exchange.Request, ans exchange.Answer, receipt adapters.Receipt) bool {
	if t.ifMatch != "true" && t.ifMatch != "weak" || t.reference != updateReference || req.Method == http.MethodDelete || !ans.OK() || receipt.Accepted {
		return false
	}
	_, has := t.condition(adapters.Ref{ETag: t.tag(ans)})
	return !has
}

// ref returns the new reference of the message's key, or nil if the answer does not
// change it. An accepted change without a new ETag makes the old ETag invalid.
// id is the receiver's id in the answer, if it has one.
func (t *target) ref(msg adapters.Message, ans exchange.Answer, id string) *adapters.Ref {
	was := msg.Ref
	switch {
	case t.reference == keepReference:
		return nil
	case t.reference != forgetReference:
	case was.ExternalID == "" && was.ETag == "" && len(was.Learned) == 0:
		return nil
	default:
		return &adapters.Ref{Version: msg.Version}
	}
	ref := adapters.Ref{ExternalID: was.ExternalID, ETag: was.ETag, Version: msg.Version, Learned: was.Learned}
	if ans.OK() {
		ref.ETag = t.tag(ans)
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

package soap

import (
	"crypto/sha1" // as RFC 9562 prescribes
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

var uuid = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// namespaceURL is the namespace of URLs (RFC 9562, 6.6).
const namespaceURL = "\x6b\xa7\xb8\x11\x9d\xad\x11\xd1\x80\xb4\x00\xc0\x4f\xd4\x30\xc8"

// messageID returns the wsa:MessageID of a message, which is the same on every attempt.
// It is the idempotency key if that is a UUID, such as the event's id. Otherwise it is
// a UUID made of the key (version 5, in the namespace of URLs, of "urn:lockstep:" and
// the key).
func messageID(key string) string {
	if id := strings.ToLower(key); uuid.MatchString(id) {
		return "urn:uuid:" + id
	}
	id := sha1.Sum([]byte(namespaceURL + "urn:lockstep:" + key))
	id[6], id[8] = id[6]&0x0f|0x50, id[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:16])
}

// write writes the header blocks of a message that goes to u.
func (a *Addressing) write(w *writer, key, action string, u *url.URL) {
	to := a.To
	if to == "" {
		without := *u
		without.RawQuery = ""
		to = without.String()
	}
	w.element("wsa:MessageID", messageID(key))
	w.element("wsa:Action", action)
	w.element("wsa:To", to)
	w.raw("\n")
}

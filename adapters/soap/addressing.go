package soap

import (
	"net/url"

	"github.com/google/uuid"
)

// messageID returns the wsa:MessageID of a message: its idempotency key, which is
// the event's id, or, for a key that is no UUID, a UUID made of it (version 5, in
// the namespace of URLs, of "urn:lockstep:" and the key). It is the same on every
// attempt.
func messageID(key string) string {
	id, err := uuid.Parse(key)
	if err != nil || len(key) != len(id.String()) {
		id = uuid.NewSHA1(uuid.NameSpaceURL, []byte("urn:lockstep:"+key))
	}
	return id.URN()
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

package courtsim

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"
)

// Booking is one case in the court's calendar.
type Booking struct {
	ID             string          `json:"id"` // the court's own id
	CaseReference  string          `json:"case_reference"`
	Status         string          `json:"status"`          // of the body, or booked; cancelled after DELETE or CancelHearing
	Changes        int             `json:"changes"`         // how often it was written
	IdempotencyKey string          `json:"idempotency_key"` // of the last write; wsa:MessageID over SOAP
	UpdatedAt      time.Time       `json:"updated_at"`
	Fields         json.RawMessage `json:"fields"` // the last body that was not a cancellation; of SOAP the operation's fields
}

// seen is the result of the request with an idempotency key.
type seen struct {
	digest, id string
}

// calendar is the court's state. The Court's lock guards it.
type calendar struct {
	byCase map[string]*Booking
	byID   map[string]*Booking
	keys   map[string]seen
	order  []string // keys, oldest first; empty if keep is 0
	keep   int
}

func newCalendar(keep int) *calendar {
	return &calendar{
		byCase: map[string]*Booking{},
		byID:   map[string]*Booking{},
		keys:   map[string]seen{},
		keep:   keep,
	}
}

func (c *calendar) all() map[string]Booking {
	m := make(map[string]Booking, len(c.byCase))
	for ref, b := range c.byCase {
		m[ref] = *b
	}
	return m
}

// find returns the booking with this id or case reference, nil if there is none.
func (c *calendar) find(id string) *Booking {
	return cmp.Or(c.byID[id], c.byCase[id])
}

// caseOf is the case reference of a request's body, or of the booking in its path.
func (c *calendar) caseOf(req request) string {
	ref := caseReference(req.body)
	if b := c.find(req.id); ref == "" && b != nil {
		return b.CaseReference
	}
	return ref
}

// apply processes req.
func (c *calendar) apply(req request, duplicateStatus int) reply {
	if req.path != "/api/calendar" && (req.id == "" || req.path != "/api/calendar/"+req.id) {
		return problem(http.StatusNotFound, "unknown-path", "The calendar is at /api/calendar and /api/calendar/{id}.")
	}
	if req.method == http.MethodGet {
		return c.read(req)
	}
	if old, ok := c.keys[req.key]; ok && req.key != "" {
		return repeated(old, req, duplicateStatus)
	}
	rep := c.write(req)
	if rep.accepted {
		c.remember(req, rep.id)
	}
	return rep
}

func (c *calendar) read(req request) reply {
	if req.id == "" {
		refs := slices.Sorted(maps.Keys(c.byCase))
		list := make([]Booking, 0, len(refs))
		for _, ref := range refs {
			list = append(list, *c.byCase[ref])
		}
		return jsonReply(http.StatusOK, map[string]any{"bookings": list})
	}
	b := c.find(req.id)
	if b == nil {
		return problem(http.StatusNotFound, "unknown-booking", "No booking has this case reference or id.")
	}
	return jsonReply(http.StatusOK, *b)
}

// repeated answers a request whose key was accepted before. With the same body it is a
// duplicate. Another body is a mistake of the caller
// (draft-ietf-httpapi-idempotency-key-header).
func repeated(old seen, req request, status int) reply {
	if old.digest != req.digest {
		return problem(http.StatusUnprocessableEntity, "key-reused", "This idempotency key was used before with another body.")
	}
	rep := jsonReply(http.StatusOK, map[string]string{"id": old.id})
	if status == http.StatusConflict {
		rep = problem(status, "duplicate", "This request was processed before.")
		rep.body = fmt.Appendf(nil, `%s,"id":%q}`, rep.body[:len(rep.body)-1], old.id)
	}
	rep.header = map[string]string{"Duplicate": "true"}
	rep.duplicate, rep.id = true, old.id
	return rep
}

// write books, changes or cancels.
func (c *calendar) write(req request) reply {
	b := c.byID[req.id]
	post, put, del := req.method == http.MethodPost, req.method == http.MethodPut, req.method == http.MethodDelete
	switch {
	case post && req.id == "", put && req.id != "", del && req.id != "":
	default:
		return problem(http.StatusMethodNotAllowed, "method", "POST goes to /api/calendar, PUT and DELETE to /api/calendar/{id}.")
	}
	if !post && b == nil {
		return problem(http.StatusNotFound, "unknown-booking", "No booking has this id.")
	}
	var object map[string]json.RawMessage
	err := json.Unmarshal(req.body, &object)
	if empty := len(req.body) == 0; (err != nil || object == nil) && (!del || !empty) {
		return problem(http.StatusBadRequest, "not-json", "The body is not one JSON object.")
	}
	status := http.StatusOK
	switch {
	case del:
		b.Status = "cancelled"
		return c.touch(b, req, status)
	case put && req.caseRef != b.CaseReference:
		return problem(http.StatusUnprocessableEntity, "case-reference", "case_reference is not the one of this booking.")
	case post && req.caseRef == "":
		return problem(http.StatusUnprocessableEntity, "case-reference", "The field case_reference (a string) is missing.")
	case post:
		if b = c.byCase[req.caseRef]; b == nil {
			status = http.StatusCreated
			b = &Booking{ID: fmt.Sprintf("CAL-%06d", len(c.byCase)+1), CaseReference: req.caseRef}
			c.byCase[b.CaseReference], c.byID[b.ID] = b, b
		}
	}
	b.Status = "booked"
	if text := ""; json.Unmarshal(object["status"], &text) == nil && text != "" {
		b.Status = text
	}
	b.Fields = req.body
	return c.touch(b, req, status)
}

func (c *calendar) touch(b *Booking, req request, status int) reply {
	b.Changes++
	b.IdempotencyKey = req.key
	b.UpdatedAt = time.Now().UTC()
	rep := jsonReply(status, map[string]string{"id": b.ID, "case_reference": b.CaseReference, "status": b.Status})
	rep.accepted, rep.id = true, b.ID
	if status == http.StatusCreated {
		rep.header = map[string]string{"Location": "/api/calendar/" + b.ID}
	}
	return rep
}

func (c *calendar) remember(req request, id string) {
	if req.key == "" {
		return
	}
	c.keys[req.key] = seen{digest: req.digest, id: id}
	if c.keep == 0 {
		return
	}
	c.order = append(c.order, req.key)
	if len(c.order) >= 2*c.keep {
		old := len(c.order) - c.keep
		for _, key := range c.order[:old] {
			delete(c.keys, key)
		}
		c.order = slices.Clone(c.order[old:])
	}
}

// Package caldav keeps events in a CalDAV calendar (RFC 4791): the calendar of a court room,
// on a server such as Radicale, Nextcloud, SOGo or Cyrus.
//
// Each key is one object of a collection, with one VEVENT (RFC 5545). Its UID is made of the
// key, and its SEQUENCE is the version of the event. A new object is written only if there is
// none (If-None-Match), and a known one only as it was last written (If-Match). So a repeated
// request books nothing twice, and nobody else's change is overwritten. A lost answer is read
// back.
//
// The mapped fields are those of [Fields]. The mapping gives the payload's fields these
// names.
package caldav

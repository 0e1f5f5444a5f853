// Package inspect reads what people look at: the console, lockstep top and their like.
//
// Each read is one snapshot of the database and changes nothing. No statement takes
// longer than half a second, and none counts or scans a big table: lists and numbers have
// bounds, and say when there is more. A role that may read is enough, such as
// outbox_auditor. No read returns a payload.
package inspect

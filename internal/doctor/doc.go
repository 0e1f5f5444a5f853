// Package doctor looks for what is wrong with a database, a configuration and the receivers,
// before it stops deliveries, and says what to do.
//
// It changes nothing and sends no request to a receiver. Each check has a timeout of its own
// and a connection of its own, so that one that hangs does not stop the others. A check that
// the login may not make is a finding too. The login of relays can make all checks, and a
// member of outbox_auditor most of them.
package doctor

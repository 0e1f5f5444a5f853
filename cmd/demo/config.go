package main

import (
	"fmt"
	"time"
)

// The relays' times. A short lease makes a takeover a matter of seconds; it has
// to be at least twice the timeout.
const (
	attemptTimeout = time.Second
	lease          = 4 * time.Second
)

// Who the relays are to the clinic; the password is in an environment variable.
const (
	clinicUser     = "agency"
	clinicPassword = "CLINIC_PASSWORD"
)

// lockstepYAML is the relays' configuration. The database's URL, the clinic's
// password and the relay's name come from the environment.
func lockstepYAML(court, clinic *system) string {
	return fmt.Sprintf(`# The connectors of the demo: hearings to a court's calendar over REST and to
# a clinic's over SOAP.
database:
  url: ${DATABASE_URL}
  max_connections: 6
relay:
  name: ${LOCKSTEP_DEMO_RELAY:-}
  workers: 8
  lease: %[1]s
  drain: 2s
listen: 127.0.0.1:0
syncs:
  - name: %[3]s
    events: ["scheduling:*"]
    adapter:
      kind: rest
      url: %[4]s/api/calendar
      timeout: %[2]s
      external_id: /id
      outcomes: {409: duplicate}
    mapping:
      hearingId: case_reference
      scheduledAt: {to: start_time, time: {zone: %[5]s, format: RFC3339}}
      location: courtroom
      status: status
    retry: {initial: 200ms, max: 2s, jitter: 20%%}
  - name: %[6]s
    events: ["scheduling:*"]
    adapter:
      kind: rest
      url: %[7]s/api/calendar
      timeout: %[2]s
      outcomes: {409: duplicate}
    mapping:
      hearingId: case_reference
      scheduledAt: {to: start, time: {zone: %[8]s, format: RFC3339}}
      location: room
      status: status
    retry: {initial: 200ms, max: 2s, jitter: 20%%}
`, lease, attemptTimeout, court.sync, court.url, court.zone, clinic.sync, clinic.url, clinic.zone)
}

package main

import (
	"fmt"
	"time"
)

// The connector's name and times. A short lease makes a takeover a matter of
// seconds; it has to be at least twice the timeout.
const (
	syncName       = "CourtCalendarSync"
	courtZone      = "Europe/London"
	attemptTimeout = time.Second
	lease          = 4 * time.Second
)

// lockstepYAML is the relays' configuration. The database's URL, which holds a
// password, and the relay's name come from the environment.
func lockstepYAML(courtURL string) string {
	return fmt.Sprintf(`# The connector of the demo: hearings to a court's calendar over REST.
database:
  url: ${DATABASE_URL}
  max_connections: 6
relay:
  name: ${LOCKSTEP_DEMO_RELAY:-}
  workers: 8
  lease: %s
  drain: 2s
listen: 127.0.0.1:0
syncs:
  - name: %s
    events: ["scheduling:*"]
    adapter:
      kind: rest
      url: %s/api/calendar
      timeout: %s
      external_id: /id
      outcomes: {409: duplicate}
    mapping:
      hearingId: case_reference
      scheduledAt: {to: start_time, time: {zone: %s, format: RFC3339}}
      location: courtroom
      status: status
    retry: {initial: 200ms, max: 2s, jitter: 20%%}
`, lease, syncName, courtURL, attemptTimeout, courtZone)
}

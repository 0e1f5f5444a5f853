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
      kind: soap
      url: %[7]s/soap/calendar
      timeout: %[2]s
      namespaces: {cal: "urn:example:calendar"}
      action: urn:example:calendar/NotifyHearing
      body: |
        <cal:NotifyHearing>
          <cal:reference>{fields.reference}</cal:reference>
          <cal:start>{fields.start}</cal:start>
          <cal:room>{fields.room}</cal:room>
          <cal:status>{fields.status}</cal:status>
        </cal:NotifyHearing>
      routes:
        "scheduling:cancelled":
          action: urn:example:calendar/CancelHearing
          body: <cal:CancelHearing><cal:reference>{fields.reference}</cal:reference></cal:CancelHearing>
      addressing: {}
      security: {kind: username_token, username: %[9]s, password: "${%[10]s}", timestamp: 5m}
      external_id: cal:NotifyHearingResponse/cal:entryId
      answers:
        - {path: detail/cal:CalendarFault/cal:code, value: BUSY, class: throttled}
        - {path: cal:NotifyHearingResponse/cal:result, value: DUPLICATE, class: duplicate}
        - {path: cal:CancelHearingResponse/cal:result, value: DUPLICATE, class: duplicate}
    mapping:
      hearingId: reference
      scheduledAt: {to: start, time: {zone: %[8]s, format: RFC3339}}
      location: room
      status: status
    retry: {initial: 200ms, max: 2s, jitter: 20%%}
`, lease, attemptTimeout, court.sync, court.url, court.zone, clinic.sync, clinic.url, clinic.zone,
		clinicUser, clinicPassword)
}

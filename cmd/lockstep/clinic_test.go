package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/internal/clinic"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

const clinicYAML = `
database: {url: "${DATABASE_URL}"}
relay: {poll: 20ms, name: %[2]s, lease: 5s}
listen: 127.0.0.1:0
syncs:
  - name: ClinicSync
    events: ["scheduling:*"]
    retry: {initial: 10ms, max: 50ms}
    mapping: {scheduledAt: {to: start, time: {format: hl7}}, title: title, location: room}
    adapter:
      kind: hl7
      address: "%[1]s"
      timeout: 1s
      messages:
        "scheduling:created": S12
        "scheduling:updated": %[3]s
        "scheduling:cancelled": S15
      segments: |
        SCH|{key}||||||^{fields.title}||||^^^{fields.start}
        RGS|1
        AIL|1||{fields.room}
`

// Every first answer is lost, after the clinic has taken the message or before. It gets each
// message again with the same control id, and ends with the right appointment, whether it
// knows a change of time or not.
func TestLostAnswersOfAClinic(t *testing.T) {
	for name, tc := range map[string]struct {
		updated string
		events  []string
	}{
		"a system that changes times":                {"S13", []string{"S12", "S13", "S13"}},
		"a system that only books and cancels times": {"{event: S15, then: [S12]}", []string{"S12"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := clinic.Start(t)
			c.Always(clinic.FirstLost)
			w.configure(fmt.Sprintf(clinicYAML, c.Address, "relay-1", tc.updated))
			want := map[string]clinic.Appointment{}
			for n := range 5 {
				key := fmt.Sprintf("H-%d", n)
				w.hearing("scheduling:created", key, "2027-03-15T09:30:00Z", "3A")
				w.hearing("scheduling:updated", key, "2027-03-16T09:30:00Z", "3A")
				w.hearing("scheduling:updated", key, "2027-03-16T10:30:00Z", "4B")
				a := clinic.Appointment{Status: "booked", Events: tc.events, Start: "20270316103000+0000", Room: "4B", Title: "Hearing"}
				if n == 4 {
					w.hearing("scheduling:cancelled", key, "2027-03-16T10:30:00Z", "4B")
					a.Status, a.Events = "cancelled", append(slices.Clone(a.Events), "S15")
				}
				want[key] = a
			}
			w.relayUntil(allFinished)
			got := c.Appointments()
			for key, a := range got {
				a.Filler = ""
				got[key] = a
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the clinic has (-want +got):\n%s", diff)
			}
			times := map[string]int{}
			for _, id := range c.Seen() {
				times[id]++
			}
			for id, n := range times {
				if n != 2 {
					t.Errorf("the message %s came %d times", id, n)
				}
			}
			if len(times) != len(c.Held()) {
				t.Errorf("%d control ids came, %d are kept", len(times), len(c.Held()))
			}
			if n := ask[int](w, `SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'unknown'`); n != len(times) {
				t.Errorf("%d answers were lost, the log has %d", len(times), n)
			}
		})
	}
}

// A relay is killed during a change of time that is a cancellation and a new booking: while
// the clinic takes the first message, or the second. Another relay ends the change, once.
func TestKillBetweenTheMessagesToAClinic(t *testing.T) {
	for name, answers := range map[string][]string{
		"at the cancellation": {clinic.Silent},
		"at the booking":      {clinic.Normal, clinic.Silent},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := clinic.Start(t)
			w.configure(fmt.Sprintf(clinicYAML, c.Address, "relay-1", "{event: S15, then: [S12]}"))
			w.hearing("scheduling:created", "H-1", "2027-03-15T09:30:00Z", "3A")
			w.relayUntil(allFinished)

			c.Next(answers...)
			before := len(c.Seen())
			w.hearing("scheduling:updated", "H-1", "2027-03-16T09:30:00Z", "4B")
			cmd := exec.CommandContext(t.Context(), program(t), "run")
			cmd.Env = os.Environ()
			for name, value := range w.env {
				cmd.Env = append(cmd.Env, name+"="+value)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			waiting.For(t, time.Minute, "the clinic has the message that it does not answer", func() bool { return len(c.Seen()) == before+len(answers) })
			_ = cmd.Process.Kill()
			_ = cmd.Wait()

			w.configure(fmt.Sprintf(clinicYAML, c.Address, "relay-2", "{event: S15, then: [S12]}"))
			w.relayUntil(allFinished)
			want := clinic.Appointment{Status: "booked", Filler: "F-2", Events: []string{"S12"}, Start: "20270316093000+0000", Room: "4B", Title: "Hearing"}
			if diff := cmp.Diff(want, c.Appointments()["H-1"]); diff != "" {
				t.Errorf("the clinic has (-want +got):\n%s", diff)
			}
			if seen := c.Seen(); len(seen) != 4 || len(c.Held()) != 3 {
				t.Errorf("control ids %q, of which %d are kept", seen, len(c.Held()))
			}
			if log := ask[string](w, `SELECT string_agg(outcome, ' ' ORDER BY id) FROM outbox.delivery_log WHERE version = 2`); !strings.Contains(log, "unknown") || !strings.Contains(log, "step") {
				t.Errorf("the log says: %s", log)
			}
		})
	}
}

// A clinic that only stores messages (CA) confirms nothing: the delivery is finished and listed
// as unconfirmed.
func TestClinicThatOnlyStoresMessages(t *testing.T) {
	w := newWorld(t)
	c := clinic.Start(t)
	c.Always("CA")
	w.configure(strings.Replace(fmt.Sprintf(clinicYAML, c.Address, "relay-1", "S13"), "timeout: 1s", "timeout: 1s\n      acknowledgement: enhanced", 1))
	w.hearing("scheduling:created", "H-1", "2027-03-15T09:30:00Z", "3A")
	w.relayUntil(allFinished)
	if got := ask[string](w, `SELECT outcome || ' ' || code FROM outbox.delivery_log ORDER BY id DESC LIMIT 1`); got != "accepted CA" {
		t.Errorf("the log says %s", got)
	}
	if n := ask[int](w, `SELECT count(*)::int FROM outbox.unconfirmed WHERE sync = 'ClinicSync' AND key = 'H-1'`); n != 1 {
		t.Errorf("%d are unconfirmed", n)
	}
	for _, message := range c.Held() {
		if !strings.Contains(message, "|P|2.5.1|||AL|NE||UNICODE UTF-8\r") {
			t.Errorf("the message asks for other acknowledgements: %q", message)
		}
	}
}

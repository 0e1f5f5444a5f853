package main

import (
	"slices"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

// system is a receiver that gets every hearing.
type system struct {
	name     string // its name in texts
	protocol string
	sync     string
	zone     string // zone of the times that it gets
	start    string // its fields of a hearing
	room     string

	sim *courtsim.Court
	url string
}

// newCourt and newClinic are the two systems of the demo, not started yet.
func newCourt() *system {
	return &system{name: "court", protocol: "REST", sync: "CourtCalendarSync", zone: "Europe/London", start: "start_time", room: "courtroom"}
}

func newClinic() *system {
	return &system{name: "clinic", protocol: "SOAP", sync: "ClinicCalendarSync", zone: "UTC", start: "start", room: "room"}
}

// run starts the simulation.
func (s *system) run(o courtsim.Options) (err error) {
	s.sim = courtsim.New(o)
	s.url, err = s.sim.Start("127.0.0.1:0")
	return err
}

// lastPause is the last answer by which the system asked for a pause.
func (s *system) lastPause() string {
	for _, e := range slices.Backward(s.sim.Ledger()) {
		if text := answered(e); pausing[text] {
			return text
		}
	}
	return "an answer"
}

// pausing are the answers by which a system of the demo asks for a pause.
var pausing = map[string]bool{"429": true, "503": true, "Fault Busy": true}

package main

import (
	"io"
	"strings"
)

// triedHearing is the hearing of the lines to paste.
const triedHearing = "H-TRY-1"

// hints are lines to paste into a shell, in this order; they all work.
const hints = `
It keeps running until Ctrl-C. In another terminal, in this directory, paste the indented lines.

The connectors, and what the relays say:
  cat {{config}}
  tail -n 3 {{dir}}/relay-1.log

The operator's tool, for this database and these connectors:
  lockstep() { DATABASE_URL='{{database}}' CLINIC_PASSWORD='{{password}}' go run ./cmd/lockstep --config '{{config}}' "$@"; }
  lockstep status

The court refuses one hearing; book it, and see what became of it at both:
  curl -sw '\n' {{court}}/faults -d '[{"match": {"key": "{{hearing}}"}, "do": {"status": 422}}]'
  curl -sw '\n' {{scheduling}}/hearings -H 'Content-Type: application/json' -d '{"id": "{{hearing}}", "case_number": "27-CV-0042", "hearing_type": "Directions", "courthouse": "Leicester", "courtroom": "Court 3", "local_start": "2027-04-12T10:30", "zone": "{{zone}}", "duration_minutes": 60}'
  curl -sw '\n' {{scheduling}}/hearings/{{hearing}}
  lockstep status
  curl -sw '\n' {{clinic}}/api/calendar/{{hearing}}
  lockstep explain "$(psql '{{database}}' -Atc "SELECT event_id FROM scheduling.hearing WHERE id = '{{hearing}}'")"

Heal the court, send it again, and ask the court:
  curl -sw '\n' {{court}}/faults -d '[]'
  lockstep requeue --sync {{sync}} --key {{hearing}} --reason 'the court takes it now'
  curl -sw '\n' {{court}}/api/calendar/{{hearing}}
  lockstep log --key {{hearing}}

Stop one connector, change something, and let it go:
  lockstep pause {{sync}} --reason 'trying it out'
  curl -sw '\n' {{scheduling}}/hearings/{{hearing}}/reschedule -H 'Content-Type: application/json' -d '{"local_start": "2027-04-13T14:00"}'
  lockstep status
  lockstep resume {{sync}}

What the clinic is sent for it, secrets masked:
  lockstep map {{clinicSync}} "$(psql '{{database}}' -Atc "SELECT event_id FROM scheduling.hearing WHERE id = '{{hearing}}'")"

All of it as SQL:
  psql -P pager=off '{{database}}' -c 'SELECT * FROM outbox.status'
  psql -P pager=off '{{database}}' -c 'SELECT at, key, version, attempt, outcome, code, relay FROM outbox.delivery_log ORDER BY id DESC LIMIT 10'

`

func hintText(w *world) string {
	return strings.NewReplacer(
		"{{config}}", w.configFile,
		"{{dir}}", w.dir,
		"{{database}}", w.databaseURL,
		"{{court}}", w.court.url,
		"{{clinic}}", w.clinic.url,
		"{{clinicSync}}", w.clinic.sync,
		"{{password}}", w.password,
		"{{scheduling}}", w.schedulingURL,
		"{{sync}}", w.court.sync,
		"{{hearing}}", triedHearing,
		"{{zone}}", w.court.zone,
	).Replace(hints)
}

func printHints(out io.Writer, w *world) error {
	_, err := io.WriteString(out, hintText(w))
	return err
}

package doctor

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/hms-mkt/lockstep/relay/mapping"
)

// clockTolerance is how much the clocks of the database and of this machine may differ.
const clockTolerance = 2 * time.Second

// clock compares the clocks of the database and of this machine.
func (o Options) clock() Check {
	return Check{"clock", "", func(ctx context.Context) ([]Finding, error) {
		ahead, within, err := o.Store.ClockOffset(ctx)
		if err != nil {
			return nil, err
		}
		return []Finding{clockFinding(ahead, within)}, nil
	}}
}

// clockFinding judges by how much the database's clock is ahead. within bounds the error of
// the measurement.
func clockFinding(ahead, within time.Duration) Finding {
	if ahead.Abs()-within <= clockTolerance {
		return fine("the database's and this machine's differ by less than %s", clockTolerance)
	}
	direction := "ahead of"
	if ahead < 0 {
		direction = "behind"
	}
	return warning("set both by NTP; lockstep uses the database's",
		"the database's is %s %s this machine's", ahead.Abs().Round(100*time.Millisecond), direction)
}

// zoneYears is for how many years the offsets of time zones are compared.
const zoneYears = 2

// zones compares the server's time zones with those of this program.
func (o Options) zones() Check {
	return Check{"time zones", "", func(ctx context.Context) (found []Finding, err error) {
		syncs := map[string][]string{} // by zone
		if o.Config != nil {
			for _, s := range o.Config.Syncs {
				if zone := s.Escalate.Zone; zone != "" && len(s.Escalate.At) > 0 {
					syncs[zone] = append(syncs[zone], s.Name)
				}
			}
		}
		if len(syncs) == 0 {
			return []Finding{fine("the database needs none for this configuration")}, nil
		}
		for _, zone := range slices.Sorted(maps.Keys(syncs)) {
			ours, err := mapping.LoadZone(zone)
			if err != nil {
				return found, err // config check has accepted the zone
			}
			f, err := o.zone(ctx, zone, ours)
			if err != nil {
				return found, err
			}
			for _, sync := range syncs[zone] {
				found = append(found, f.about(sync))
			}
		}
		return found, nil
	}}
}

const zoneRemedy = "update the time zones of the server (its package tzdata, then a restart), or this program; LOCKSTEP_ZONEINFO can name newer zones for it"

// zone compares the offsets of one time zone in the server with ours, for each hour of the
// next years.
func (o Options) zone(ctx context.Context, name string, ours *time.Location) (f Finding, err error) {
	// The hours at which the offset changes, and the first one.
	const changes = `
SELECT at, seconds
  FROM (SELECT h.at, o.seconds, lag(o.seconds) OVER (ORDER BY h.at) AS before
          FROM generate_series(date_trunc('hour', now()), now() + make_interval(years => $2), interval '1 hour') AS h (at)
         CROSS JOIN LATERAL (SELECT extract(epoch FROM (h.at AT TIME ZONE $1) - (h.at AT TIME ZONE 'UTC'))::int AS seconds) AS o) AS o
 WHERE seconds IS DISTINCT FROM before
 ORDER BY at`
	type change struct {
		At      time.Time
		Seconds int
	}
	theirs, err := list[change](ctx, o, changes, name, zoneYears)
	if sqlState(err) == invalidParameter {
		return problem(zoneRemedy, "the server does not know the time zone %s", name), nil
	}
	if err != nil || len(theirs) == 0 {
		return f, err
	}
	at, end := theirs[0].At, theirs[0].At.AddDate(zoneYears, 0, 0)
	for seconds := theirs[0].Seconds; at.Before(end); at = at.Add(time.Hour) {
		if len(theirs) > 0 && !at.Before(theirs[0].At) {
			seconds, theirs = theirs[0].Seconds, theirs[1:]
		}
		if _, own := at.In(ours).Zone(); own != seconds {
			return problem(zoneRemedy, "from %s on, %s is %s in the server and %s in this program", at.UTC().Format(time.RFC3339), name, offset(seconds), offset(own)), nil
		}
	}
	return fine("%s is the same in the server and in this program for the next %d years", name, zoneYears), nil
}

// offset writes seconds east of UTC.
func offset(seconds int) string {
	return "UTC" + time.Unix(0, 0).In(time.FixedZone("", seconds)).Format("-07:00")
}

package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// relays checks that relays run, all of one version, and serve every sync.
func (o Options) relays() Check {
	return Check{"relays", "", func(ctx context.Context) (found []Finding, err error) {
		const known = `SELECT name, coalesce(version, '') AS version, syncs, seen_at, running FROM outbox.relay ORDER BY name, started_at`
		type relay struct {
			Name, Version string
			Syncs         []string
			SeenAt        time.Time
			Running       bool
		}
		all, err := list[relay](ctx, o, known)
		if err != nil {
			return nil, err
		}
		served := map[string]bool{}
		var versions []string
		running := 0
		for _, r := range all {
			if !r.Running {
				found = append(found, warning("it died or hangs: see its log; it is listed for an hour", "relay %s was last seen at %s and did not stop in an orderly way", r.Name, r.SeenAt.UTC().Format(time.RFC3339)))
				continue
			}
			running++
			versions = append(versions, r.Version)
			for _, sync := range r.Syncs {
				served[sync] = true
			}
		}
		slices.Sort(versions)
		versions = slices.Compact(versions)
		switch {
		case running == 0:
			return append(found, problem("lockstep run", "no relay is running, so nothing is sent")), nil
		case len(versions) > 1:
			found = append(found, warning("after an upgrade, restart the relays that are still old; see: lockstep status --relays", "running relays have different versions: %s", strings.Join(versions, ", ")))
		case versions[0] != o.Version:
			found = append(found, warning("use the same version everywhere", "running relays are version %s, and this program is %s", versions[0], o.Version))
		}
		type sync struct{ Name string }
		syncs, err := list[sync](ctx, o, `SELECT name FROM outbox.sync WHERE retired_at IS NULL ORDER BY name`)
		for _, s := range syncs {
			if !served[s.Name] {
				found = append(found, problem("add it to the configuration of a relay, or end it: lockstep retire "+s.Name, "no running relay serves this sync").about(s.Name))
			}
		}
		if len(found) == 0 {
			found = append(found, fine("%d running, version %s", running, versions[0]))
		}
		return found, err
	}}
}

// mostCounted is how many deliveries are counted.
const mostCounted = 1000

// atMost writes a number that was counted up to mostCounted.
func atMost(n int64) string {
	if n > mostCounted {
		return fmt.Sprintf("more than %d", mostCounted)
	}
	return fmt.Sprint(n)
}

// deliveries counts those that need a person.
func (o Options) deliveries() Check {
	return Check{"deliveries", "none needs a person", func(ctx context.Context) (found []Finding, err error) {
		const counts = `
SELECT s.name AS sync, f.n AS failed, b.n AS blocked, u.n AS unclear
  FROM outbox.sync AS s
 CROSS JOIN LATERAL (SELECT count(*) AS n FROM (SELECT FROM outbox.delivery AS d WHERE d.sync = s.name AND d.state = 'failed' LIMIT $1) AS d) AS f
 CROSS JOIN LATERAL (SELECT count(*) AS n
                       FROM (SELECT FROM outbox.delivery AS d
                              WHERE d.sync = s.name
                                AND d.state = 'failed'
                                AND EXISTS (SELECT FROM outbox.delivery AS b WHERE b.sync = d.sync AND b.key = d.key AND b.event_seq > d.event_seq)
                              LIMIT $1) AS d) AS b
 CROSS JOIN LATERAL (SELECT count(*) AS n FROM (SELECT FROM outbox.delivery AS d WHERE d.sync = s.name AND d.state IN ('retry', 'failed') AND d.unclear > 0 LIMIT $1) AS d) AS u
 ORDER BY s.name`
		type count struct {
			Sync                     string
			Failed, Blocked, Unclear int64
		}
		all, err := list[count](ctx, o, counts, mostCounted+1)
		for _, c := range all {
			if c.Failed > 0 {
				says := fmt.Sprintf("%s failed", atMost(c.Failed))
				if c.Blocked > 0 {
					says += fmt.Sprintf(", and later events of %s wait behind them", keys(c.Blocked))
				}
				found = append(found, problem("lockstep requeue --sync "+c.Sync+" --all --dry-run lists them with their reasons; when the cause is gone, requeue or discard them", "%s", says).about(c.Sync))
			}
			if c.Unclear > 0 {
				found = append(found, warning("they are sent again with the same idempotency key, up to five times; to see the answers: lockstep log --sync "+c.Sync,
					"%s may have arrived: the answers do not say so", atMost(c.Unclear)).about(c.Sync))
			}
		}
		return found, err
	}}
}

// keys counts keys that are blocked.
func keys(n int64) string {
	if n == 1 {
		return "1 key"
	}
	return atMost(n) + " keys"
}

// missed looks for events that were written with triggers off.
func (o Options) missed() Check {
	return Check{"missed events", "none is known", func(ctx context.Context) (found []Finding, err error) {
		const count = `SELECT count(*) AS n FROM (SELECT FROM outbox.missed LIMIT $1) AS m`
		type counted struct{ N int64 }
		all, err := list[counted](ctx, o, count, mostCounted+1)
		for _, c := range all {
			if c.N > 0 {
				found = append(found, problem("lockstep repair --dry-run, then: lockstep repair", "%s without a delivery: written with triggers off", events(c.N)))
			}
		}
		return found, err
	}}
}

func events(n int64) string {
	if n == 1 {
		return "1 event"
	}
	return atMost(n) + " events"
}

// mostTypes is how many types of events are named.
const mostTypes = 5

// unmatched looks for types of events that no sync takes.
func (o Options) unmatched() Check {
	return Check{"unmatched events", "a sync takes each type", func(ctx context.Context) ([]Finding, error) {
		const types = `
SELECT DISTINCT type
  FROM (SELECT type FROM outbox.unmatched ORDER BY event_seq DESC LIMIT $1) AS u
 ORDER BY type`
		type unmatched struct{ Type string }
		all, err := list[unmatched](ctx, o, types, mostCounted)
		if err != nil || len(all) == 0 {
			return nil, err
		}
		var names []string
		for _, u := range all[:min(len(all), mostTypes)] {
			names = append(names, u.Type)
		}
		more := ""
		if n := len(all) - mostTypes; n > 0 {
			more = fmt.Sprintf(" and %d more types", n)
		}
		return []Finding{warning("add the type to a sync if a receiver needs it, and send what is retained: lockstep sync apply NAME --from beginning",
			"no sync takes events of %s%s", strings.Join(names, ", "), more)}, nil
	}}
}

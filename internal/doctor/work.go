package doctor

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// relays checks that relays run, all of one version.
func (o Options) relays() Check {
	return Check{"relays", "", func(ctx context.Context) (found []Finding, err error) {
		const known = `SELECT name, coalesce(version, '') AS version, seen_at, running FROM outbox.relay ORDER BY name, started_at`
		type relay struct {
			Name, Version string
			SeenAt        time.Time
			Running       bool
		}
		all, err := list[relay](ctx, o, known)
		if err != nil {
			return nil, err
		}
		var versions []string
		running := 0
		for _, r := range all {
			if !r.Running {
				found = append(found, warning("it died or hangs: see its log; it is listed for an hour", "relay %s was last seen at %s and did not stop in an orderly way", r.Name, r.SeenAt.UTC().Format(time.RFC3339)))
				continue
			}
			running++
			if r.Version != "" { // a relay in a program of its own may not say it
				versions = append(versions, r.Version)
			}
		}
		slices.Sort(versions)
		versions = slices.Compact(versions)
		switch {
		case running == 0:
			return append(found, problem("lockstep run", "no relay is running, so nothing is sent")), nil
		case len(versions) > 1:
			found = append(found, warning("after an upgrade, restart the relays that are still old; see: lockstep status --relays", "running relays have different versions: %s", strings.Join(versions, ", ")))
		case len(versions) == 1 && versions[0] != o.Version:
			found = append(found, warning("use the same version everywhere", "running relays are version %s, and this program is %s", versions[0], o.Version))
		}
		if len(found) == 0 {
			found = append(found, fine("%d running, version %s", running, cmp.Or(strings.Join(versions, ""), "unknown")))
		}
		return found, err
	}}
}

// alerts are the rows of outbox.alert, each under its name. The checks of relays and partitions
// say more about those than their alerts.
func (o Options) alerts() Check {
	return Check{"alerts", "outbox.alert is empty", func(ctx context.Context) (found []Finding, err error) {
		const alerts = `
SELECT name, severity, coalesce(sync, '') AS sync, says, remedy
  FROM outbox.alert
 WHERE name NOT IN ('no_relay', 'no_partition')
 ORDER BY array_position(ARRAY['critical', 'warning', 'info'], severity), name, sync`
		type alert struct{ Name, Severity, Sync, Says, Remedy string }
		all, err := list[alert](ctx, o, alerts)
		for _, a := range all {
			f := Finding{Name: a.Name, Severity: Warning, Sync: a.Sync, Says: a.Says, Remedy: a.Remedy}
			if a.Severity == "critical" {
				f.Severity = Problem
			}
			found = append(found, f)
		}
		return found, err
	}}
}

// mostCounted is how many deliveries are counted.
const mostCounted = 1000

// deliveries counts those that wait behind a failed one, and those that may have arrived.
func (o Options) deliveries() Check {
	return Check{"deliveries", "none waits behind a failed one, and none may have arrived without our knowledge", func(ctx context.Context) (found []Finding, err error) {
		const counts = `
SELECT s.name AS sync, b.n AS blocked, u.n AS unclear
  FROM outbox.sync AS s
 CROSS JOIN LATERAL (SELECT count(*) AS n
                       FROM (SELECT FROM outbox.delivery AS d
                              WHERE d.sync = s.name
                                AND d.state = 'failed'
                                AND EXISTS (SELECT FROM outbox.delivery AS b WHERE b.sync = d.sync AND b.key = d.key AND b.event_seq > d.event_seq)
                              LIMIT $1) AS d) AS b
 CROSS JOIN LATERAL (SELECT count(*) AS n FROM (SELECT FROM outbox.delivery AS d WHERE d.sync = s.name AND d.state IN ('retry', 'failed') AND d.unclear > 0 LIMIT $1) AS d) AS u
 ORDER BY s.name`
		type count struct {
			Sync             string
			Blocked, Unclear int64
		}
		all, err := list[count](ctx, o, counts, mostCounted+1)
		for _, c := range all {
			if c.Blocked > 0 {
				found = append(found, warning("requeue or discard the failed ones: lockstep requeue --sync "+c.Sync+" --all --dry-run lists them",
					"keys whose later events wait behind a failed one: %s", atMost(c.Blocked)).about(c.Sync))
			}
			if c.Unclear > 0 {
				found = append(found, warning("they are sent again with the same idempotency key, up to five times; to see the answers: lockstep log --sync "+c.Sync,
					"deliveries that may have arrived, because the answers do not say so: %s", atMost(c.Unclear)).about(c.Sync))
			}
		}
		return found, err
	}}
}

// atMost writes a number that was counted up to mostCounted.
func atMost(n int64) string {
	if n > mostCounted {
		return fmt.Sprintf("more than %d", mostCounted)
	}
	return fmt.Sprint(n)
}

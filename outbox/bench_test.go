package outbox_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/migrations"
	"github.com/hms-mkt/lockstep/outbox"
)

// BenchmarkRecord records batches of delivered events. A key has four events. Its lane is kept,
// so the answer has the next delivery of the key.
func BenchmarkRecord(b *testing.B) {
	for _, size := range []int{1, 8, 64, 500} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			d := newDesk(b)
			var claimed []*outbox.Delivery
			recorded := 0
			for b.Loop() {
				if len(claimed) < size {
					b.StopTimer()
					for len(claimed) < size {
						more := d.poll(d.a, size-len(claimed), time.Hour).Deliveries
						if claimed = append(claimed, more...); len(more) == 0 {
							d.waiting(40_000)
						}
					}
					b.StartTimer()
				}
				results := make([]outbox.Result, size)
				for i, c := range claimed[:size] {
					results[i] = outbox.Result{Delivery: c, Outcome: outbox.Delivered, Attempt: true, Code: "HTTP 200", AnsweredAt: time.Now(), Took: time.Millisecond, Stay: true}
				}
				r := d.a.Record(b.Context(), sync, results)
				if r.Err != nil {
					b.Fatal(r.Err)
				}
				claimed = append(claimed[size:], r.Next...)
				recorded += size
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(recorded), "µs/delivery")
		})
	}
}

// waiting adds events, four for each key.
func (d *desk) waiting(n int) {
	d.t.Helper()
	d.exec(`INSERT INTO outbox.event (type, key, payload)
SELECT 'scheduling:updated', 'H-' || n % $1, jsonb_build_object('hearingId', 'H-' || n, 'location', '3A')
  FROM generate_series(1, $2) AS n`, n/4, n)
	d.exec(`VACUUM ANALYZE`)
}

// BenchmarkClaim polls without due deliveries, and claims one delivery that has just been
// written.
func BenchmarkClaim(b *testing.B) {
	request := outbox.ClaimRequest{Sync: sync, Capacity: 32, Lanes: 32, Lease: time.Hour}
	b.Run("nothing", func(b *testing.B) {
		d := newDesk(b)
		for b.Loop() {
			if c, err := d.a.Claim(b.Context(), request, d.known(d.a)); err != nil || len(c.Deliveries) != 0 {
				b.Fatal(c, err)
			}
		}
	})
	b.Run("one", func(b *testing.B) {
		d := newDesk(b)
		n := 0
		for b.Loop() {
			b.StopTimer()
			n++
			d.emit(fmt.Sprint("H-", n), n)
			b.StartTimer()
			c, err := d.a.Claim(b.Context(), request, d.known(d.a))
			if err != nil || len(c.Deliveries) != 1 {
				b.Fatal(c, err)
			}
			b.StopTimer()
			d.record(d.a, outbox.Delivered, c.Deliveries...)
			b.StartTimer()
		}
	})
}

// BenchmarkBacklog writes an event, claims and records, while many deliveries are open and the
// log has five times as many rows. It reports the pages that each statement reads, with those
// of its indexes. They must not grow with the backlog, except with the height of an index.
func BenchmarkBacklog(b *testing.B) {
	for _, size := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprintf("open=%d", size), func(b *testing.B) {
			_, url := pgtest.Own(b, pgtest.Options{Settings: map[string]string{
				"shared_preload_libraries": "pg_stat_statements",
				"shared_buffers":           "512MB",
			}})
			if err := migrations.Up(b.Context(), url, migrations.Outbox); err != nil {
				b.Fatal(err)
			}
			d := newDeskAt(b, url)
			d.exec(`WITH triggers_off AS MATERIALIZED (SELECT set_config('session_replication_role', 'replica', true))
INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, attempt, outcome, code, event_seq, claim, relay)
SELECT $1, gen_random_uuid(), 'scheduling:updated', 'H-' || n % $2, 1, 'delivered', 'HTTP 200', n, gen_random_uuid(), 'earlier'
  FROM triggers_off
 CROSS JOIN generate_series(1, $3) AS n`, sync, size/4, 5*size)
			d.waiting(size)
			d.exec(`CREATE EXTENSION pg_stat_statements`)
			d.exec(`SELECT pg_stat_statements_reset()`) // it counts from the start of the server

			const lanes = 32
			request := outbox.ClaimRequest{Sync: sync, Capacity: lanes, Lanes: lanes / 2, Latest: lanes / 4, Lease: time.Hour}
			claimed, n := 0, 0
			for b.Loop() {
				n++
				d.emit(fmt.Sprint("new-", n), n)
				c, err := d.a.Claim(b.Context(), request, d.known(d.a))
				if err != nil || len(c.Deliveries) == 0 {
					b.Fatal(c, err)
				}
				claimed += len(c.Deliveries)
				if r := d.record(d.a, outbox.Delivered, c.Deliveries...); r.Err != nil {
					b.Fatal(r.Err)
				}
				d.giveBack(d.a, c)
			}
			for name, per := range map[string]struct {
				statements string
				n          int
			}{
				"write":    {`^INSERT INTO outbox\.event`, n},
				"claim":    {"^-- lockstep: (open lanes|claim lanes|first deliveries)", claimed},
				"record":   {"^-- lockstep: record finished", claimed},
				"settling": {"^-- lockstep: settle lanes", claimed},
			} {
				var pages float64
				const query = `SELECT sum(shared_blks_hit + shared_blks_read)::float8 FROM pg_stat_statements WHERE query ~ $1`
				if err := d.pool.QueryRow(b.Context(), query, per.statements).Scan(&pages); err != nil {
					b.Fatal(name, err)
				}
				b.ReportMetric(pages/float64(per.n), "pages/"+name)
			}
		})
	}
}

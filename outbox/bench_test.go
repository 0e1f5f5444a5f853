package outbox_test

import (
	"fmt"
	"testing"
	"time"

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

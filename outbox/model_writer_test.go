package outbox_test

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"pgregory.net/rapid"
)

// The actions of writers.

const (
	plain = `INSERT INTO outbox.event (type, key, payload, version, id) VALUES ($4, $1, '{}', $2, $3)`
	emit  = `SELECT outbox.emit($4, $1, '{}', $2, id => $3)`
)

// add writes an event. It returns a function that makes the event and its deliveries visible in
// the model.
func (m *model) add(t *rapid.T, exec func(context.Context, string, ...any) (pgconn.CommandTag, error), key string) (commit func()) {
	m.seq++
	e := &event{n: m.seq, seq: m.seq, key: key, wanted: rapid.IntRange(0, 2).Draw(t, "wanted") > 0}
	typ := "unwanted"
	if e.wanted {
		typ = "t"
	}
	if rapid.IntRange(0, 4).Draw(t, "version") > 0 {
		e.version = new(int64(e.seq))
	}
	nobodyWaits(t, "insert", func(ctx context.Context) error {
		_, err := exec(ctx, pick(t, "by", []string{plain, emit}), key, e.version, id(e.n), typ)
		return err
	})
	m.say("e%d of %s is written, wanted %t", e.n, key, e.wanted)
	return func() {
		m.events[e.n] = e
		for _, sync := range syncs {
			m.open = append(m.open, &delivery{laneID: laneID{sync, key}, event: e.n, place: e.seq, state: "waiting", revision: 1, committed: m.step})
		}
	}
}

// freeKeys are the keys that the open writer has not changed. A writer changes its own row of the
// key first, and would wait for the other writer.
func (m *model) freeKeys() []string {
	if m.writer == nil {
		return keys
	}
	return slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return m.writer.keys[k] })
}

func (m *model) insert(t *rapid.T) {
	free := m.freeKeys()
	if len(free) == 0 {
		t.SkipNow() // the open writer has every key
	}
	m.add(t, m.pool.Exec, pick(t, "key", free))()
}

// write makes a step in the writer's open transaction.
func (m *model) write(t *rapid.T) {
	if m.writer == nil {
		m.writer = m.begin(t, pgx.TxOptions{})
		m.say("a writer begins")
	}
	switch w := m.writer; rapid.IntRange(0, 3).Draw(t, "writer") {
	case 0:
		m.writer = nil
		m.end(t, w, "the writer")
	default:
		key := pick(t, "key", keys)
		w.keys[key] = true
		w.commit = append(w.commit, m.add(t, w.tx.Exec, key))
	}
}

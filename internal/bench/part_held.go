package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// heldPart drains while a transaction stays open, so that VACUUM cannot remove deleted rows. It compares the last tenth with
// the first.
func heldPart() part {
	const (
		reader = `SELECT count(*) FROM outbox.sync` // takes the snapshot
		writer = `INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', 'uncommitted', '{}')`
	)
	cases := []struct {
		what, statement string
		level           pgx.TxIsoLevel
		perKey          float64
		goal, stretch   float64
	}{
		{"idle REPEATABLE READ held", reader, pgx.RepeatableRead, perKey, 0.90, 1.0},
		{"open writer held", writer, pgx.ReadCommitted, perKey, 0.90, 1.0},
		{"idle REPEATABLE READ held, 50 events a key", reader, pgx.RepeatableRead, 50, 0.50, 0.80},
		{"open writer held, 50 events a key", writer, pgx.ReadCommitted, 50, 0.50, 0.80},
	}
	p := part{name: "held"}
	for _, c := range cases {
		p.figures = append(p.figures, figure{
			Name: c.what + ", last tenth of 500k", Against: "first tenth", Unit: "/s", Judged: byRatio, Goal: c.goal, Stretch: c.stretch,
		})
	}
	p.round = func(ctx context.Context, l *lab) ([]sample, error) {
		n := l.size(500_000)
		return l.samples(len(cases), func(i int) (sample, error) {
			c := cases[i]
			return l.drainHeld(ctx, n, max(1, int(float64(n)/c.perKey)), c.what, c.level, c.statement)
		})
	}
	return p
}

func (l *lab) drainHeld(ctx context.Context, n, keys int, what string, level pgx.TxIsoLevel, statement string) (s sample, err error) {
	d, err := l.ours(ctx, n, keys)
	if err != nil {
		return s, err
	}
	holder, err := pgx.Connect(ctx, d.url)
	if err != nil {
		return s, err
	}
	defer func() { _ = holder.Close(ctx) }() // which ends its transaction
	tx, err := holder.BeginTx(ctx, pgx.TxOptions{IsoLevel: level})
	if err != nil {
		return s, err
	}
	if _, err := tx.Exec(ctx, statement); err != nil {
		return s, fmt.Errorf("hold a transaction: %w", err)
	}
	l.note("%s, %d keys", what, keys)
	r, err := l.drain(ctx, d, n, allRecorded, nil, childConfig{Role: "relay"})
	if err != nil {
		return s, err
	}
	s.Reference, s.Ours = r.tenths()
	if err := tx.Rollback(ctx); err != nil {
		return s, err
	}
	return s, d.drop(ctx)
}

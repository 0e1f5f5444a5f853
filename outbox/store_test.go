package outbox_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/outbox"
)

// A schema says which programs it serves.
func TestCheckOfASchemaOfAnotherVersion(t *testing.T) {
	d := newDesk(t)
	const next = outbox.Schema + 1
	tests := []struct {
		name, change string
		says         []string // nothing: it fits
	}{
		{"the program's own", "SELECT 1", nil},
		{"newer, and it serves this program", fmt.Sprintf("INSERT INTO outbox.goose_db_version (version_id, is_applied) VALUES (%d, true)", next), nil},
		{
			"newer, and it does not", fmt.Sprintf("CREATE OR REPLACE FUNCTION outbox.oldest_relay() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT %d::bigint'", next),
			[]string{fmt.Sprintf("it is version %[1]d, which serves programs made for version %[1]d and newer, and this one is made for %[2]d", next, outbox.Schema), "install a newer lockstep"},
		},
		{
			"not there", "DROP FUNCTION outbox.oldest_relay()",
			[]string{"no outbox schema in this database", "lockstep migrate up"},
		},
	}
	for _, tt := range tests { // each continues with the schema of the test before
		t.Run(tt.name, func(t *testing.T) {
			d.exec(tt.change)
			err := d.a.Check(t.Context()) // on a connection that has asked before
			if tt.says == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, outbox.ErrSchema) {
				t.Fatalf("got %v, want ErrSchema", err)
			}
			for _, word := range tt.says {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q does not say %q", err, word)
				}
			}
		})
	}
}

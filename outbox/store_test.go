package outbox_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/outbox"
)

// A schema says which programs it serves; this one is made for version 1.
func TestCheckOfASchemaOfAnotherVersion(t *testing.T) {
	d := newDesk(t)
	tests := []struct {
		name, change string
		says         []string // nothing: it fits
	}{
		{"the program's own", "SELECT 1", nil},
		{"newer, and it serves this program", "INSERT INTO outbox.goose_db_version (version_id, is_applied) VALUES (2, true)", nil},
		{
			"newer, and it does not", "CREATE OR REPLACE FUNCTION outbox.oldest_relay() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT 2::bigint'",
			[]string{"it is version 2", "serves programs made for version 2 and newer", "this one is made for 1", "install a newer lockstep"},
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

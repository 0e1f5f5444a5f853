package outbox

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the statements to testdata")

// The statements of the hot path are put together from parts. Whole, as the
// database gets them, they are in testdata, to be read and explained. After a change:
//
//	go test ./outbox -run TestStatementsAreInTestdata -update
func TestStatementsAreInTestdata(t *testing.T) {
	for name, statement := range map[string]string{
		"claim_lanes":                     claimLanes,
		"open_lanes":                      openLanes,
		"list_scopes":                     listScopes,
		"claim_lane_of_key":               claimKey,
		"claim_suspect":                   claimSuspect,
		"first_deliveries":                firstDeliveries,
		"record_finished":                 recordFinished + removedRows,
		"record_finished_with_references": recordFinished + recordReferences + removedRows,
		"record_unfinished":               recordUnfinished,
		"settle_lanes":                    settleLanes,
		"supersede_1_read_newer":          newerCandidates,
		"supersede_2_close_failed":        supersedeFailed,
		"results_not_recorded":            whatBecame,
		"results_whose_claim_is_gone":     recordLost,
		"release_backfilled":              releaseBackfilled,
		"hold_strongest":                  strongestHold,
	} {
		path := filepath.Join("testdata", name+".sql")
		want := statement + ";\n"
		if *update {
			if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s is not the statement any more; write it anew with -update", path)
		}
	}
}

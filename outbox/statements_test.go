package outbox

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the statements to testdata")

var parameter = regexp.MustCompile(`\$\d+`)

// The statements of the hot path are made of parts. The directory testdata has each of them in
// full, as the database gets it, to read it and to EXPLAIN it. The comment names the
// parameters. After a change, run:
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
		"record_finished_with_accepted":   recordFinished + recordAccepted + removedRows,
		"record_reads":                    recordReads,
		"record_unfinished":               recordUnfinished,
		"claim_unconfirmed":               claimUnconfirmed,
		"settle_lanes":                    settleLanes,
		"supersede_1_read_newer":          newerCandidates,
		"supersede_2_close_failed":        supersedeFailed,
		"results_not_recorded":            resultsNotRecorded,
		"results_whose_claim_is_gone":     recordLost,
		"release_backfilled":              releaseBackfilled,
		"hold_strongest":                  strongestHold,
	} {
		lines := strings.SplitAfter(statement, "\n")
		code := slices.IndexFunc(lines, func(line string) bool { return !strings.HasPrefix(line, "--") })
		named := parameter.FindAllString(strings.Join(lines[:code], ""), -1)
		used := parameter.FindAllString(strings.Join(lines[code:], ""), -1)
		slices.Sort(used)
		if slices.Sort(named); !slices.Equal(named, slices.Compact(used)) {
			t.Errorf("%s: the comment names %v, the statement has %v", name, named, used)
		}
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
			t.Errorf("%s differs from the statement; write it with -update", path)
		}
	}
}

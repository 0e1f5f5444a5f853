package courtsim_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

// FuzzParseFaults: a script is refused with a reason, or the court shows it in a
// form with the same meaning.
func FuzzParseFaults(f *testing.F) {
	for _, s := range []string{
		`[]`, `null`, `{}`, `[`, `[] []`, `[{}]`, `[{"do":{"status":503},"also":1}]`, `[{"do":{"status":600}}]`,
		`[{"match":{"key":"H-1","method":"POST","after":1,"first":2,"every":3,"probability":0.5},"do":{"status":503,"retry_after":"soon"}}]`,
		`[{"do":{"hang":"1s","drop":"during","body":"\u0000","repeat":9,"gzip":true}},{"do":{"redirect":"//x","drip":"2540400h10m10.000000000s"}}]`,
		`[{"match":{"probability":1e-400},"do":{"delay":"-1s"}}]`, `[{"match":{"after":9223372036854775807},"do":{"body":""}}]`, `[{"do":{"drop":"never","hang":"x"}}]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		faults, err := courtsim.ParseFaults(b)
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !strings.HasPrefix(line, "fault ") {
					t.Errorf("does not say that it is about the faults: %v", err)
				}
			}
			return
		}
		written, err := json.Marshal(faults)
		if err != nil {
			t.Fatal(err)
		}
		again, err := courtsim.ParseFaults(written)
		if err != nil {
			t.Fatalf("%s is refused: %v", written, err)
		}
		if diff := cmp.Diff(faults, again); diff != "" {
			t.Errorf("%s and then %s (-first +then)\n%s", b, written, diff)
		}
	})
}

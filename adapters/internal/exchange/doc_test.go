package exchange

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
)

// Every single status in the guide's table has the class that the code gives to an
// answer with a reason. Every exception in the code is in the guide, and so is every
// status that never counts as a gateway's answer.
func TestGuideShowsTheDefaultClasses(t *testing.T) {
	guide, err := os.ReadFile("../../../docs/adapters.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(guide), "| status | class |")
	table, _, _ = strings.Cut(table, "| no answer |")
	shown := map[int]bool{}
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 || strings.Contains(cells[1], " with ") {
			continue
		}
		class, _, _ := strings.Cut(strings.TrimSpace(cells[2]), ";")
		class, _, _ = strings.Cut(class, ":")
		for _, digits := range regexp.MustCompile(`\b[0-9]{3}\b`).FindAllString(cells[1], -1) {
			var status int
			if _, err := fmt.Sscan(digits, &status); err != nil {
				t.Fatal(err)
			}
			shown[status] = true
			if got := (Outcomes{}).ClassOfStatus(Answer{Status: status}); got != adapters.Class(class) {
				t.Errorf("the guide says that %d is %s, but it is %s", status, class, got)
			}
		}
	}
	for status := range statuses {
		if !shown[status] {
			t.Errorf("the guide does not show %d", status)
		}
	}
	_, gateways, _ := strings.Cut(string(guide), "### What a gateway may have said")
	gateways, _, _ = strings.Cut(gateways, "\n### ")
	for _, status := range selfExplained {
		if !strings.Contains(gateways, fmt.Sprint(status)) {
			t.Errorf("the guide does not show that %d blames the message by itself", status)
		}
	}
}

package outbox

import (
	"regexp"
	"testing"
)

// The delivery log shows claims as random UUIDs (RFC 9562, version 4), and no two are equal.
func TestClaimTokensAreRandomUUIDs(t *testing.T) {
	random := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[string]bool{}
	for range 1000 {
		token := newToken().String()
		if !random.MatchString(token) || seen[token] {
			t.Fatalf("token %s", token)
		}
		seen[token] = true
	}
}

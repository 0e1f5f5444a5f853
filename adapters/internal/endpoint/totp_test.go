package endpoint

import (
	"testing"
	"time"
)

// The examples of RFC 6238, appendix B, with six digits.
func TestOneTimePasswords(t *testing.T) {
	key, err := totpKey("gezdgnbvgy3tqojqgezdgnbvgy3tqojq")
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[int64]string{59: "287082", 1111111109: "081804", 1111111111: "050471", 1234567890: "005924", 2000000000: "279037", 20000000000: "353130"} {
		if got := totp(key, time.Unix(at, 0)); got != want {
			t.Errorf("at %d: %s, want %s", at, got, want)
		}
	}
}

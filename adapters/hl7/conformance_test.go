package hl7_test

import (
	"crypto/sha256"
	"encoding/base32"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/adaptertest"
	"github.com/hms-mkt/lockstep/adapters/hl7"
	"github.com/hms-mkt/lockstep/internal/clinic"
)

func TestConformance(t *testing.T) {
	for name, connections := range map[string]int{"one connection": 1, "four connections": 4} {
		t.Run(name, func(t *testing.T) {
			adaptertest.RunWith(t, func(t *testing.T, _ adapters.Secret) adaptertest.Receiver {
				t.Helper()
				c := clinic.Start(t)
				a, err := hl7.New(hl7.Config{
					Address: c.Address, Timeout: time.Minute, Connections: connections,
					Messages: map[string]hl7.Message{"*": {Event: "S12"}},
					Segments: "SCH|{id}||||||{fields.hearingId}^{fields.canary?}||||^^^{fields.startsAt}",
				})
				if err != nil {
					t.Fatal(err)
				}
				return adaptertest.Receiver{
					Adapter: a,
					Held: func() (held []adaptertest.Held) {
						for id, message := range c.Held() {
							held = append(held, adaptertest.Held{Key: id, Body: []byte(message)})
						}
						return held
					},
					Away: c.Away,
					Answer: func(how adaptertest.Answer) bool {
						c.Always(map[adaptertest.Answer]string{
							adaptertest.Normal: clinic.Normal, adaptertest.Silent: clinic.Silent, adaptertest.Lost: clinic.Lost, adaptertest.Other: clinic.Other,
						}[how])
						return true
					},
					Key: controlID,
				}
			})
		})
	}
}

// controlID is MSH-10 as the documentation describes it.
func controlID(idempotencyKey string) string {
	sum := sha256.Sum256([]byte(idempotencyKey))
	return base32.StdEncoding.EncodeToString(sum[:])[:20]
}

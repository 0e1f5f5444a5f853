//go:build linux

package chaos

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"go.uber.org/goleak"

	"github.com/hms-mkt/lockstep/internal/pgtest"
)

var (
	seeds = flag.Int("seeds", 1, "how often each scenario runs, with another seed each time")
	seed  = flag.Uint64("seed", 0, "the first seed; 0 draws one")
	long  = flag.Bool("long", false, "run the long form of each scenario")
	soak  = flag.Duration("soak", 6*time.Second, "how long TestSoak soaks")
)

func init() {
	flag.DurationVar(&patience, "patience", patience, "how long a scenario waits for what must happen")
}

func TestMain(m *testing.M) {
	if os.Getenv(envRelay) != "" {
		if err := relayMain(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	zerolog.SetGlobalLevel(zerolog.Disabled) // some of toxiproxy's toxics write to a logger of everybody's
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	report.print = *long || *seeds > 1
	if (*long || *soak > time.Minute) && os.Getenv(pgtest.EnvDir) == "" {
		// The data of a million events, or of hours, is too large for a file system in memory.
		if err := os.Setenv(pgtest.EnvDir, os.TempDir()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if !*long { // the short forms wait for leases and timeouts, most of the time
		if err := pgtest.AtOnce(4); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	// toxiproxy does not end all of its goroutines if a link is closed during a fault.
	pgtest.Main(printing{m},
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2/toxics.(*ToxicStub).Run"),
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2.(*ToxicLink).read"),
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2.(*ToxicLink).write"))
}

// run is one run of a scenario.
type run struct {
	*testing.T
	random  *rand.Rand
	seed    uint64
	figures figures
}

// scenario runs a scenario once for each seed, in parallel with others. Its figures go into the table.
func scenario(t *testing.T, do func(*run)) {
	t.Helper()
	t.Parallel()
	for n := range *seeds {
		s := *seed + uint64(n)
		t.Run(fmt.Sprint("seed ", s), func(t *testing.T) {
			r := &run{T: t, seed: s, random: rand.New(rand.NewPCG(s, 1))}
			began := time.Now()
			defer func() {
				r.figures.took = time.Since(began)
				r.figures.failed = t.Failed()
				report.add(t, r.figures)
			}()
			do(r)
		})
	}
}

// of chooses between the short and the long form.
func of[T any](short, lengthy T) T {
	if *long {
		return lengthy
	}
	return short
}

// between draws a duration.
func (r *run) between(least, most time.Duration) time.Duration {
	return least + time.Duration(r.random.Int64N(int64(most-least)))
}

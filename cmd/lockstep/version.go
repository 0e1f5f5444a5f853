package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/output"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// build says which program this is.
type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Time     string `json:"time,omitempty"` // of the commit
	Go       string `json:"go"`
	Schema   int    `json:"schema"`
	Zones    string `json:"zones,omitempty"` // version of the time zones
}

func thisBuild() build {
	b := build{Version: "(unknown)", Go: runtime.Version(), Schema: outbox.Schema}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if info.Main.Version != "" {
		b.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		}
	}
	return b
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Long: `Print the version of this program, its commit and the commit's time if it was built from
a clone, the schema for which it is made, and the release of its time zones. lockstep migrate
status says which schema the database has. LOCKSTEP_ZONEINFO can name a zip file with other time
zones.`,
		Example: `  lockstep version --output json`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			b := thisBuild()
			var err error
			if b.Zones, err = mapping.ZoneVersion(); err != nil {
				return usageError{err}
			}
			return output.Object(a.stdout, a.format, b, func(w io.Writer) error {
				commit := ""
				if b.Revision != "" {
					commit = ", commit " + b.Revision[:min(12, len(b.Revision))]
				}
				if b.Time != "" {
					commit += " of " + b.Time
				}
				_, err := fmt.Fprintf(w, "lockstep %s (%s%s, schema %d, time zones %s)\n", b.Version, b.Go, commit, b.Schema, b.Zones)
				return err
			})
		},
	}
}

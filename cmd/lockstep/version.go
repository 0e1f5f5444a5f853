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
		if s.Key == "vcs.revision" {
			b.Revision = s.Value
		}
	}
	return b
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Long: `Print the version of this program, its commit if it was built from a clone, the
schema for which it is made, and the release of its time zones. lockstep migrate
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
				_, err := fmt.Fprintf(w, "lockstep %s (%s%s, schema %d, time zones %s)\n", b.Version, b.Go, commit, b.Schema, b.Zones)
				return err
			})
		},
	}
}

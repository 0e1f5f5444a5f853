package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/internal/output"
	"github.com/hms-mkt/lockstep/outbox"
)

func (a *app) syncCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "sync",
		Short: "Compare the syncs of the file with the database, and update the database",
	}, a.syncListCommand(), a.syncApplyCommand())
}

// optionalFile reads the configuration for a command that only compares with
// it. A file that the user named must be valid. Without one, the command also
// works if the default file is not valid or does not exist.
func (a *app) optionalFile() (*config.File, error) {
	name, named := a.file()
	if name == "" {
		return nil, nil
	}
	f, err := a.load()
	if err != nil && !named && a.given() != "" {
		a.say("%s is not valid, so the syncs are not compared with it; see: lockstep config check", name)
		return nil, nil
	}
	return f, err
}

// compare says how the file differs from the database's row. It returns "" if they
// agree.
func compare(wanted outbox.Registration, inFile bool, row outbox.Registered, inDatabase bool) string {
	switch {
	case !inDatabase:
		return "not registered: lockstep run registers it"
	case !inFile && row.Retired:
		return "retired"
	case !inFile:
		return "orphaned: not in the file. Add it to the file of a relay, or end it: lockstep retire " + row.Name
	case row.Matches(wanted):
		return ""
	}
	var differs []string
	for _, setting := range settings(wanted, row) {
		differs = append(differs, setting+" in the file")
	}
	if row.Retired {
		differs = append(differs, "retired in the database")
	}
	text := "differs: " + strings.Join(differs, "; ")
	if row.Retired {
		return text + "; to undo that: lockstep retire " + row.Name + " --undo"
	}
	return text + "; to apply the file: lockstep sync apply " + row.Name
}

// settings lists the settings of wanted that the database's row does not have.
func settings(wanted outbox.Registration, row outbox.Registered) (all []string) {
	if !slices.Equal(row.Patterns, wanted.Patterns) {
		all = append(all, "events are "+strings.Join(wanted.Patterns, ", "))
	}
	if row.OnFailed != wanted.OnFailed {
		all = append(all, "on_failed is "+wanted.OnFailed)
	}
	if row.Notify != wanted.Notify {
		all = append(all, fmt.Sprintf("notify is %t", wanted.Notify))
	}
	if !row.Escalate.Equal(wanted.Escalate) {
		all = append(all, fmt.Sprintf("escalate is %s", wanted.Escalate))
	}
	return all
}

// syncRow is a line of sync list.
type syncRow struct {
	Name        string   `json:"name"`
	Events      []string `json:"events"`
	OnFailed    string   `json:"on_failed"`
	Notify      bool     `json:"notify"`
	Retired     bool     `json:"retired"`
	Backfilling bool     `json:"backfilling"`
	Registered  bool     `json:"registered"`
	InFile      *bool    `json:"in_file"` // null without a file
	Note        string   `json:"note,omitempty"`
}

func (syncRow) Header() []string { return []string{"NAME", "EVENTS", "ON FAILED", "NOTIFY", "NOTE"} }

func (s syncRow) Cells() []string {
	note := s.Note
	if s.Backfilling {
		note = strings.TrimPrefix(note+"; retained events are being added", "; ")
	}
	return []string{s.Name, strings.Join(s.Events, ","), s.OnFailed, fmt.Sprint(s.Notify), note}
}

// listSyncs joins the syncs of the database with those of the file, which may be nil.
func listSyncs(f *config.File, known map[string]outbox.Registered) []syncRow {
	wanted := map[string]outbox.Registration{}
	rows := map[string]syncRow{}
	if f != nil {
		for _, w := range f.RelayConfig().Registrations() {
			wanted[w.Name] = w
			rows[w.Name] = syncRow{
				Name: w.Name, Events: w.Patterns, OnFailed: w.OnFailed, Notify: w.Notify,
				InFile: new(true), Note: compare(w, true, outbox.Registered{}, false),
			}
		}
	}
	for name, row := range known {
		s := syncRow{
			Name: name, Events: row.Patterns, OnFailed: row.OnFailed, Notify: row.Notify,
			Retired: row.Retired, Backfilling: row.Backfilling, Registered: true,
		}
		w, inFile := wanted[name]
		if f != nil {
			s.InFile, s.Note = &inFile, compare(w, inFile, row, true)
		} else if row.Retired {
			s.Note = "retired"
		}
		rows[name] = s
	}
	return slices.SortedFunc(maps.Values(rows), func(a, b syncRow) int { return strings.Compare(a.Name, b.Name) })
}

func (a *app) syncListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the syncs of the database and how the file differs",
		Long: `List the syncs that are registered in the database, and how the configuration
file differs. Relays obey the database. A sync of the database that is not in
the file is orphaned. A sync of the file may differ from the database, or not be
registered yet. The login needs the role outbox_auditor.`,
		Example: `  lockstep sync list`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := a.optionalFile()
			if err != nil {
				return err
			}
			return a.with(cmd, f, roleAuditor, func(ctx context.Context, db *database) error {
				known, err := db.store.Syncs(ctx)
				if err != nil {
					return err
				}
				return output.Rows(a.stdout, a.format, listSyncs(f, known)...)
			})
		},
	}
}

// applied is a line of sync apply.
type applied struct {
	Name    string `json:"name"`
	Changed bool   `json:"changed"`
	DryRun  bool   `json:"dry_run"`
	Note    string `json:"note"`
}

func (applied) Header() []string  { return []string{"NAME", "WHAT"} }
func (r applied) Cells() []string { return []string{r.Name, r.Note} }

func (a *app) syncApplyCommand() *cobra.Command {
	var (
		from   string
		dryRun bool
		o      operator
	)
	c := &cobra.Command{
		Use:   "apply [NAME…]",
		Short: "Update the database's syncs from the file",
		Long: `Update the database's syncs from the file: all of them, or those named. Changed
event types apply to events that are written after the change. Events of added
types wait until the transactions that began before the change have ended. The
other events of the sync are sent meanwhile, and lockstep status says what the
added ones wait for.

With --from, the sync also gets retained events that match and were not sent
yet. Running relays add them, and the sync is on hold meanwhile. A retired sync
gets events again. Each change of a sync is a row sync_changed of the delivery
log.

When on_failed becomes supersede, running relays close each failed delivery
whose key has a newer event that the sync's "when" matches.

The file's own "from" counts only for a sync that is new to the database. The
login needs the role outbox_relay.`,
		Example: `  lockstep sync apply --dry-run
  lockstep sync apply CourtCalendarSync --from 2027-01-31T00:00:00Z`,
		RunE: func(cmd *cobra.Command, names []string) error {
			f, err := a.load()
			if err != nil {
				return err
			}
			regs, err := chosen(f, names, from)
			if err != nil {
				return err
			}
			if err := o.check(a, false); err != nil {
				return err
			}
			return a.with(cmd, f, roleRelay, func(ctx context.Context, db *database) error {
				known, err := db.store.Syncs(ctx)
				if err != nil {
					return err
				}
				p := output.NewPrinter[applied](a.stdout, a.format)
				for _, r := range regs {
					row, registered := known[r.Name]
					if registered || from != "" {
						r.From = from
					}
					r.Actor = o.name
					result := applied{Name: r.Name, DryRun: dryRun, Changed: compare(r, true, row, registered) != "" || r.From != ""}
					if !dryRun {
						if result.Changed, err = db.store.Apply(ctx, r); err != nil {
							return errors.Join(p.Close(), err)
						}
					} else if !registered && r.From == "" && len(known) > 0 {
						return fmt.Errorf("sync %q is new to this database and %w", r.Name, outbox.ErrNeedsFrom)
					}
					result.Note = appliedNote(result, r, row, registered)
					if err := p.Print(result); err != nil {
						return err
					}
				}
				return p.Close()
			})
		},
	}
	c.Flags().StringVar(&from, "from", "", "also add retained events: `WHEN` is beginning, now or an RFC 3339 time; needs NAMEs")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change, change nothing")
	o.flags(c, "")
	return c
}

// appliedNote says what is true after the change from row, or would be.
func appliedNote(a applied, r outbox.Registration, row outbox.Registered, registered bool) string {
	if !a.Changed {
		return "unchanged"
	}
	now := settings(r, row)
	if registered && row.Retired {
		now = append(now, "it gets events again")
	}
	did := "changed"
	if !registered {
		did = "registered"
	}
	if a.DryRun {
		did = "would be " + did
	}
	if r.From != "" {
		now = append(now, "running relays add retained events from "+r.From)
	}
	return did + ": " + strings.Join(now, ", ")
}

// chosen returns the registrations of names, all if there are none.
func chosen(f *config.File, names []string, from string) ([]outbox.Registration, error) {
	if from != "" {
		var i instant
		if from != "beginning" && from != "now" && (i.Set(from) != nil || i.at == nil) {
			return nil, usagef("--from %q: want beginning, now or a time such as 2027-01-31T00:00:00Z", from)
		}
		if len(names) == 0 {
			return nil, usagef("--from adds events that relays may send at once: name the syncs that are to get them")
		}
	}
	all := f.RelayConfig().Registrations()
	if len(all) == 0 {
		return nil, usagef("the configuration has no syncs: add one under syncs")
	}
	if len(names) == 0 {
		return all, nil
	}
	var some []outbox.Registration
	for _, name := range names {
		i, err := findSync(f, name)
		if err != nil {
			return nil, err
		}
		some = append(some, all[i])
	}
	return some, nil
}

// findSync returns the index of a sync in the file.
func findSync(f *config.File, name string) (int, error) {
	var names []string
	for i, s := range f.Syncs {
		if s.Name == name {
			return i, nil
		}
		names = append(names, s.Name)
	}
	return 0, usagef("sync %q is not in the configuration; it has %s", name, cmp.Or(strings.Join(names, ", "), "none"))
}

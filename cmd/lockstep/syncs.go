package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/internal/console"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

func (a *app) syncCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "sync",
		Short: "Compare the syncs of the file with the database, and change the latter",
	}, a.syncListCommand(), a.syncApplyCommand())
}

// optionalFile reads the configuration for a command that only compares with
// it. A file that somebody named must be valid; without a valid one lying
// around the command does without.
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

// registrations are the syncs of the file by name.
func registrations(f *config.File) map[string]outbox.Registration {
	byName := map[string]outbox.Registration{}
	if f == nil {
		return byName
	}
	for _, r := range f.RelayConfig().Registrations() {
		byName[r.Name] = r
	}
	return byName
}

// compare says how the file stands to the database's row, "" if they agree.
func compare(wanted outbox.Registration, inFile bool, row outbox.Registered, inDatabase bool) string {
	switch {
	case !inDatabase:
		return "not registered"
	case !inFile && row.Retired:
		return "retired"
	case !inFile:
		return "orphaned: not in the file"
	case wanted.Name == "" || row.Matches(wanted):
		return ""
	}
	var differs []string
	if !slices.Equal(row.Patterns, wanted.Patterns) {
		differs = append(differs, fmt.Sprintf("events are %s in the file", strings.Join(wanted.Patterns, ", ")))
	}
	if row.OnFailed != wanted.OnFailed {
		differs = append(differs, "on_failed is "+wanted.OnFailed+" in the file")
	}
	if row.Notify != wanted.Notify {
		differs = append(differs, fmt.Sprintf("notify is %t in the file", wanted.Notify))
	}
	if row.Retired {
		differs = append(differs, "retired in the database")
	}
	return "differs: " + strings.Join(differs, "; ")
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

func (s syncRow) Cells() []string {
	note := s.Note
	if s.Backfilling {
		note = strings.TrimPrefix(note+"; retained events are being added", "; ")
	}
	return []string{s.Name, strings.Join(s.Events, ","), s.OnFailed, fmt.Sprint(s.Notify), note}
}

func listSyncs(f *config.File, known map[string]outbox.Registered) []syncRow {
	wanted := registrations(f)
	names := slices.Sorted(maps.Keys(known))
	for name := range wanted {
		if _, ok := known[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var rows []syncRow
	for _, name := range names {
		row, registered := known[name]
		w, inFile := wanted[name]
		s := syncRow{
			Name: name, Events: row.Patterns, OnFailed: row.OnFailed, Notify: row.Notify,
			Retired: row.Retired, Backfilling: row.Backfilling, Registered: registered,
		}
		if !registered {
			s.Events, s.OnFailed, s.Notify = w.Patterns, w.OnFailed, w.Notify
		}
		if f != nil {
			s.InFile = &inFile
		}
		s.Note = compare(w, inFile || f == nil, row, registered)
		if f == nil && row.Retired {
			s.Note = "retired"
		}
		rows = append(rows, s)
	}
	return rows
}

func (a *app) syncListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the syncs of the database and how the file differs",
		Long: `List the syncs that are registered in the database, which is what relays obey,
and how the configuration file differs: a sync of the database that is not in
the file is orphaned, one of the file may not be registered yet, or differ.`,
		Example: `  lockstep sync list`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := a.optionalFile()
			if err != nil {
				return err
			}
			db, err := a.connect(cmd.Context(), f, "sync list", roleAuditor)
			if err != nil {
				return err
			}
			defer db.close()
			known, err := db.store.Syncs(cmd.Context())
			if err != nil {
				return db.explain(err)
			}
			p := console.NewPrinter[syncRow](a.stdout, a.format, "NAME", "EVENTS", "ON FAILED", "NOTIFY", "NOTE")
			return errors.Join(p.Print(listSyncs(f, known)...), p.Close())
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

func (r applied) Cells() []string { return []string{r.Name, r.Note} }

func (a *app) syncApplyCommand() *cobra.Command {
	var (
		from   string
		dryRun bool
		w      who
	)
	c := &cobra.Command{
		Use:   "apply [NAME…]",
		Short: "Make the database's syncs say what the file says",
		Long: `Make the database's syncs say what the file says, all of them or those named.
Changed event types hold for events from then on. While transactions are open
that began before, events of added types wait; the sync's other events go on,
and status says what is waited for. With --from, retained events that match and
were not sent yet are added too; running relays do that, and hold the sync
meanwhile. A retired sync lives again. Every change of a sync is a row of the
delivery log, sync_changed.

Where on_failed becomes supersede, running relays close failed deliveries with a
newer event of their key that the sync's "when" matches.

The file's own "from" counts only for a sync that is new to the database.
The login needs the role outbox_relay.`,
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
			db, err := a.connect(cmd.Context(), f, "sync apply", roleRelay)
			if err != nil {
				return err
			}
			defer db.close()
			known, err := db.store.Syncs(cmd.Context())
			if err != nil {
				return db.explain(err)
			}
			p := console.NewPrinter[applied](a.stdout, a.format, "NAME", "WHAT")
			for _, r := range regs {
				row, registered := known[r.Name]
				r.Actor = w.onBehalf(a)
				if registered {
					r.From = from
				} else if from != "" {
					r.From = from
				}
				result := applied{Name: r.Name, DryRun: dryRun, Note: compare(r, true, row, registered)}
				result.Changed = result.Note != "" || r.From != ""
				if !dryRun {
					if result.Changed, err = db.store.Apply(cmd.Context(), r); err != nil {
						return errors.Join(p.Close(), db.explain(err))
					}
				} else if !registered && r.From == "" && len(known) > 0 {
					return fmt.Errorf("sync %q is new to this database and %w", r.Name, outbox.ErrNeedsFrom)
				}
				result.Note = appliedNote(result, r)
				if err := p.Print(result); err != nil {
					return err
				}
			}
			return p.Close()
		},
	}
	c.Flags().StringVar(&from, "from", "", "also add retained events: `WHEN` is beginning, now or an RFC 3339 time; needs NAMEs")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change, change nothing")
	w.actorFlag(c)
	return c
}

func appliedNote(a applied, r outbox.Registration) string {
	if !a.Changed {
		return "unchanged"
	}
	did := "applied"
	if a.DryRun {
		did = "would be applied"
	}
	if a.Note != "" {
		did += " (" + a.Note + ")"
	}
	if r.From != "" {
		did += "; running relays add retained events from " + r.From
	}
	return did
}

// chosen returns the registrations of names, all if there are none.
func chosen(f *config.File, names []string, from string) ([]outbox.Registration, error) {
	if err := validFrom(from, names); err != nil {
		return nil, err
	}
	all := f.RelayConfig().Registrations()
	if len(all) == 0 {
		return nil, usagef("the configuration has no syncs")
	}
	if len(names) == 0 {
		return all, nil
	}
	var some []outbox.Registration
	for _, name := range names {
		i := slices.IndexFunc(all, func(r outbox.Registration) bool { return r.Name == name })
		if i < 0 {
			return nil, usagef("sync %q is not in the configuration; it has %s", name, syncNames(f))
		}
		some = append(some, all[i])
	}
	return some, nil
}

func validFrom(from string, names []string) error {
	if from == "" {
		return nil
	}
	var i instant
	if from != "beginning" && from != "now" && (i.Set(from) != nil || i.at.IsZero()) {
		return usagef("--from %q: want beginning, now or a time such as 2027-01-31T00:00:00Z", from)
	}
	if len(names) == 0 {
		return usagef("--from adds events that may be sent at once: name the syncs that are meant")
	}
	return nil
}

func syncNames(f *config.File) string {
	var names []string
	for _, s := range f.Syncs {
		names = append(names, s.Name)
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// findSync returns a sync of the file.
func findSync(f *config.File, name string) (config.Sync, relay.Sync, error) {
	for i, s := range f.Syncs {
		if s.Name == name {
			return s, f.RelayConfig().Syncs[i], nil
		}
	}
	return config.Sync{}, relay.Sync{}, usagef("sync %q is not in the configuration; it has %s", name, syncNames(f))
}

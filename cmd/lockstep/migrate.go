package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/console"
	"github.com/hms-mkt/lockstep/migrations"
	"github.com/hms-mkt/lockstep/outbox"
)

func (a *app) migrateCommand() *cobra.Command {
	var name string
	c := group(&cobra.Command{
		Use:   "migrate",
		Short: "Create, change and remove the database schema",
		Long: `Create, change and remove the database schema. The connection must be direct,
not through a transaction pooler, and the login must own the schema or be
allowed to create it.`,
	},
		a.migrateUpCommand(&name), a.migrateDownCommand(&name),
		a.migrateStatusCommand(&name), a.migrateSQLCommand(&name))
	c.PersistentFlags().StringVar(&name, "set", "outbox", "`SET` of migrations: outbox, or scheduling (the reference module's tables)")
	return c
}

func migrationSet(name string) (migrations.Set, error) {
	for _, set := range []migrations.Set{migrations.Outbox, migrations.Scheduling} {
		if set.String() == name {
			return set, nil
		}
	}
	return migrations.Set{}, usagef("--set %q: want outbox or scheduling", name)
}

// migrating finds the set and a database that answers.
func (a *app) migrating(ctx context.Context, name string, does purpose) (migrations.Set, string, error) {
	set, err := migrationSet(name)
	if err != nil {
		return set, "", err
	}
	url, err := a.url(nil)
	if err != nil {
		return set, "", err
	}
	conn, err := dial(ctx, url, "lockstep migrate", does, a)
	if err != nil {
		return set, "", err
	}
	return set, url, conn.Close(ctx)
}

// tell says whose lock a migration waits for, and where it ends.
func (a *app) tell() migrations.Option {
	return migrations.Tell(func(sentence string) { a.say("%s", sentence) })
}

func (a *app) migrateUpCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "up",
		Short: "Apply the migrations that are missing",
		Long: `Apply the migrations that are missing. Running it again, or twice at once,
does no harm. The group roles outbox_writer, outbox_relay, outbox_operator and
outbox_auditor are created if the login may do so; else let an administrator
run the output of: lockstep migrate sql --roles

Relays and writers may go on meanwhile. A lock that somebody else holds is
tried for in short waits, for five minutes; who holds it is said.`,
		Example: `  lockstep migrate up --database-url postgres://owner@db/agency
  lockstep migrate up --set scheduling`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, url, err := a.migrating(cmd.Context(), *name, writes)
			if err != nil {
				return err
			}
			if err := migrations.Up(cmd.Context(), url, set, a.tell()); err != nil {
				return fmt.Errorf("migrate %s: %w", set, err)
			}
			return nil
		},
	}
}

func (a *app) migrateDownCommand(name *string) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "down",
		Short: "Remove the schema and everything in it",
		Long: `Remove the schema and everything in it: events, open deliveries, the log.
A delivery log that is not empty is only dropped with --force. Roles stay,
since they belong to the whole server.`,
		Example: `  lockstep migrate down
  lockstep migrate down --force    # gives up the proof of what was delivered`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, url, err := a.migrating(cmd.Context(), *name, writes)
			if err != nil {
				return err
			}
			if err := migrations.Down(cmd.Context(), url, set, force, a.tell()); err != nil {
				return fmt.Errorf("migrate %s: %w", set, err)
			}
			a.say("everything in schema %s is removed; the schema itself stays, empty but for the table of versions", set)
			return nil
		},
	}
	c.Flags().BoolVar(&force, "force", false, "also drop a delivery log that is not empty")
	return c
}

// migration is a line of migrate status.
type migration struct {
	Version int64  `json:"version"`
	Name    string `json:"name"`
	Applied bool   `json:"applied"`
}

func (m migration) Cells() []string {
	state := "missing"
	if m.Applied {
		state = "applied"
	}
	return []string{fmt.Sprint(m.Version), m.Name, state}
}

func (a *app) migrateStatusCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "List the migrations and whether they are applied",
		Long: `List the migrations that this program knows and whether they are applied; and
say which programs the schema serves, since it may be newer than this one.`,
		Example: `  lockstep migrate status`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, url, err := a.migrating(cmd.Context(), *name, reads)
			if err != nil {
				return err
			}
			list, err := migrations.List(cmd.Context(), url, set)
			if err != nil {
				return fmt.Errorf("migrations of %s: %w", set, err)
			}
			p := console.NewPrinter[migration](a.stdout, a.format, "VERSION", "NAME", "STATE")
			for _, m := range list {
				if err := p.Print(migration(m)); err != nil {
					return err
				}
			}
			if err := p.Close(); err != nil || set != migrations.Outbox {
				return err
			}
			return a.sayServed(cmd.Context(), url)
		},
	}
}

// sayServed says which programs the schema serves; it may be newer than this one.
func (a *app) sayServed(ctx context.Context, url string) error {
	store, err := outbox.Open(ctx, url, outbox.Options{MaxConnections: 1, AnyHost: true, Name: "lockstep migrate"})
	if err != nil {
		return err
	}
	defer store.Close()
	state, err := store.State(ctx)
	if err == nil && state.Version > 0 {
		a.say("schema outbox is at version %d and serves programs made for version %d and newer; this one is made for %d", state.Version, state.Oldest, outbox.Schema)
	}
	return err
}

func (a *app) migrateSQLCommand(name *string) *cobra.Command {
	var roles bool
	c := &cobra.Command{
		Use:   "sql",
		Short: "Print the migrations as a script for psql",
		Long: `Print the migrations as one script for psql, for an administrator who applies
schema changes by hand. It notes the versions, so that migrate up finds nothing
left to do. With --roles, print the statements that create the group roles.`,
		Example: `  lockstep migrate sql | psql agency
  lockstep migrate sql --roles | psql agency`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if roles {
				_, err := io.WriteString(a.stdout, migrations.Roles())
				return err
			}
			set, err := migrationSet(*name)
			if err != nil {
				return err
			}
			text, err := migrations.SQL(set)
			if err != nil {
				return err
			}
			_, err = io.WriteString(a.stdout, text)
			return err
		},
	}
	c.Flags().BoolVar(&roles, "roles", false, "print the group roles instead")
	return c
}

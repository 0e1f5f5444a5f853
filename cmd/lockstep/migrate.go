package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/output"
	"github.com/hms-mkt/lockstep/migrations"
	"github.com/hms-mkt/lockstep/outbox"
)

func (a *app) migrateCommand() *cobra.Command {
	var name string
	c := group(&cobra.Command{
		Use:   "migrate",
		Short: "Create, change and remove the database schema",
		Long: `Create, change and remove the database schema. The connection must be direct,
not through a transaction pooler. The login must own the schema or be allowed
to create it.`,
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

// migrating calls do with a set and the URL of a database that answers.
func (a *app) migrating(cmd *cobra.Command, name string, anyHost bool, do func(ctx context.Context, url string, set migrations.Set) error) error {
	ctx := cmd.Context()
	set, err := migrationSet(name)
	if err != nil {
		return err
	}
	url, err := a.url(nil)
	if err != nil {
		return err
	}
	conn, err := a.dial(ctx, url, "lockstep migrate", anyHost)
	if err != nil {
		return err
	}
	err = outbox.CheckServer(ctx, conn)
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		return err
	}
	if err := do(ctx, url, set); err != nil {
		return fmt.Errorf("migrate %s: %w", set, err)
	}
	return nil
}

// tell prints the owner of the lock for which a migration waits, and the version that
// it reached.
func (a *app) tell() migrations.Option {
	return migrations.Tell(func(sentence string) { a.say("%s", sentence) })
}

func (a *app) migrateUpCommand(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "up",
		Short: "Apply the missing migrations",
		Long: `Apply the missing migrations. Running it again, or twice at the same time, does
no harm. It creates the group roles outbox_writer, outbox_relay, outbox_operator
and outbox_auditor if the login may create roles. Otherwise let an
administrator run the output of: lockstep migrate sql --roles

Relays and writers may run at the same time. If another session holds a lock, the
command says which one and tries again in short waits, for up to five minutes.`,
		Example: `  lockstep migrate up --database-url postgres://owner@db/agency
  lockstep migrate up --set scheduling`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.migrating(cmd, *name, false, func(ctx context.Context, url string, set migrations.Set) error {
				return migrations.Up(ctx, url, set, a.tell())
			})
		},
	}
}

func (a *app) migrateDownCommand(name *string) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "down",
		Short: "Remove the schema and everything in it",
		Long: `Remove the schema and everything in it: events, open deliveries and the
delivery log. If the log is not empty, this needs --force. Roles stay, because
they belong to the whole server.`,
		Example: `  lockstep migrate down
  lockstep migrate down --force    # drops the proof of what was delivered`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.migrating(cmd, *name, false, func(ctx context.Context, url string, set migrations.Set) error {
				if err := migrations.Down(ctx, url, set, force, a.tell()); err != nil {
					return err
				}
				a.say("everything in schema %s is removed; the schema stays, with only the table of versions in it", set)
				return nil
			})
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

func (migration) Header() []string { return []string{"VERSION", "NAME", "STATE"} }

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
		Long: `List the migrations that this program knows and whether they are applied. The
schema may be newer than this program, so the command also says which programs
the schema serves.`,
		Example: `  lockstep migrate status`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.migrating(cmd, *name, true, func(ctx context.Context, url string, set migrations.Set) error {
				list, err := migrations.List(ctx, url, set)
				if err != nil {
					return err
				}
				var rows []migration
				for _, m := range list {
					rows = append(rows, migration(m))
				}
				if err := output.Rows(a.stdout, a.format, rows...); err != nil || set != migrations.Outbox {
					return err
				}
				return a.sayServed(ctx, url)
			})
		},
	}
}

// sayServed says which programs the schema serves.
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
schema changes by hand. The script records the versions, so that migrate up has
nothing left to do. With --roles, print the statements that create the group
roles.`,
		Example: `  lockstep migrate sql | psql agency
  lockstep migrate sql --roles | psql agency`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			set, err := migrationSet(*name)
			if err != nil {
				return err
			}
			text, err := migrations.SQL(set)
			if roles {
				text, err = migrations.Roles(), nil
			}
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

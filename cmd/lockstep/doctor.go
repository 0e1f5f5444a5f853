package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/internal/doctor"
	"github.com/hms-mkt/lockstep/internal/output"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// findingRow is a line of doctor.
type findingRow struct{ doctor.Finding }

func (findingRow) Header() []string { return []string{"CHECK", "SEVERITY", "SYNC", "SAYS", "REMEDY"} }

func (f findingRow) Cells() []string {
	return []string{f.Name, string(f.Severity), f.Sync, f.Says, f.Remedy}
}

func (a *app) doctorCommand() *cobra.Command {
	var noNetwork, tokens bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Find what is wrong before it stops deliveries, and say what to do",
		Long: `Find what is wrong before it stops deliveries, and say what to do. The command
checks the server and its settings, the login, the version of the schema and
whether somebody has changed it, clocks and time zones, old transactions,
replication slots, vacuum, partitions of the log, the relays, deliveries that
need a person, and how the configuration differs from the database. It connects
to each host that the configuration names, through the configured proxy, and
says when certificates expire.

It changes nothing, and sends no request to a receiver. With --tokens, it gets a
token from each token endpoint, as a relay does. Each check has 5 seconds. The
command exits with 3 if it found a problem. A warning may become a problem, or
could not be checked, and does not change the exit code. The login of a relay can
make all checks, and one in the role outbox_auditor most of them.`,
		Example: `  lockstep doctor
  lockstep doctor --no-network --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if noNetwork && tokens {
				return usagef("--no-network and --tokens exclude each other: a token comes over the network")
			}
			return a.examine(cmd, !noNetwork, tokens)
		},
	}
	c.Flags().BoolVar(&noNetwork, "no-network", false, "do not connect to receivers and token endpoints")
	c.Flags().BoolVar(&tokens, "tokens", false, "get a token from each token endpoint")
	return c
}

func (a *app) examine(cmd *cobra.Command, network, tokens bool) error {
	ctx := cmd.Context()
	f, found, err := a.examineFile()
	if err != nil {
		return err
	}
	url, err := a.url(f)
	if err != nil {
		return err
	}
	anyHost := a.readOnly(ctx, url, cmd.CommandPath())
	store, err := outbox.Open(ctx, url, outbox.Options{MaxConnections: 2, AnyHost: anyHost, Name: cmd.CommandPath()})
	if err != nil {
		return usageError{err}
	}
	defer store.Close()
	o := doctor.Options{
		Connect: func(ctx context.Context) (*pgx.Conn, error) { return a.dial(ctx, url, cmd.CommandPath(), anyHost) },
		Store:   store,
		Version: thisBuild().Version,
		Config:  f,
		Network: network,
		Tokens:  tokens,
	}
	if f != nil {
		o.Also = []doctor.Check{syncsCheck(store, f)}
	}
	var rows []findingRow
	for _, one := range append(found, doctor.Examine(ctx, o)...) {
		rows = append(rows, findingRow{one})
	}
	err = output.Rows(a.stdout, a.format, rows...)
	a.say("%s, %s", plural(number(rows, doctor.Problem), "problem"), plural(number(rows, doctor.Warning), "warning"))
	if number(rows, doctor.Problem) > 0 {
		err = errors.Join(err, errFound)
	}
	return err
}

// readOnly reports whether no host of the URL accepts writes. Then the doctor examines the first
// that answers, and says so.
func (a *app) readOnly(ctx context.Context, url, name string) bool {
	conn, err := a.dial(ctx, url, name, false)
	if err != nil {
		return errors.Is(err, pgconn.ErrReadOnlyConnection)
	}
	_ = conn.Close(ctx) // nothing was asked
	return false
}

// number counts the findings of a severity.
func number(rows []findingRow, severity doctor.Severity) (n int) {
	for _, f := range rows {
		if f.Severity == severity {
			n++
		}
	}
	return n
}

// examineFile reads the configuration, if there is one, and returns what is wrong with it. f is
// nil if there is none or if it cannot be read.
func (a *app) examineFile() (f *config.File, found []doctor.Finding, err error) {
	const check = "configuration"
	name, _ := a.file()
	if name == "" {
		return nil, []doctor.Finding{{Name: check, Severity: doctor.Warning, Says: "there is none, so neither syncs nor receivers are checked", Remedy: "name a file with --config"}}, nil
	}
	f, err = a.load()
	if err == nil {
		_, err = relay.New(nil, f.RelayConfig()) // a relay's own checks, which connect to nothing
	}
	if f == nil && a.given() == "" {
		return nil, nil, err // it does not say where the database is
	}
	add := func(severity doctor.Severity, all []problem) {
		for _, p := range all {
			says := p.Text
			if p.Path != "" {
				says = fmt.Sprintf("%s:%d:%d: %s: %s", name, p.Line, p.Column, p.Path, p.Text)
			}
			found = append(found, doctor.Finding{Name: check, Severity: severity, Says: says})
		}
	}
	add(doctor.Problem, problemsOf(err))
	if f != nil {
		add(doctor.Warning, problemsOf(f.Warnings))
	}
	if len(found) == 0 {
		found = []doctor.Finding{{Name: check, Severity: doctor.OK, Says: name + " is valid"}}
	}
	return f, found, nil
}

// syncsCheck compares the syncs of the file with those of the database.
func syncsCheck(store *outbox.Store, f *config.File) doctor.Check {
	return doctor.Check{Name: "syncs", Fine: "those of the file are as in the database", Run: func(ctx context.Context) (found []doctor.Finding, err error) {
		known, err := store.Syncs(ctx)
		for _, s := range listSyncs(f, known) {
			if s.Note != "" && (!s.Retired || *s.InFile) { // an ended sync needs nobody
				found = append(found, doctor.Finding{Severity: doctor.Warning, Sync: s.Name, Says: s.Note})
			}
		}
		return found, err
	}}
}

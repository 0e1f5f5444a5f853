package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/output"
)

// app is shared by the commands: the environment of the process and the global flags.
type app struct {
	env            func(string) (string, bool)
	stdin          io.Reader
	stdout, stderr io.Writer

	configPath  string
	databaseURL string
	output      string
	wide        bool
	logFormat   string
	logLevel    string

	format output.Format
	log    *slog.Logger
}

// run executes one command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	if i := slices.Index(args, "--log-format"); slices.Contains(args, "--log-format="+formatJSON) || i >= 0 && i+1 < len(args) && args[i+1] == formatJSON {
		a.logFormat = formatJSON // also for mistakes before cobra has read the flags
	}
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = ranError{errors.New("interrupted")}
	}
	a.report(cmd.CommandPath(), err)
	return exitCode(err)
}

// root builds the tree of commands.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "lockstep",
		Short: "Keeps external calendars in lock-step with your own database",
		Long: `Lockstep keeps the calendars of courts and clinics in lock-step with your own
PostgreSQL database. It sends each event of the transactional outbox to the
external systems that are configured for it, in order per key and at least once,
and keeps a log of every attempt.

Exit codes: 0 ok · 1 failed · 2 usage or configuration · 3 a check found
something · 4 stopped before drained`,
		Example: `  lockstep migrate up          # create the schema
  lockstep config check        # is lockstep.yaml valid?
  lockstep run                 # relay until stopped
  lockstep status              # state of each sync
  lockstep explain H-2027-000007  # what happened to a hearing or an event, and why`,
		Version:       thisBuild().Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return a.readGlobals()
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.configPath, "config", "", "configuration `FILE` [$LOCKSTEP_CONFIG, or lockstep.yaml if it exists]")
	flags.StringVar(&a.databaseURL, "database-url", "", "PostgreSQL `URL`; overrides database.url of the file [$DATABASE_URL]")
	flags.StringVarP(&a.output, "output", "o", "table", "`FORMAT` of data: table, json or jsonl; csv for lists of rows")
	flags.BoolVar(&a.wide, "wide", false, "do not fit tables into the terminal or $COLUMNS; a column that does not fit is below its row")
	flags.StringVar(&a.logFormat, "log-format", "text", "`FORMAT` of logs: text or json")
	flags.StringVar(&a.logLevel, "log-level", "info", "lowest `LEVEL` to log: debug, info, warn or error")

	root.AddGroup(
		&cobra.Group{ID: "relay", Title: "Relay:"},
		&cobra.Group{ID: "look", Title: "Inspect:"},
		&cobra.Group{ID: "act", Title: "Operate:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("relay", a.runCommand(), a.migrateCommand(), a.configCommand(), a.syncCommand(), a.healthcheckCommand())
	add("look", a.statusCommand(), a.topCommand(), a.consoleCommand(), a.logCommand(), a.explainCommand(), a.changesCommand(), a.doctorCommand(), a.mapCommand())
	add("act", a.requeueCommand(), a.discardCommand(), a.replayCommand(), a.reconcileCommand(), a.repairCommand(), a.pauseCommand(), a.resumeCommand(), a.retireCommand(), a.refCommand())
	root.AddCommand(a.versionCommand())
	a.completion(root)
	mark(root)
	return root
}

// mark wraps the errors of commands, to distinguish them from cobra's.
func mark(c *cobra.Command) {
	if do := c.RunE; do != nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if err := do(cmd, args); err != nil {
				return ranError{err}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		mark(sub)
	}
}

// group makes a command that only has subcommands. For a mistyped subcommand, cobra
// would print the help and exit with 0.
func group(c *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	c.AddCommand(commands...)
	c.SuggestionsMinimumDistance = 2
	c.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			text += "; did you mean " + strings.Join(near, " or ") + "?"
		}
		return errors.New(text)
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return c
}

func (a *app) readGlobals() error {
	var err error
	if a.format, err = output.ParseFormat(a.output); err != nil {
		return fmt.Errorf("--%w", err)
	}
	if columns, err := strconv.Atoi(a.getenv("COLUMNS")); a.wide || err == nil && columns > 0 {
		if a.wide {
			columns = 0
		}
		a.stdout = output.Screen{Writer: a.stdout, Columns: columns}
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
		return fmt.Errorf("--log-level %q: want debug, info, warn or error", a.logLevel)
	}
	switch a.logFormat {
	case "text":
		a.log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
	case formatJSON:
		a.log = jsonLog(a.stderr, level)
	default:
		return fmt.Errorf("--log-format %q: want text or json", a.logFormat)
	}
	return nil
}

// formatJSON is the --log-format for programs.
const formatJSON = "json"

// jsonLog writes durations as texts with a unit. The handler alone would write
// nanoseconds.
func jsonLog(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, at slog.Attr) slog.Attr {
		if at.Value.Kind() == slog.KindDuration {
			at.Value = slog.StringValue(at.Value.Duration().String())
		}
		return at
	}}))
}

// say prints a line for the person at the terminal.
func (a *app) say(format string, args ...any) {
	fmt.Fprintln(a.stderr, adapters.Clean(fmt.Sprintf(format, args...), 0))
}

// getenv returns a variable, or "".
func (a *app) getenv(name string) string {
	v, _ := a.env(name)
	return v
}

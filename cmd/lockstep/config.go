package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/internal/output"
	"github.com/hms-mkt/lockstep/relay"
)

func (a *app) configCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "config",
		Short: "Begin, check and show the configuration",
	}, a.configInitCommand(), a.configCheckCommand(), a.configSchemaCommand(), a.configPrintCommand())
}

// checked is the result of config check.
type checked struct {
	File     string    `json:"file"`
	Valid    bool      `json:"valid"`
	Syncs    []string  `json:"syncs"`
	Problems []problem `json:"problems"`
	Warnings []problem `json:"warnings"`
}

type problem struct {
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Path   string `json:"path,omitempty"`
	Text   string `json:"text"`
}

func (a *app) configCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Find everything that is wrong with the configuration",
		Long: `Find everything that is wrong with the configuration: unknown keys, missing
variables, expressions that do not compile, limits that contradict each other.
The command connects to nothing. It exits with 2 if a relay would refuse the
file. Warnings, such as a credential that is sent over plain http, do not change
the exit code.`,
		Example: `  lockstep config check
  lockstep config check --config court.yaml --output json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			f, err := a.load()
			switch {
			case err != nil:
			case len(f.Syncs) == 0:
				err = usagef("the file has no syncs: a relay needs at least one (lockstep config init prints one to begin with), and only lockstep console needs none")
			default:
				// These are the relay's own checks, which connect to nothing.
				if _, refused := relay.New(nil, f.RelayConfig()); refused != nil {
					err = usageError{refused}
				}
			}
			result := checked{Valid: err == nil, Syncs: []string{}, Problems: problemsOf(err), Warnings: []problem{}}
			result.File, _ = a.file()
			if f != nil {
				for _, s := range f.Syncs {
					result.Syncs = append(result.Syncs, s.Name)
				}
				result.Warnings = problemsOf(f.Warnings)
			}
			if err != nil && a.format == output.Table {
				return err
			}
			return errors.Join(err, output.Object(a.stdout, a.format, result, func(w io.Writer) error {
				for _, p := range result.Warnings {
					fmt.Fprintf(w, "%s:%d:%d: warning: %s: %s\n", result.File, p.Line, p.Column, p.Path, p.Text)
				}
				_, err := fmt.Fprintf(w, "%s is valid: %s (%s)\n", result.File, plural(len(result.Syncs), "sync"), strings.Join(result.Syncs, ", "))
				return err
			}))
		},
	}
}

func problemsOf(err error) []problem {
	list := []problem{}
	var all config.Problems
	switch {
	case err == nil:
	case errors.As(err, &all):
		for _, p := range all {
			list = append(list, problem{p.Line, p.Column, p.Path, p.Text})
		}
	default:
		list = append(list, problem{Text: err.Error()})
	}
	return list
}

func (a *app) configSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "schema",
		Short:   "Print the JSON Schema of the configuration, for editors",
		Example: `  lockstep config schema > lockstep.schema.json`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			b, err := config.Schema()
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(b)
			return err
		},
	}
}

func (a *app) configPrintCommand() *cobra.Command {
	var defaults bool
	c := &cobra.Command{
		Use:   "print",
		Short: "Print the configuration as a relay reads it, without secrets",
		Long: `Print the configuration as a relay reads it, as YAML. Secrets are masked, and
references ${…} are printed instead of their values. With --defaults, the values
that the file leaves out are printed too; without a file, only the defaults.`,
		Example: `  lockstep config print
  lockstep config print --defaults`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if name, _ := a.file(); name == "" && defaults {
				return config.Defaults().Print(a.stdout, true)
			}
			f, err := a.load()
			if err != nil {
				return err
			}
			return f.Print(a.stdout, defaults)
		},
	}
	c.Flags().BoolVar(&defaults, "defaults", false, "print default values too")
	return c
}

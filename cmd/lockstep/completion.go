package main

import (
	"context"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/internal/inspect"
	"github.com/hms-mkt/lockstep/internal/operate"
)

// completionTimeout bounds the wait for the database, because a person waits for the shell.
const completionTimeout = time.Second

// candidates returns words for the shell. args are the arguments before the word that is
// being typed.
type candidates func(cmd *cobra.Command, args []string) []string

// completion tells the shell which words each flag and argument of c and its subcommands
// takes. An argument has the name that it has in [cobra.Command.Use].
func (a *app) completion(c *cobra.Command) {
	known := map[string]candidates{
		"sync":           a.syncNames,
		"SYNC":           a.syncNames,
		"NAME":           a.syncNames,
		"key":            a.openKeys,
		"EVENT|KEY":      a.openKeys,
		"EVENT|KEY|SYNC": a.openKeys,
		"scope":          a.scopes,
		"type":           a.eventTypes,
		"class":          oneOf(operate.Classes()...),
		"outcome":        oneOf(outcomes()...),
		"action":         oneOf(inspect.Actions()...),
		"from":           oneOf("beginning", "now"),
		"output":         oneOf("table", "json", "jsonl", "csv"),
		"log-format":     oneOf("text", formatJSON),
		"log-level":      oneOf("debug", "info", "warn", "error"),
		"set":            oneOf("outbox", "scheduling"),
		"profile":        profileCandidates,
	}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		register := func(f *pflag.Flag) {
			if from := known[f.Name]; from != nil {
				_ = c.RegisterFlagCompletionFunc(f.Name, from.complete)
			}
		}
		c.LocalNonPersistentFlags().VisitAll(register)
		c.PersistentFlags().VisitAll(register)
		if usage := strings.Fields(c.Use)[1:]; len(usage) > 0 {
			c.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
				at := len(args)
				if many := len(usage) - 1; strings.Contains(usage[many], "…") {
					at = min(at, many)
				}
				if at >= len(usage) {
					return nil, cobra.ShellCompDirectiveNoFileComp
				}
				name := strings.Trim(usage[at], "[]…")
				if from := known[name]; from != nil {
					return from.complete(cmd, args, typed)
				}
				if strings.Contains(name, "FILE") {
					return nil, cobra.ShellCompDirectiveDefault
				}
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(c)
	c.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	_ = c.MarkPersistentFlagFilename("config", "yaml", "yml", "json")
}

func oneOf(all ...string) candidates {
	return func(*cobra.Command, []string) []string { return all }
}

func profileCandidates(*cobra.Command, []string) []string {
	all, _ := profiles()
	return profileNames(all)
}

// complete offers the candidates that begin as typed and are not given yet.
func (from candidates) complete(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	all := slices.DeleteFunc(slices.Clone(from(cmd, args)), func(word string) bool {
		return !strings.HasPrefix(word, typed) || slices.Contains(args, word)
	})
	slices.Sort(all)
	return slices.Compact(all), cobra.ShellCompDirectiveNoFileComp
}

// syncNames are the syncs of the file and of the database, which also has retired ones.
func (a *app) syncNames(cmd *cobra.Command, _ []string) []string {
	names, _ := a.outline()
	return append(names, a.column(cmd, `SELECT name FROM outbox.sync LIMIT 1000`)...)
}

func (a *app) eventTypes(*cobra.Command, []string) []string {
	_, types := a.outline()
	return types
}

// openKeys are keys that somebody may want to look at: of failed deliveries and retries.
func (a *app) openKeys(cmd *cobra.Command, _ []string) []string {
	const failedOrRetry = `SELECT DISTINCT key FROM (SELECT key FROM outbox.delivery WHERE state IN ('failed', 'retry') LIMIT 200) AS d`
	return a.column(cmd, failedOrRetry)
}

// scopes are the destinations of the sync that are on hold.
func (a *app) scopes(cmd *cobra.Command, args []string) []string {
	const onHold = `SELECT DISTINCT scope FROM outbox.hold WHERE sync = $1 AND scope <> '' LIMIT 200`
	return a.column(cmd, onHold, strings.Join(args, ""))
}

// outline returns the names of the file's syncs and the types of their events.
func (a *app) outline() (syncs, types []string) {
	name, _ := a.file()
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, nil
	}
	return config.Outline(data)
}

// column returns the texts that a query finds in the database, none if it cannot be read
// in time.
func (a *app) column(cmd *cobra.Command, query string, args ...any) []string {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	url, err := a.url(nil)
	if err != nil {
		return nil
	}
	conn, err := a.dial(ctx, url, cmd.CommandPath()+" (completion)", true)
	if err != nil {
		return nil
	}
	defer func() { _ = conn.Close(ctx) }()
	rows, _ := conn.Query(ctx, query, args...) // CollectRows returns its error
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(found, func(word string) bool { return word != adapters.Clean(word, 0) })
}

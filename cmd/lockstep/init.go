package main

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/docs/recipes"
)

//go:embed profiles
var ownProfiles embed.FS

// profiles returns the starting files by name: one for each kind of adapter, and the recipes
// for real APIs.
func profiles() (map[string]string, error) {
	own, err := fs.Sub(ownProfiles, "profiles")
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, files := range []fs.FS{own, recipes.Files} {
		names, err := fs.Glob(files, "*.yaml")
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			text, err := fs.ReadFile(files, name)
			if err != nil {
				return nil, err
			}
			all[strings.TrimSuffix(path.Base(name), ".yaml")] = string(text)
		}
	}
	return all, nil
}

// profileNames are the names of the profiles in order.
func profileNames(all map[string]string) []string {
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// beginning is what every starting file begins with: the profile's name and its variables
// are filled in.
const beginning = `# Lockstep, begun with: lockstep config init --profile %s
# Every key is in docs/configuration-reference.md. Next: set the variables, change the names, then
#
#   lockstep config check
#   lockstep doctor
#
# ${NAME} is a variable of the environment, and ${file:/path} the contents of a file.
# Variables of this file: %s
database:
  url: ${DATABASE_URL}                 # postgres://user@host:5432/database, with a login in the role outbox_relay

listen: 127.0.0.1:9464                 # console, health and metrics

relay:
  workers: 32                          # deliveries in flight in this process

`

var variableReference = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)`)

// startingFile makes the file of a profile.
func startingFile(name, syncs string) string {
	variables := []string{"DATABASE_URL"}
	for _, m := range variableReference.FindAllStringSubmatch(syncs, -1) {
		if !slices.Contains(variables, m[1]) {
			variables = append(variables, m[1])
		}
	}
	return fmt.Sprintf(beginning, name, strings.Join(variables, ", ")) + syncs
}

func (a *app) configInitCommand() *cobra.Command {
	var profile, file string
	var force bool
	c := &cobra.Command{
		Use:   "init",
		Short: "Print a commented file to begin with",
		Long: `Print a commented file to begin with, or write it with --file. Its secrets are
variables of the environment. A profile is a kind of adapter (caldav, rest, soap,
webhook), an API of docs/recipes.md (county, ecf5, fhir, google, graph, hmc, hmi),
or a way to tell people what is wrong (chat, mail). The command asks nothing and
connects to nothing.`,
		Example: `  lockstep config init
  lockstep config init --profile graph --file calendar.yaml`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			all, err := profiles()
			if err != nil {
				return err
			}
			syncs, ok := all[profile]
			switch {
			case !ok:
				return usagef("--profile %q: want one of %s", profile, strings.Join(profileNames(all), ", "))
			case force && file == "":
				return usagef("--force is for --file, which is not given")
			case file == "":
				_, err := fmt.Fprint(a.stdout, startingFile(profile, syncs))
				return err
			}
			if err := writeNew(file, startingFile(profile, syncs), force); err != nil {
				return err
			}
			a.say("%s was written; next: lockstep config check --config %s", file, file)
			return nil
		},
	}
	c.Flags().StringVar(&profile, "profile", "rest", "`NAME` of what the file is for")
	c.Flags().StringVar(&file, "file", "", "write to this `FILE`, which must not exist")
	c.Flags().BoolVar(&force, "force", false, "overwrite the file")
	_ = c.MarkFlagFilename("file", "yaml", "yml")
	return c
}

// writeNew writes a file. Unless force, the file must not exist.
func writeNew(name, text string, force bool) error {
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if !force {
		flags |= os.O_EXCL
	}
	f, err := os.OpenFile(name, flags, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return usagef("%s exists already: name another file, or overwrite it with --force", name)
	}
	if err != nil {
		return fmt.Errorf("cannot write the file: %w", err)
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

package main

import (
	"errors"
	"io/fs"
	"os"

	"github.com/hms-mkt/lockstep/internal/config"
)

// defaultFile is read when it exists and no other file is named.
const defaultFile = "lockstep.yaml"

// file returns the name of the configuration file, "" if there is none, and
// whether the user named it.
func (a *app) file() (name string, named bool) {
	if a.configPath != "" {
		return a.configPath, true
	}
	if name := a.getenv("LOCKSTEP_CONFIG"); name != "" {
		return name, true
	}
	if _, err := os.Stat(defaultFile); errors.Is(err, fs.ErrNotExist) {
		return "", false
	}
	return defaultFile, false
}

// load reads the configuration file.
func (a *app) load() (*config.File, error) { return a.loadBy(config.Load) }

// loadBy reads the configuration file with the function read.
func (a *app) loadBy(read func(path string, env func(string) (string, bool)) (*config.File, error)) (*config.File, error) {
	name, _ := a.file()
	if name == "" {
		return nil, usagef("no configuration: there is no %s here; name a file with --config or LOCKSTEP_CONFIG", defaultFile)
	}
	f, err := read(name, a.lookup)
	if err != nil {
		return nil, usageError{err}
	}
	return f, nil
}

// lookup returns a variable for the configuration file. --database-url replaces DATABASE_URL.
func (a *app) lookup(name string) (string, bool) {
	if name == "DATABASE_URL" && a.databaseURL != "" {
		return a.databaseURL, true
	}
	return a.env(name)
}

// given returns the database's URL from the flag or the environment, "" if neither has it.
func (a *app) given() string {
	if a.databaseURL != "" {
		return a.databaseURL
	}
	return a.getenv("DATABASE_URL")
}

// url returns the database's URL from the flag, the environment or the file. It
// reads the file only if it must, because the file may refer to secrets that an
// operator's machine does not have. f is the file if it is read already.
func (a *app) url(f *config.File) (string, error) {
	if url := a.given(); url != "" {
		return url, nil
	}
	if name, _ := a.file(); f == nil && name != "" {
		var err error
		if f, err = a.load(); err != nil {
			return "", err
		}
	}
	if f == nil || f.Database.URL == "" {
		return "", usagef("no database: give --database-url, set DATABASE_URL, or write database.url into the configuration")
	}
	return f.Database.URL.Reveal(), nil
}

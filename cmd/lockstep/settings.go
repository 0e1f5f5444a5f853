package main

import (
	"errors"
	"io/fs"
	"os"

	"github.com/hms-mkt/lockstep/internal/config"
)

// defaultFile is read when it exists and no other file is named.
const defaultFile = "lockstep.yaml"

// file returns the name of the configuration file and whether somebody named
// it; "" if there is none.
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
func (a *app) load() (*config.File, error) {
	name, _ := a.file()
	if name == "" {
		return nil, usagef("no configuration: there is no %s here; name a file with --config or LOCKSTEP_CONFIG", defaultFile)
	}
	f, err := config.Load(name, a.lookup)
	if err != nil {
		return nil, usageError{err}
	}
	return f, nil
}

// lookup lets --database-url stand in for the variable that files name.
func (a *app) lookup(name string) (string, bool) {
	if name == "DATABASE_URL" && a.databaseURL != "" {
		return a.databaseURL, true
	}
	return a.env(name)
}

// given returns the database's URL by flag or environment, "" if neither names it.
func (a *app) given() string {
	if a.databaseURL != "" {
		return a.databaseURL
	}
	return a.getenv("DATABASE_URL")
}

// url returns the database's URL: by flag, by environment, or by the file,
// which is read only if it is needed, since it may want secrets that an
// operator's machine has not got. f is the file where it is read already.
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

package mapping

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"
)

// builtIn has one file, the time zones of a release of the IANA database
// (https://www.iana.org/time-zones, in the public domain) as Go distributes them in
// lib/time/zoneinfo.zip. The name of the file is the release. To use a newer release, replace
// the file: lib/time/update.bash of a Go distribution names the release of its zip.
//
//go:embed zones/*.zip
var builtIn embed.FS

// ZoneFile is the environment variable that can name another time zone database: a zip file
// with TZif files (RFC 9636), such as lib/time/zoneinfo.zip of a Go distribution.
const ZoneFile = "LOCKSTEP_ZONEINFO"

// zones is a time zone database.
type zones struct {
	files   fs.FS // TZif files by zone name
	version string
}

// currentZones returns the time zone database of this process. It never uses the files of the
// machine, because all relays must convert times in the same way.
var currentZones = sync.OnceValues(func() (zones, error) { return openZones(os.Getenv(ZoneFile)) })

// ZoneVersion returns the version of this process's time zone database. For the built-in one
// it is the release, such as 2025c. For the file that [ZoneFile] names it is the name and a
// digest. The variable is read once per process. An error says why the file cannot be used;
// then no mapping compiles that has a zone.
func ZoneVersion() (string, error) {
	z, err := currentZones()
	return z.version, err
}

func openZones(file string) (zones, error) {
	if file == "" {
		found, err := fs.Glob(builtIn, "zones/*.zip")
		if err != nil {
			return zones{}, err
		}
		data, err := builtIn.ReadFile(found[0])
		if err != nil {
			return zones{}, err
		}
		return unzip(data, strings.TrimSuffix(strings.TrimPrefix(found[0], "zones/"), ".zip"))
	}
	data, err := os.ReadFile(file)
	var z zones
	if err == nil {
		sum := sha256.Sum256(data)
		z, err = unzip(data, file+" ("+hex.EncodeToString(sum[:6])+")")
	}
	if err == nil {
		_, err = z.load("America/New_York")
	}
	if err != nil {
		return zones{}, fmt.Errorf("the time zones of %s=%s cannot be used: %w; name a zip file with zones such as America/New_York, or unset the variable to use the built-in zones", ZoneFile, file, err)
	}
	return z, nil
}

func unzip(data []byte, version string) (zones, error) {
	files, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	return zones{files, version}, err
}

func (z zones) load(name string) (*time.Location, error) {
	data, err := fs.ReadFile(z.files, name)
	if err != nil {
		return nil, err
	}
	return time.LoadLocationFromTZData(name, data)
}

var errNoZone = errors.New("no time zone has this name")

// LoadZone returns the time zone of an IANA name such as America/New_York, from the time zone
// database of this process. The error says what to write instead.
func LoadZone(name string) (*time.Location, error) {
	zone, err := loadZone(name)
	if errors.Is(err, errNoZone) {
		return nil, fmt.Errorf("%q is no time zone: write an IANA name such as America/New_York", name)
	}
	return zone, err
}

// loadZone returns the zone of that name. If there is none, the error wraps errNoZone.
func loadZone(name string) (*time.Location, error) {
	z, err := currentZones()
	if err != nil {
		return nil, err
	}
	zone, err := z.load(name)
	if err != nil {
		return nil, errNoZone
	}
	return zone, nil
}

package migrations

import (
	"io/fs"
	"time"
)

// Files are the embedded migrations of all sets.
var Files = files

// WithFiles uses migrations from other files.
func WithFiles(files fs.FS) Option { return func(m *migrator) { m.files = files } }

// Within limits the wait for locks to d.
func Within(d time.Duration) Option { return func(m *migrator) { m.lockWait = d } }

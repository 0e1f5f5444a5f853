package migrations

import (
	"io/fs"
	"time"
)

// Files are the embedded migrations of all sets.
var Files = files

// WithFiles takes the migrations from other files.
func WithFiles(files fs.FS) Option { return func(m *migrator) { m.files = files } }

// Within waits for locks for no longer than d.
func Within(d time.Duration) Option { return func(m *migrator) { m.lockWait = d } }

package migrations

import (
	"embed"
	"io/fs"
	"strings"
)

//go:embed outbox scheduling
var embedded embed.FS

// files are the migrations of all sets, one file each.
var files fs.FS = joinedFolders{embedded}

// joinedFolders presents a folder set/NNNNN_name as a file set/NNNNN_name.sql. The file has
// the contents of all files of the folder, in the order of their names.
type joinedFolders struct{ fs.FS }

func (f joinedFolders) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(f.FS, name)
	for i, entry := range entries {
		if entry.IsDir() && name != "." {
			entries[i] = folderAsFile{entry}
		}
	}
	return entries, err
}

func (f joinedFolders) Open(name string) (fs.File, error) {
	folder, isSQL := strings.CutSuffix(name, ".sql")
	parts, err := fs.Glob(f.FS, folder+"/*.sql")
	if err != nil || !isSQL || len(parts) == 0 {
		return f.FS.Open(name)
	}
	var text strings.Builder
	for _, part := range parts {
		b, err := fs.ReadFile(f.FS, part)
		if err != nil {
			return nil, err
		}
		text.Write(b)
		text.WriteByte('\n')
	}
	first, err := f.FS.Open(parts[0])
	return joinedFile{first, strings.NewReader(text.String())}, err
}

type folderAsFile struct{ fs.DirEntry }

func (f folderAsFile) Name() string { return f.DirEntry.Name() + ".sql" }

// joinedFile reads the joined parts. The other methods are those of the first part.
type joinedFile struct {
	fs.File
	text *strings.Reader
}

func (f joinedFile) Read(b []byte) (int, error) { return f.text.Read(b) }

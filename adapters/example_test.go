package adapters_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/adaptertest"
)

// FileDrop puts each message as a file into a directory that another system
// empties, such as the mount of a court's file share.
type FileDrop struct{ Dir string }

// Deliver implements [adapters.Adapter].
func (d FileDrop) Deliver(ctx context.Context, msg adapters.Message) (adapters.Receipt, error) {
	if err := ctx.Err(); err != nil {
		return adapters.Receipt{}, err // no mark: transient
	}
	part, err := os.CreateTemp(d.Dir, ".part-*")
	if err != nil {
		return adapters.Receipt{}, d.failure(err)
	}
	defer func() { _ = os.Remove(part.Name()) }()
	_, err = part.Write(msg.Body)
	// Another login collects the file, but os.CreateTemp lets only its own login read it.
	if err = errors.Join(err, part.Chmod(0o640), part.Sync(), part.Close()); err != nil {
		return adapters.Receipt{}, d.failure(err)
	}
	// The name is the idempotency key: a second attempt finds the first one's file.
	// Link never replaces a file, and readers never see half of one.
	name := url.PathEscape(msg.IdempotencyKey) + ".json"
	switch err := os.Link(part.Name(), filepath.Join(d.Dir, name)); {
	case errors.Is(err, fs.ErrExist):
		return adapters.Receipt{Code: "EXISTS", Duplicate: true}, nil
	case err != nil:
		return adapters.Receipt{}, d.failure(err)
	}
	return adapters.Receipt{Code: "WRITTEN", Ref: &adapters.Ref{ExternalID: name, Version: msg.Version}}, nil
}

func (d FileDrop) failure(err error) error {
	err = fmt.Errorf("file drop: %w", err)
	if errors.Is(err, fs.ErrPermission) {
		return adapters.Auth(err) // holds the sync: no message is at fault
	}
	return err // disk full, share not mounted: transient
}

func Example() {
	dir, err := os.MkdirTemp("", "drop")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()

	var court adapters.Adapter = FileDrop{Dir: dir}
	msg := adapters.Message{ID: "e-1", IdempotencyKey: "e-1", Key: "hearing-7", Body: []byte(`{"hearingId":"7"}`)}
	for msg.Attempt = 1; msg.Attempt <= 2; msg.Attempt++ {
		receipt, err := court.Deliver(context.Background(), msg)
		fmt.Println(receipt.Code, receipt.Duplicate, adapters.ClassOf(err))
	}
	content, err := os.ReadFile(filepath.Join(dir, "e-1.json"))
	fmt.Println(string(content), err)

	_, err = FileDrop{Dir: filepath.Join(dir, "not-mounted")}.Deliver(context.Background(), msg)
	fmt.Println(adapters.ClassOf(err))
	// Output:
	// WRITTEN false delivered
	// EXISTS true delivered
	// {"hearingId":"7"} <nil>
	// transient
}

// The example passes the suite for adapters that do not speak HTTP.
func TestFileDropConforms(t *testing.T) {
	adaptertest.RunWith(t, func(t *testing.T, _ adapters.Secret) adaptertest.Receiver {
		t.Helper()
		root := t.TempDir()
		share, elsewhere := filepath.Join(root, "share"), filepath.Join(root, "not-mounted")
		if err := os.Mkdir(share, 0o755); err != nil {
			t.Fatal(err)
		}
		return adaptertest.Receiver{
			Adapter: FileDrop{Dir: share},
			Held: func() []adaptertest.Held {
				names, err := filepath.Glob(filepath.Join(share, "*.json"))
				if err != nil {
					t.Fatal(err)
				}
				var held []adaptertest.Held
				for _, name := range names {
					body, err := os.ReadFile(name)
					if err != nil {
						t.Fatal(err)
					}
					key, err := url.PathUnescape(strings.TrimSuffix(filepath.Base(name), ".json"))
					if err != nil {
						t.Fatal(err)
					}
					held = append(held, adaptertest.Held{Key: key, Body: body})
				}
				return held
			},
			Away: func(away bool) {
				from, to := elsewhere, share
				if away {
					from, to = share, elsewhere
				}
				if err := os.Rename(from, to); err != nil {
					t.Fatal(err)
				}
			},
			Answer: func(adaptertest.Answer) bool { return false }, // a share does not answer
		}
	})
}

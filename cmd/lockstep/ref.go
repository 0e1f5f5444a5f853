package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/output"
)

// refRow is a row of outbox.external_ref.
type refRow struct {
	Sync       string     `json:"sync"`
	Key        string     `json:"key"`
	ExternalID *string    `json:"external_id"`
	ETag       *string    `json:"etag"`
	Learned    values     `json:"learned"`
	Version    *int64     `json:"version"`
	UpdatedAt  *time.Time `json:"updated_at"`
}

// values are what learn: of the configuration has read from an answer, by name.
type values map[string]string

func (v values) String() string {
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(v)) {
		pairs = append(pairs, name+"="+v[name])
	}
	return strings.Join(pairs, " ")
}

func (refRow) Header() []string {
	return []string{"SYNC", "KEY", "EXTERNAL ID", "ETAG", "LEARNED", "VERSION", "UPDATED"}
}

func (r refRow) Cells() []string {
	version := ""
	if r.Version != nil {
		version = fmt.Sprint(*r.Version)
	}
	return []string{r.Sync, r.Key, deref(r.ExternalID), deref(r.ETag), r.Learned.String(), version, clock(r.UpdatedAt)}
}

const refColumns = `sync, key, external_id, etag, learned, version, updated_at`

func (a *app) refCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "ref",
		Short: "Show or set what a receiver knows a key by",
		Long: `Show or set what a receiver knows a key by: its own id and ETag, which
{ref.external_id} and If-Match send with the next update. Relays learn them from
the receiver's answers. Set them for records that the receiver had before, or
whose id no answer contained.`,
	}, a.refGetCommand(), a.refSetCommand(), a.refImportCommand())
}

func (a *app) refGetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "get SYNC KEY",
		Short: "Show the reference of a key",
		Long: `Show the reference of a key: what the receiver answered last, or what a person
has set. It exits with 1 if there is none. The login needs the role
outbox_auditor.`,
		Example: `  lockstep ref get CourtCalendarSync H-2027-000007`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, nil, roleAuditor, func(ctx context.Context, db *database) error {
				if _, err := db.conn.Exec(ctx, `SELECT outbox.check_sync($1)`, args[0]); err != nil {
					return err
				}
				const get = `-- lockstep ref get
SELECT ` + refColumns + ` FROM outbox.external_ref WHERE sync = $1 AND key = $2`
				rows, err := query[refRow](ctx, db.conn, get, args[0], args[1])
				if err != nil {
					return err
				}
				if len(rows) == 0 {
					return fmt.Errorf("%s knows no reference of key %s: no answer contained one, and nobody set one; see: lockstep explain %s",
						args[0], quoted(args[1]), quoted(args[1]))
				}
				return output.Rows(a.stdout, a.format, rows...)
			})
		},
	}
}

func (a *app) refSetCommand() *cobra.Command {
	var (
		o       operator
		etag    string
		learned map[string]string
		unknown bool
	)
	c := &cobra.Command{
		Use:   "set SYNC KEY [EXTERNAL_ID]",
		Short: "Set the reference of a key",
		Long: `Set the reference of a key: EXTERNAL_ID is the receiver's own id of the record.
The next delivery of the key uses it. An attempt that is in flight does not
change it any more. For a delivery that has failed because the id was not known,
set it, then: lockstep requeue KEY. With --unknown the receiver has no record of
the key. The login needs the role outbox_operator.

Without --etag, no ETag is known afterwards. --learned gives all values that the
configuration reads with "learn" from answers. Without it, they stay if the
external id stays the same, and are forgotten if it changes. The command says
what is forgotten.`,
		Example: `  lockstep ref set CourtCalendarSync H-2027-000007 CAL-4711 --reason "from the court's list"
  lockstep ref set CourtCalendarSync H-2027-000007 CAL-4711 --etag '"v2"' --learned versionNumber=4 --reason "read there"
  lockstep ref set CourtCalendarSync H-2027-000007 --unknown --reason "the court deleted it"`,
		Args: cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(a, true); err != nil {
				return err
			}
			r := importedRef{key: args[1], etag: etag}
			if len(args) == 3 {
				r.externalID = args[2]
			}
			if unknown != (r.externalID == "") {
				return usagef("give the receiver's id, or --unknown if it has no record of the key")
			}
			if unknown && (etag != "" || len(learned) > 0) {
				return usagef("--etag and --learned belong to a record: leave them out with --unknown")
			}
			if err := checkETag(etag); err != nil {
				return usagef("--etag %w", err)
			}
			if unknown || len(learned) > 0 {
				r.learned = values(learned)
			}
			if err := r.learned.check(); err != nil {
				return usagef("--learned %w", err)
			}
			var before, rows []refRow
			err := a.with(cmd, nil, roleOperator, func(ctx context.Context, db *database) error {
				return db.act(ctx, o, func(tx pgx.Tx) (err error) {
					before, rows, err = setReferences(ctx, tx, args[0], []importedRef{r}, o.reason)
					return err
				})
			})
			if err != nil {
				return err
			}
			if err := output.Rows(a.stdout, a.format, rows...); err != nil {
				return err
			}
			said := fmt.Sprintf("the next delivery of key %s to %s uses it", quoted(r.key), args[0])
			if forgotten := rows[0].forgets(before[0]); len(forgotten) > 0 {
				said += ", and forgets " + strings.Join(forgotten, ", ")
			}
			a.say("%s", said)
			return nil
		},
	}
	c.Flags().StringVar(&etag, "etag", "", "the record's `ETAG`, if updates send If-Match; with its quotes")
	c.Flags().StringToStringVar(&learned, "learned", nil, "all values that learn reads from answers, as `NAME=VALUE`,…")
	c.Flags().BoolVar(&unknown, "unknown", false, "the receiver has no record of the key")
	o.flags(c, reasonRequired)
	return c
}

func (a *app) refImportCommand() *cobra.Command {
	var (
		o      operator
		dryRun bool
	)
	c := &cobra.Command{
		Use:   "import SYNC FILE",
		Short: "Set the references of many keys from a file",
		Long: `Set the references of many keys from a file, or from standard input if FILE is -.
The file is CSV, whose first line names the columns key, external_id and perhaps
etag and learned, or has one JSON object with these names on each line. It is
UTF-8. An ETag has its quotes, and "learned" is a JSON object of texts. What a
line leaves out is as with: lockstep ref set. All references are set, or none: an
error names its line. While the import is not committed, results of these keys
wait. The login needs the role outbox_operator.`,
		Example: `  lockstep ref import CourtCalendarSync court.csv --dry-run
  lockstep ref import CourtCalendarSync court.csv --reason "the court's list of 1 March"`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(a, !dryRun); err != nil {
				return err
			}
			refs, err := a.readReferences(args[1])
			if err != nil {
				return err
			}
			reason := o.reason
			if dryRun {
				reason = "dry run"
			}
			rows := make([]importRow, len(refs))
			err = a.with(cmd, nil, roleOperator, func(ctx context.Context, db *database) error {
				return db.act(ctx, o, func(tx pgx.Tx) error {
					before, after, err := setReferences(ctx, tx, args[0], refs, reason)
					if err != nil {
						return fmt.Errorf("nothing was changed: %w", err)
					}
					for i, r := range after {
						rows[i] = importRow{
							Line: refs[i].line, Key: r.Key, ExternalID: deref(r.ExternalID), ETag: deref(r.ETag), Learned: r.Learned,
							Before: before[i].ExternalID, Forgets: r.forgets(before[i]),
						}
					}
					if dryRun {
						return errDryRun
					}
					return nil
				})
			})
			if err != nil && !errors.Is(err, errDryRun) {
				return err
			}
			if err := output.Rows(a.stdout, a.format, rows...); err != nil {
				return err
			}
			if dryRun {
				a.say("%s would be set; nothing was changed", plural(len(rows), "reference"))
			} else {
				a.say("%s set: the next delivery of each key uses it", plural(len(rows), "reference"))
			}
			return nil
		},
	}
	c.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "list what would change, change nothing")
	o.flags(c, reasonRequired)
	return c
}

// errDryRun rolls a transaction back.
var errDryRun = errors.New("dry run")

// importRow is a reference of a file, with the one that the key had before.
type importRow struct {
	Line       int      `json:"line"`
	Key        string   `json:"key"`
	ExternalID string   `json:"external_id"`
	ETag       string   `json:"etag,omitempty"`
	Learned    values   `json:"learned"`
	Before     *string  `json:"before"` // null: the key had no external id
	Forgets    []string `json:"forgets,omitempty"`
}

func (importRow) Header() []string {
	return []string{"KEY", "EXTERNAL ID", "ETAG", "LEARNED", "BEFORE", "FORGETS"}
}

func (r importRow) Cells() []string {
	return []string{r.Key, r.ExternalID, r.ETag, r.Learned.String(), deref(r.Before), strings.Join(r.Forgets, ", ")}
}

// forgets lists what r does not have any more and before had.
func (r refRow) forgets(before refRow) []string {
	var all []string
	add := func(name, was, is string) {
		if was != "" && is == "" {
			all = append(all, fmt.Sprintf("%s (was %s)", name, was))
		}
	}
	add("external id", deref(before.ExternalID), deref(r.ExternalID))
	add("ETag", deref(before.ETag), deref(r.ETag))
	for _, name := range slices.Sorted(maps.Keys(before.Learned)) {
		add(name, before.Learned[name], r.Learned[name])
	}
	return all
}

func (a *app) readReferences(name string) ([]importedRef, error) {
	in := a.stdin
	if name == "-" {
		name = "standard input"
	} else {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // only read
		in = f
	}
	b, err := io.ReadAll(in)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	refs, problems := parseReferences(b)
	if len(problems) > 0 {
		var lines []error
		for _, p := range problems {
			lines = append(lines, fmt.Errorf("%s:%w", name, p))
		}
		return nil, usageError{errors.Join(append(lines, errors.New("nothing was changed"))...)}
	}
	return refs, nil
}

// setReferences sets references in the order of the keys, in which relays record them. It
// returns those of the keys before and after, in the order of the file; a key that had none has
// an empty one.
func setReferences(ctx context.Context, tx pgx.Tx, sync string, refs []importedRef, reason string) (before, after []refRow, err error) {
	var keys, ids, etags []string
	var learned []*string
	for _, r := range refs {
		keys, ids, etags = append(keys, r.key), append(ids, r.externalID), append(etags, r.etag)
		var object *string
		if r.learned != nil {
			b, err := json.Marshal(r.learned)
			if err != nil {
				return nil, nil, err
			}
			text := string(b)
			object = &text
		}
		learned = append(learned, object)
	}
	if before, err = references(ctx, tx, sync, keys); err != nil {
		return nil, nil, err
	}
	const set = `-- lockstep ref: set
SELECT outbox.set_reference($1, r.key, r.external_id, r.etag, $6, r.learned::jsonb)
  FROM (SELECT * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[]) AS u (key, external_id, etag, learned) ORDER BY u.key COLLATE "C") AS r`
	if _, err := tx.Exec(ctx, set, sync, keys, ids, etags, learned, reason); err != nil {
		return nil, nil, err
	}
	after, err = references(ctx, tx, sync, keys)
	return before, after, err
}

// references returns the references of keys, in the order of the keys.
func references(ctx context.Context, tx pgx.Tx, sync string, keys []string) ([]refRow, error) {
	const get = `-- lockstep ref: references of keys
SELECT $1::text AS sync, u.key, r.external_id, r.etag, coalesce(r.learned, '{}') AS learned, r.version, r.updated_at
  FROM unnest($2::text[]) WITH ORDINALITY AS u (key, n)
  LEFT JOIN outbox.external_ref AS r ON r.sync = $1 AND r.key = u.key
 ORDER BY u.n`
	return query[refRow](ctx, tx, get, sync, keys)
}

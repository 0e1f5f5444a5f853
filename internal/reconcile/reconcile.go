// Package reconcile compares what a receiver holds with what was delivered to it.
//
// Both sides are reduced to the same entries, see [adapters.Lister]. Of each entry only its
// digest stays in memory, about 250 bytes for each key. The values of an entry are read again
// if it differs.
package reconcile

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
)

// Kind says in which way the receiver differs.
type Kind string

// The kinds of differences.
const (
	Missing   Kind = "missing"   // the receiver does not have it
	Different Kind = "different" // a field has another value there
	Cancelled Kind = "cancelled" // it is cancelled there, and not here
	Newer     Kind = "newer"     // the receiver has a later version
	Doubled   Kind = "doubled"   // the receiver has it more than once
	Extra     Kind = "extra"     // the receiver has it, and should not
)

// Kinds are all kinds, in the order in which they are reported.
func Kinds() []Kind { return []Kind{Missing, Different, Cancelled, Newer, Doubled, Extra} }

// Repairable returns the first finding of each key that can be mended by sending its last event
// again. A key of which something needs a person is left to that person as a whole.
func Repairable(findings []Finding) (first []Finding) {
	byPerson, seen := map[string]bool{}, map[string]bool{}
	for _, f := range findings {
		if f.Kind == Newer || f.Kind == Doubled || f.EventID == "" {
			byPerson[f.Key] = true
		}
	}
	for _, f := range findings {
		if !byPerson[f.Key] && !seen[f.Key] {
			first = append(first, f)
		}
		seen[f.Key] = true
	}
	return first
}

// Finding is one difference. A key that differs in several fields has several.
type Finding struct {
	Kind       Kind   `json:"kind"`
	Key        string `json:"key"`
	Field      string `json:"field,omitempty"`
	Ours       string `json:"ours,omitempty"`
	Theirs     string `json:"theirs,omitempty"`
	EventID    string `json:"event_id,omitempty"`
	ExternalID string `json:"external_id,omitempty"`
	ETag       string `json:"etag,omitempty"`
}

// Report is the result of a comparison.
type Report struct {
	Findings []Finding
	Found    map[Kind]int // keys, by the kind of their difference
	Foreign  int          // entries of others, which are left alone
	Compared int          // keys of ours
	OnTheWay int          // keys that are left out, because they have open deliveries or were delivered meanwhile
	Unknown  int          // keys that are left out, because their last event is past its retention
	Cut      bool         // there are more findings than MaxFindings
	Ours     string       // digest of what was delivered, hexadecimal
	Theirs   string       // digest of what the receiver has
}

// MaxFindings is how many findings are reported. The others are only counted.
const MaxFindings = 10_000

// Equal reports whether both sides have the same.
func (r *Report) Equal() bool { return r.Ours == r.Theirs && len(r.Found) == 0 }

// Says is the sentence for the log. It has counts and digests, and no values.
func (r *Report) Says(window adapters.Window) string {
	var b strings.Builder
	if r.Equal() {
		fmt.Fprintf(&b, "both calendars are equal: %s, digest of ours %s, of theirs %s", count(r.Compared, "entry", "entries"), r.Ours, r.Theirs)
	} else {
		var parts []string
		for _, k := range Kinds() {
			if n := r.Found[k]; n > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", n, k))
			}
		}
		fmt.Fprintf(&b, "the calendars differ: %s of %s, digest of ours %s, of theirs %s", strings.Join(parts, ", "), count(r.Compared, "entry", "entries"), r.Ours, r.Theirs)
	}
	if !window.From.IsZero() {
		fmt.Fprintf(&b, "; from %s", window.From.UTC().Format("2006-01-02T15:04:05Z"))
	}
	if !window.To.IsZero() {
		fmt.Fprintf(&b, "; until %s", window.To.UTC().Format("2006-01-02T15:04:05Z"))
	}
	for _, left := range []struct {
		n    int
		what string
	}{{r.OnTheWay, "on the way"}, {r.Unknown, "past retention"}, {r.Foreign, "of others"}} {
		if left.n > 0 {
			fmt.Fprintf(&b, "; left out: %d %s", left.n, left.what)
		}
	}
	return b.String()
}

func count(n int, one, several string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, several)
}

// Delivered is the last event of a key that the receiver has taken.
type Delivered struct {
	Message adapters.Message // the last event of the key, mapped
	EventID string
}

// Source is what was delivered.
type Source interface {
	// Each calls yield for each key, in any order, with its last event that the receiver has
	// taken. Of a key whose event is past its retention, only the key is known.
	Each(ctx context.Context, yield func(d Delivered, known bool) error) error

	// One returns the last event of a key again.
	One(ctx context.Context, eventID string) (adapters.Message, error)

	// Moving calls yield for each key that has open deliveries now, or was delivered since
	// Each began.
	Moving(ctx context.Context, yield func(key string)) error
}

// ours is an entry of ours, and what was found of it.
type ours struct {
	digest  [sha256.Size]byte
	theirs  [sha256.Size]byte
	event   string
	version *int64
	within  bool // its time is in the window
	absent  bool // the receiver should not have it
	gone    bool // it is left out
	cancels bool
	seen    int
}

// Compare compares what source has delivered with what the receiver lists in a window. step
// is called for each entry of either side.
func Compare(ctx context.Context, source Source, receiver adapters.Lister, window adapters.Window, step func()) (*Report, error) {
	if err := receiver.Lists(); err != nil {
		return nil, err
	}
	c := comparison{source: source, receiver: receiver, window: window, keys: map[string]*ours{}, report: &Report{Found: map[Kind]int{}}, extra: map[string][]adapters.Entry{}}
	err := source.Each(ctx, func(d Delivered, known bool) error {
		step()
		if !known {
			c.report.Unknown++
			c.keys[d.Message.Key] = &ours{gone: true}
			return nil
		}
		entry, err := receiver.Entry(d.Message)
		if err != nil {
			return fmt.Errorf("event %s of key %q: %w", d.EventID, d.Message.Key, err)
		}
		c.keys[d.Message.Key] = &ours{
			digest: digest(entry), event: d.EventID, version: entry.Version, absent: entry.Absent, cancels: entry.Cancelled,
			within: c.within(entry),
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = receiver.List(ctx, window, func(e adapters.Entry) error {
		step()
		c.listed(e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = source.Moving(ctx, func(key string) {
		if o := c.keys[key]; o != nil && !o.gone {
			o.gone = true
			c.report.OnTheWay++
		} else if o == nil && len(c.extra[key]) > 0 {
			delete(c.extra, key)
			c.report.OnTheWay++
		}
	})
	if err != nil {
		return nil, err
	}
	return c.report, c.finish(ctx)
}

type comparison struct {
	source   Source
	receiver adapters.Lister
	window   adapters.Window
	keys     map[string]*ours
	differs  []adapters.Entry            // theirs, at most MaxFindings
	extra    map[string][]adapters.Entry // theirs, of keys that we have not delivered or have twice
	report   *Report
}

func (c *comparison) within(e adapters.Entry) bool {
	return e.At.IsZero() || (c.window.From.IsZero() || !e.At.Before(c.window.From)) && (c.window.To.IsZero() || e.At.Before(c.window.To))
}

// listed notes one entry of the receiver.
func (c *comparison) listed(e adapters.Entry) {
	if e.Key == "" {
		c.report.Foreign++
		return
	}
	o := c.keys[e.Key]
	switch {
	case o != nil && o.gone:
		return // nobody knows what it should be
	case e.Cancelled && (o == nil || o.absent):
		return // it stays there as cancelled
	case o == nil:
		c.extra[e.Key] = append(c.extra[e.Key], e)
		return
	case o.seen > 0:
		c.extra[e.Key] = append(c.extra[e.Key], e)
	default:
		o.theirs = digest(e)
		if o.theirs != o.digest || o.absent {
			if len(c.differs) < MaxFindings {
				c.differs = append(c.differs, e)
			} else {
				c.report.Cut = true
			}
		}
	}
	o.seen++
}

// finish makes the findings and the digests.
func (c *comparison) finish(ctx context.Context) error {
	for _, e := range c.differs {
		if err := c.differ(ctx, e); err != nil {
			return err
		}
	}
	ourSide, theirSide := sha256.New(), sha256.New()
	all := slices.AppendSeq(slices.Collect(maps.Keys(c.keys)), maps.Keys(c.extra))
	slices.Sort(all)
	for _, key := range slices.Compact(all) {
		o := c.keys[key]
		if o == nil {
			for _, e := range c.extra[key] {
				d := digest(e)
				theirSide.Write(d[:])
			}
			c.find(Extra, Finding{Kind: Extra, Key: key, ExternalID: c.extra[key][0].ExternalID, ETag: c.extra[key][0].ETag})
			continue
		}
		if o.gone || !o.within && o.seen == 0 {
			continue
		}
		c.report.Compared++
		if !o.absent {
			ourSide.Write(o.digest[:])
		}
		if o.seen > 0 {
			theirSide.Write(o.theirs[:])
		}
		for _, e := range c.extra[key] {
			d := digest(e)
			theirSide.Write(d[:])
			c.find(Doubled, Finding{Kind: Doubled, Key: key, EventID: o.event, ExternalID: e.ExternalID, ETag: e.ETag})
		}
		if o.seen == 0 && !o.absent {
			if err := c.missing(ctx, key, o); err != nil {
				return err
			}
		}
	}
	c.report.Ours, c.report.Theirs = hex.EncodeToString(ourSide.Sum(nil)), hex.EncodeToString(theirSide.Sum(nil))
	slices.SortStableFunc(c.report.Findings, func(a, b Finding) int { return strings.Compare(a.Key, b.Key) })
	return nil
}

func (c *comparison) find(kind Kind, findings ...Finding) {
	c.report.Found[kind]++
	if len(c.report.Findings)+len(findings) > MaxFindings {
		c.report.Cut = true
		return
	}
	c.report.Findings = append(c.report.Findings, findings...)
}

// differ says in which way an entry of the receiver differs from ours.
func (c *comparison) differ(ctx context.Context, e adapters.Entry) error {
	o := c.keys[e.Key]
	if o.gone {
		return nil
	}
	as := Finding{Key: e.Key, EventID: o.event, ExternalID: e.ExternalID, ETag: e.ETag}
	switch {
	case o.absent:
		as.Kind = Extra
		c.find(Extra, as)
		return nil
	case e.Version != nil && o.version != nil && *e.Version > *o.version:
		as.Kind = Newer
		as.Field, as.Ours, as.Theirs = "version", fmt.Sprint(*o.version), fmt.Sprint(*e.Version)
		c.find(Newer, as)
		return nil
	case e.Cancelled && !o.cancels:
		as.Kind = Cancelled
		c.find(Cancelled, as)
		return nil
	}
	msg, err := c.source.One(ctx, o.event)
	if err != nil {
		return err
	}
	mine, err := c.receiver.Entry(msg)
	if err != nil {
		return err
	}
	var fields []Finding
	names := slices.AppendSeq(slices.Collect(maps.Keys(mine.Fields)), maps.Keys(e.Fields))
	slices.Sort(names)
	as.Kind = Different
	for _, name := range slices.Compact(names) {
		if mine.Fields[name] != e.Fields[name] {
			as.Field, as.Ours, as.Theirs = name, mine.Fields[name], e.Fields[name]
			fields = append(fields, as)
		}
	}
	if mine.Cancelled != e.Cancelled {
		as.Field, as.Ours, as.Theirs = "cancelled", fmt.Sprint(mine.Cancelled), fmt.Sprint(e.Cancelled)
		fields = append(fields, as)
	}
	c.find(Different, fields...)
	return nil
}

// missing looks for an entry that the list does not have: somebody may have moved it out of
// the window.
func (c *comparison) missing(ctx context.Context, key string, o *ours) error {
	as := Finding{Kind: Missing, Key: key, EventID: o.event}
	bounded := !c.window.From.IsZero() || !c.window.To.IsZero()
	reader, ok := c.receiver.(adapters.Reader)
	if ok && bounded && c.report.Found[Missing]+c.report.Found[Different] < MaxFindings {
		msg, err := c.source.One(ctx, o.event)
		if err != nil {
			return err
		}
		if reader.Reads(msg) {
			reading, err := reader.Read(ctx, msg)
			if err != nil {
				return fmt.Errorf("key %q is not in the list, and it could not be read: %w", key, err)
			}
			if reading.Standing != adapters.Absent {
				as.Kind, as.Field, as.Theirs = Different, "time", "not in the window"
				if reading.Ref != nil {
					as.ExternalID, as.ETag = reading.Ref.ExternalID, reading.Ref.ETag
				}
				c.find(Different, as)
				return nil
			}
		}
	}
	c.find(Missing, as)
	return nil
}

// digest reduces an entry to what both sides know of it: not the id of the receiver, nor the
// version, which not every receiver keeps.
func digest(e adapters.Entry) [sha256.Size]byte {
	if e.Fields == nil {
		e.Fields = map[string]string{} // the same as none
	}
	text, err := json.Marshal(struct {
		Key       string
		Cancelled bool
		Fields    map[string]string
	}{e.Key, e.Cancelled, e.Fields})
	if err != nil {
		panic(err) // texts always encode
	}
	return sha256.Sum256(text)
}

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/internal/operate"
	"github.com/hms-mkt/lockstep/internal/output"
)

const (
	// mostRows is how many deliveries a table lists. Of a larger set, it has a line for each
	// sync and error class.
	mostRows = 20
	// mostUnasked is how many deliveries a command changes without a question to the person
	// at the terminal.
	mostUnasked = 100
	// longestErrorText bounds --error, in bytes. Errors in the database are shorter.
	longestErrorText = 2000
)

// repair is one run of requeue, discard or replay.
type repair struct {
	app      *app
	action   operate.Action
	filter   operate.Filter
	operator operator

	since     instant
	until     timeFlag
	olderThan duration
	asOf      timeFlag
	rate      rateFlag
	dryRun    bool
	yes       bool

	things  string                            // what --all selects, such as "failed delivery"
	moment  string                            // what happened at the time that --since, --until and --older-than compare, such as "failed"
	now     func(n int64, when string) string // says what is true of n deliveries afterwards, and when relays send
	nothing string                            // message if the filter selects nothing
}

// command gives c its flags and what it runs.
func (r *repair) command(c *cobra.Command, reasonUsage string) *cobra.Command {
	f := &r.filter
	c.Args = cobra.MaximumNArgs(1)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return r.run(cmd, strings.Join(args, ""), reasonUsage == reasonRequired)
	}
	c.Flags().StringVar(&f.Sync, "sync", "", "only of this `SYNC`")
	c.Flags().StringVar(&f.Key, "key", "", "only with this `KEY`")
	c.Flags().StringVar(&f.Event, "event", "", "only of the event with this `ID`")
	c.Flags().Var(&r.since, "since", "only if it "+r.moment+" since `WHEN`: 90s, 24h, 7d, or a time such as 2027-01-31T08:00:00Z")
	c.Flags().Var(&r.until, "until", "only if it "+r.moment+" until `TIME`, such as 2027-01-31T08:00:00Z")
	c.Flags().Var(&r.olderThan, "older-than", "only if it "+r.moment+" more than `D` ago: 90s, 24h, 7d")
	c.MarkFlagsMutuallyExclusive("until", "older-than")
	if r.action == operate.Replay {
		c.Flags().BoolVar(&f.Force, "force", false, "also events that are older than one that the receiver got, or will get")
	} else {
		c.Flags().StringVar(&f.Class, "class", "", "only with this error `CLASS`, such as mapping or permanent")
		c.Flags().StringVar(&f.Error, "error", "", "only with this `TEXT` in the error, in upper or lower case")
	}
	c.Flags().BoolVar(&f.All, "all", false, "every "+r.things+", or every one of --sync; needed without another filter")
	c.Flags().BoolVarP(&r.dryRun, "dry-run", "n", false, "list what would change, change nothing")
	c.Flags().Var(&r.asOf, "as-of", "only what would have been selected at `TIME` and was not changed since, such as what a dry run has listed")
	c.Flags().Var(&r.rate, "rate", "at most this `RATE`, such as 50/s or 600/m")
	c.Flags().BoolVarP(&r.yes, "yes", "y", false, fmt.Sprintf("do not ask before changing more than %d deliveries", mostUnasked))
	r.operator.flags(c, reasonUsage)
	return c
}

// check makes sure that the filter and the argument EVENT|KEY select what the person means.
func (r *repair) check(given string) error {
	f := &r.filter
	if given != "" && (f.Event != "" || f.Key != "") {
		return usagef("%q already names an event or a key: give it or --event or --key, not both", given)
	}
	if f.Event != "" {
		if err := eventID(f.Event); err != nil {
			return err
		}
	}
	if err := operate.CheckClass(f.Class); err != nil {
		return usagef("--class: %w", err)
	}
	if len(f.Error) > longestErrorText {
		return usagef("--error has %d bytes: give a part of the error's text, at most %d bytes", len(f.Error), longestErrorText)
	}
	timed := r.since.set() || r.until.at != nil || r.olderThan != 0
	inError := f.Class != "" || f.Error != ""
	narrowed := given != "" || f.Key != "" || f.Event != "" || inError || timed
	switch {
	case f.All && r.isRetired(given) && f.Sync == "" && f.Key == "" && f.Event == "" && !inError && !timed:
	case f.All && r.action == operate.Replay && f.Event == "" && !timed:
	case f.All && narrowed:
		return usagef("--all allows no filter except --sync: remove --all or the other filters")
	case !f.All && !narrowed:
		return usagef("this would select everything: add an event or a key, --since, --until, --older-than, --class or --error (if the command has it), or --all")
	}
	return nil
}

// isRetired reports whether the argument is a retired sync, all of whose deliveries are meant.
func (r *repair) isRetired(given string) bool {
	return r.action == operate.Discard && r.filter.All && given != ""
}

// run prints the selected deliveries and, unless it is a dry run, changes them.
func (r *repair) run(cmd *cobra.Command, given string, needsReason bool) error {
	if err := r.operator.check(r.app, needsReason && !r.dryRun); err != nil {
		return err
	}
	if err := r.check(given); err != nil {
		return err
	}
	f := &r.filter
	f.Since, f.Within = deref(r.since.at), time.Duration(r.since.ago)
	f.Until, f.OlderThan, f.AsOf = deref(r.until.at), time.Duration(r.olderThan), deref(r.asOf.at)
	if r.isRetired(given) {
		f.Sync, f.Retired, f.All, given = given, true, false, ""
		r.now = func(int64, string) string { return "none of them is ever sent" }
	}
	return r.app.with(cmd, nil, roleOperator, func(ctx context.Context, db *database) error {
		if err := r.checkSync(ctx, db); err != nil {
			return err
		}
		var set operate.Set
		// One snapshot, so that the list is of the set.
		snapshot := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
		err := pgx.BeginTxFunc(ctx, db.conn, snapshot, func(tx pgx.Tx) (err error) {
			if given != "" {
				if f.Event, f.Key, err = subject(ctx, tx, given); err != nil {
					return err
				}
			}
			if set, err = operate.Choose(ctx, tx, r.action, *f); err != nil {
				return r.refused(err)
			}
			if r.dryRun && set.Count > 0 {
				return r.list(ctx, tx, &set)
			}
			return nil
		})
		switch {
		case err != nil:
			return err
		case set.Count == 0:
			return r.none(&set)
		case r.dryRun:
			r.app.say("%s", describe(&set))
			r.app.say("%s would be %s; nothing was changed", plural(set.Count, "delivery"), r.action.Did())
		default:
			if err := r.apply(ctx, db, &set); err != nil {
				return err
			}
		}
		r.leftOut(&set)
		return nil
	})
}

// refused adds to an error of Choose what the person can do.
func (r *repair) refused(err error) error {
	outdated, ok := errors.AsType[*operate.OutdatedError](err)
	if !ok {
		return err
	}
	return fmt.Errorf("%w; see: lockstep explain %s; to send it nevertheless, add --force", err, quoted(outdated.Key))
}

// none reports that the set is empty.
func (r *repair) none(set *operate.Set) error {
	if set.Outdated > 0 {
		return fmt.Errorf("nothing was changed: %s", r.outdated(set))
	}
	if r.filter.Event != "" {
		return fmt.Errorf("%s; see: lockstep explain %s", r.nothing, r.filter.Event)
	}
	if r.app.format != output.Table { // a table without rows says less than what follows
		if err := output.Rows[deliveryRow](r.app.stdout, r.app.format); err != nil {
			return err
		}
	}
	if r.filter.Key != "" {
		r.app.say("%s; see: lockstep explain %s", r.nothing, quoted(r.filter.Key))
		return nil
	}
	r.app.say("%s", r.nothing)
	return nil
}

// describe says in words what a set is.
func describe(set *operate.Set) string {
	said := fmt.Sprintf("%s: %d as of %s", set.Words, set.Count, set.AsOf.UTC().Format(time.RFC3339Nano))
	switch {
	case set.Action == operate.Replay && set.Oldest.Equal(*set.Newest):
		said += ", delivered at " + clock(set.Oldest)
	case set.Action == operate.Replay:
		said += fmt.Sprintf(", delivered from %s to %s", clock(set.Oldest), clock(set.Newest))
	default:
		said += ", the oldest since " + clock(set.Oldest)
	}
	if set.SoonestNeededBy != nil {
		said += ", the soonest needed by " + clock(set.SoonestNeededBy)
	}
	return said
}

// leftOut says what a replay has left out, and why.
func (r *repair) leftOut(set *operate.Set) {
	if set.Older > 0 {
		r.app.say("%s of the key left out: the receiver gets its newest state. For all of them, in their order, add --all", plural(set.Older, "earlier event"))
	}
	if set.Outdated > 0 {
		r.app.say("%s", r.outdated(set))
	}
}

func (r *repair) outdated(set *operate.Set) string {
	var keys []string
	for _, key := range set.OutdatedKeys {
		keys = append(keys, quoted(key))
	}
	if len(keys) == operate.MostOutdatedKeys {
		keys = append(keys, "…")
	}
	return fmt.Sprintf("%s left out, because the receiver got a newer one of the key, or will get it, such as: %s. The keys: %s. To send them nevertheless, add --force",
		plural(set.Outdated, "older event"), set.FirstOutdated, strings.Join(keys, " "))
}

// groupRow is what a table shows of a large set.
type groupRow operate.Group

func (groupRow) Header() []string  { return []string{"SYNC", "CLASS", "DELIVERIES"} }
func (g groupRow) Cells() []string { return []string{g.Sync, g.Class, fmt.Sprint(g.Count)} }

// list prints a set that is not changed: a table of the first deliveries, under one of the
// groups if there are more, or in JSON all deliveries.
func (r *repair) list(ctx context.Context, tx pgx.Tx, set *operate.Set) error {
	p := r.printer()
	if r.app.format != output.Table {
		return errors.Join(set.List(ctx, tx, func(some []operate.Delivery) error { return p.Print(deliveryRows(some)...) }), p.Close())
	}
	if set.Count <= mostRows {
		return p.Print(deliveryRows(set.First)...)
	}
	if err := r.groups(r.app.stdout, set.Groups); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(r.app.stdout, "\nthe first %d; all of them: --output jsonl\n", mostRows); err != nil {
		return err
	}
	return p.Print(deliveryRows(set.First[:mostRows])...)
}

// groups prints the groups of a large set.
func (r *repair) groups(w io.Writer, groups []operate.Group) error {
	p := output.NewPrinter[groupRow](w, output.Table)
	if r.action == operate.Replay {
		p = p.Without("CLASS")
	}
	var rows []groupRow
	for _, g := range groups {
		rows = append(rows, groupRow(g))
	}
	return p.Print(rows...)
}

func (r *repair) printer() *output.Printer[deliveryRow] {
	return output.NewPrinter[deliveryRow](r.app.stdout, r.app.format).Without(fixed(r.filter.Sync, r.filter.Key, r.filter.Event)...)
}

// apply changes the set, and prints what it has changed: in a table the deliveries or, if
// there are many, the groups; in JSON each page after its commit.
func (r *repair) apply(ctx context.Context, db *database, set *operate.Set) error {
	order := set.Order()
	order.Rate = float64(r.rate)
	asked, err := r.confirm(ctx, set)
	if err != nil {
		return err
	}
	if !asked {
		order.Fingerprint = "" // nobody has seen the set: what others change meanwhile is left out
	}
	var (
		p       = r.printer()
		rows    []deliveryRow
		count   = map[operate.Group]int64{}
		bar     = r.app.newProgress(r.action.Did(), set.Count)
		inPages = r.app.format != output.Table && !r.filter.Retired // of those, Each is called before the commit
	)
	order.Each = func(page []operate.Delivery) error {
		for _, d := range page {
			count[operate.Group{Sync: d.Sync, Class: deref(d.ErrorClass)}]++
		}
		switch {
		case inPages:
			if err := p.Print(deliveryRows(page)...); err != nil {
				return err
			}
		case r.app.format != output.Table || set.Count <= mostRows:
			rows = append(rows, deliveryRows(page)...)
		}
		bar.add(len(page))
		return nil
	}
	result, err := operate.Apply(ctx, db.conn, operate.Actor{Name: r.operator.name, Reason: r.operator.reason}, order)
	bar.end()
	unclear, isUnclear := errors.AsType[*operate.UnclearError](err)
	if r.filter.Retired && err != nil {
		rows, count = nil, nil // it was in one transaction
	}
	err = r.howToContinue(err, set, result.Done > 0 || isUnclear && unclear.Page > 0)
	if r.app.format == output.Table && set.Count > mostRows {
		err = errors.Join(r.groups(r.app.stdout, grouped(count)), err)
	} else {
		err = errors.Join(p.Print(rows...), err)
	}
	if r.app.format != output.Table {
		err = errors.Join(p.Close(), err)
	}
	if err != nil {
		return err
	}
	if result.Done == 0 {
		r.app.say("%s: others have changed all of them meanwhile", r.nothing)
		return nil
	}
	var when string
	if err := pgx.BeginFunc(ctx, db.conn, func(tx pgx.Tx) (err error) {
		when, err = sentWhen(ctx, tx, slices.Collect(maps.Keys(count)))
		return err
	}); err != nil {
		return err
	}
	r.app.say("%s %s: %s", plural(result.Done, "delivery"), r.action.Did(), r.now(result.Done, when))
	if others := result.Set.Count - result.Done; others > 0 {
		r.app.say("%s of the set left out: others have changed them meanwhile", plural(others, "delivery"))
	}
	return nil
}

// grouped returns the groups of deliveries that were counted.
func grouped(count map[operate.Group]int64) (groups []operate.Group) {
	for g, n := range count {
		g.Count = n
		groups = append(groups, g)
	}
	slices.SortFunc(groups, func(a, b operate.Group) int {
		return cmp.Or(cmp.Compare(a.Sync, b.Sync), cmp.Compare(b.Count, a.Count), cmp.Compare(a.Class, b.Class))
	})
	return groups
}

// howToContinue adds to an error after a part of the set was changed how to change the others.
func (r *repair) howToContinue(err error, set *operate.Set, begun bool) error {
	if err == nil {
		return nil
	}
	how := "to continue, run the same command with --as-of " + set.AsOf.UTC().Format(time.RFC3339Nano)
	if _, ok := errors.AsType[*operate.StoppedError](err); ok {
		return errors.New(err.Error() + "; " + how) // not wrapped: it says more than that it was interrupted
	}
	if _, ok := errors.AsType[*operate.ChangedError](err); ok {
		return fmt.Errorf("%w; run the same command again to see them", err)
	}
	if begun {
		return fmt.Errorf("%w; %s", err, how)
	}
	return err
}

// confirm asks the person at the terminal about a large set. It reports whether it has
// asked, and returns an error if the answer is not yes.
func (r *repair) confirm(ctx context.Context, set *operate.Set) (asked bool, err error) {
	if r.yes || set.Count <= mostUnasked || !output.IsTerminal(r.app.stdin) || !output.IsTerminal(r.app.stderr) {
		return false, nil
	}
	if err := r.groups(r.app.stderr, set.Groups); err != nil {
		return true, err
	}
	r.app.say("%s", describe(set))
	fmt.Fprintf(r.app.stderr, "%s %s? [y/N] ", strings.ToUpper(string(r.action[:1]))+string(r.action[1:]), plural(set.Count, "delivery"))
	answers := make(chan string, 1)
	go func() { // if the person presses Ctrl-C instead, it ends with the process
		line, _ := bufio.NewReader(r.app.stdin).ReadString('\n')
		answers <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(r.app.stderr)
		return true, context.Cause(ctx)
	case answer := <-answers:
		if answer != "y" && answer != "yes" {
			return true, errors.New("nothing was changed, because the answer was not y")
		}
	}
	return true, nil
}

func sentAgain(n int64, when string) string {
	if n == 1 {
		return "relays send it " + when
	}
	return "relays send them " + when
}

func neverSent(n int64, when string) string {
	if n == 1 {
		return "it is never sent. What waits behind it is sent " + when
	}
	return "they are never sent. What waits behind them is sent " + when
}

// sentWhen says when relays send what is due of the syncs of the groups.
func sentWhen(ctx context.Context, tx pgx.Tx, groups []operate.Group) (string, error) {
	syncs := map[string]bool{}
	for _, g := range groups {
		syncs[g.Sync] = true
	}
	var whens []string
	for _, sync := range slices.Sorted(maps.Keys(syncs)) {
		hold, err := holdOf(ctx, tx, sync, "")
		if err != nil {
			return "", err
		}
		served, err := isServed(ctx, tx, sync)
		switch {
		case err != nil:
			return "", err
		case hold != nil:
			whens = append(whens, fmt.Sprintf("when %s is no longer on hold (%s)", sync, hold))
		case !served:
			whens = append(whens, servedAgain(sync))
		}
	}
	switch len(whens) {
	case 0:
		return "now", nil
	case len(syncs):
		return strings.Join(whens, " and "), nil
	}
	return "now, and " + strings.Join(whens, " and "), nil
}

// checkSync refuses a sync that is not registered. Otherwise a typing mistake would
// look like "nothing to do".
func (r *repair) checkSync(ctx context.Context, db *database) error {
	if r.filter.Sync == "" {
		return nil
	}
	all, err := db.store.Syncs(ctx)
	if _, ok := all[r.filter.Sync]; err != nil || ok {
		return err
	}
	return fmt.Errorf("sync %q is not registered; see: lockstep sync list", r.filter.Sync)
}

// rateFlag is a flag such as 50/s: a number per second, 0 for no limit.
type rateFlag config.Rate

func (f *rateFlag) String() string {
	if *f == 0 {
		return ""
	}
	return fmt.Sprintf("%g/s", float64(*f))
}

func (f *rateFlag) Set(s string) error {
	rate, err := config.ParseRate(s)
	*f = rateFlag(rate)
	return err
}
func (*rateFlag) Type() string { return "rate" }

func (a *app) requeueCommand() *cobra.Command {
	r := &repair{app: a, action: operate.Requeue, things: "failed delivery", moment: "failed", now: sentAgain, nothing: "no failed delivery to requeue"}
	return r.command(&cobra.Command{
		Use:   "requeue [EVENT|KEY]",
		Short: "Send failed deliveries again",
		Long: `Send failed deliveries again: those of an event, of a key, or those that the
flags select. Attempts and retry budget start at zero, the position in the key's
order does not change, and the event is mapped again. --since, --until and
--older-than compare the time of the failure. The login needs the role
outbox_operator.

` + aboutSets,
		Example: `  lockstep requeue --sync CourtCalendarSync --class mapping --reason "mapping repaired"
  lockstep requeue H-2027-000007
  lockstep requeue --since 2h --dry-run
  lockstep requeue --error "no such courtroom" --rate 50/s --reason "the court has added it"
  lockstep requeue --sync CourtCalendarSync --all`,
	}, reasonOptional)
}

// aboutSets is what requeue, discard and replay have in common.
const aboutSets = `The soonest hearing is first. Each transaction changes up to 1,000 deliveries, and
leaves out those that somebody has changed meanwhile. Relays and writers work at
the same time. Ctrl-C ends the command after its transaction, and it prints the
--as-of with which the same command continues.

The command lists each delivery as it was before the change; a table of more
than 20 has a line for each sync and error class.`

func (a *app) discardCommand() *cobra.Command {
	r := &repair{app: a, action: operate.Discard, things: "failed delivery", moment: "failed", now: neverSent, nothing: "no delivery to discard"}
	return r.command(&cobra.Command{
		Use:   "discard [EVENT|KEY|SYNC]",
		Short: "Give up deliveries for good",
		Long: `Give up deliveries for good. The next event of each key is sent. The command
selects failed deliveries, or for an event its deliveries in any state except
sending. --since, --until and --older-than compare the time of the failure. The
login needs the role outbox_operator.

` + aboutSets + `

SYNC with --all selects every open delivery of an orphaned sync, in any state.
The sync must be retired, and no running relay may serve it. All of them are
discarded in one transaction.`,
		Example: `  lockstep discard 0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d --reason "entered at the court by hand"
  lockstep discard --sync CourtCalendarSync --class permanent --older-than 30d --dry-run
  lockstep discard OldCourtSync --all --reason "the court closed"`,
	}, reasonRequired)
}

func (a *app) replayCommand() *cobra.Command {
	r := &repair{app: a, action: operate.Replay, things: "delivered event", moment: "was delivered", now: sentAgain, nothing: "no delivered event to replay"}
	return r.command(&cobra.Command{
		Use:   "replay [EVENT|KEY]",
		Short: "Send delivered events again",
		Long: `Send delivered events again, as new deliveries at the end of their key's lane.
Their idempotency key is "ID:n", so that the receiver does not treat them as
duplicates. The command selects events that were delivered to a sync and have no
open delivery there. The events of a key keep their order. For a key, the command
replays the newest delivered event, so that the receiver gets the newest state.
With --all, it replays every delivered event of the key. --since, --until and
--older-than compare the time of the delivery. The login needs the role
outbox_operator.

The receiver keeps what it gets last. So an event is refused, or left out of a
larger set, if the receiver got a newer event of its key or will get one, unless
that one is replayed too. --force sends it nevertheless.

` + aboutSets,
		Example: `  lockstep replay H-2027-000007 --reason "court lost it"
  lockstep replay 0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d --reason "court lost it"
  lockstep replay --sync CourtCalendarSync --since 2027-01-31T08:00:00Z --dry-run`,
	}, reasonRequired)
}

// deliveryRows are deliveries as lines of a table.
func deliveryRows(list []operate.Delivery) []deliveryRow {
	rows := make([]deliveryRow, len(list))
	for i, d := range list {
		rows[i] = deliveryRow{d}
	}
	return rows
}

package doctor

import (
	"context"
	_ "embed" // catalog.sql and schema.txt
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hms-mkt/lockstep/outbox"
)

//go:embed catalog.sql
var catalog string

// migrated lists the objects that the migrations make: name, tabulator, definition. The test
// of this package writes it.
//
//go:embed schema.txt
var migrated string

// item is an object of the schema or a privilege.
type item struct{ Name, Definition string }

// drift compares the schema with what the migrations make.
func (o Options) drift() Check {
	return Check{"drift", "the schema is as the migrations make it", func(ctx context.Context) ([]Finding, error) {
		state, err := o.Store.State(ctx)
		if err != nil {
			return nil, err
		}
		if state.Version > outbox.Schema {
			return []Finding{warning("run lockstep doctor of the newer version", "not compared, because the schema is version %d and this program is made for %d", state.Version, outbox.Schema)}, nil
		}
		all, err := list[item](ctx, o, catalog)
		if err != nil {
			return nil, err
		}
		return differences(readItems(migrated), all), nil
	}}
}

func readItems(text string) (all []item) {
	for line := range strings.Lines(text) {
		name, definition, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		all = append(all, item{name, definition})
	}
	return all
}

// differences lists what the database lacks, has in another form, or has in addition. If a
// table or a function is missing, what belongs to it is not listed too.
func differences(want, have []item) (found []Finding) {
	wanted, there := byName(want), byName(have)
	var gone []string // tables, views, sequences and functions
	for _, i := range want {
		if kind, object, _ := strings.Cut(i.Name, " "); !there.has(i.Name) && slices.Contains([]string{"table", "view", "sequence", "function"}, kind) {
			gone = append(gone, object)
			found = append(found, problem(restore, "%s is missing", i.Name))
		}
	}
	belongs := func(name string) bool {
		return slices.ContainsFunc(gone, func(object string) bool {
			return strings.Contains(name+" ", " "+object+" ") || strings.Contains(name, " "+object+".")
		})
	}
	for _, i := range want {
		switch definition, ok := there[i.Name]; {
		case belongs(i.Name):
		case !ok && strings.HasPrefix(i.Name, "grant "):
			found = append(found, problem("as the owner: GRANT "+privilege(i.Name, "TO"), "%s is missing", i.Name))
		case !ok:
			found = append(found, problem(restore, "%s is missing", i.Name))
		case definition != i.Definition:
			found = append(found, problem(restore, "%s was changed: it is %s, and the migrations make %s", i.Name, orNothing(definition), orNothing(i.Definition)))
		}
	}
	for _, i := range have {
		switch {
		case wanted.has(i.Name):
		case strings.HasPrefix(i.Name, "grant "):
			found = append(found, warning("if nobody needs it, as the owner: REVOKE "+privilege(i.Name, "FROM"), "%s is not from the migrations", i.Name))
		default:
			found = append(found, warning("if nobody needs it, drop it: it may slow down or refuse what relays and writers do", "%s is not from the migrations", i.Name))
		}
	}
	if more := len(found) - mostDrift; more > 0 {
		found = append(found[:mostDrift], problem("", "%d more differences", more))
	}
	return found
}

// mostDrift is how many differences are listed.
const mostDrift = 20

const restore = "restore it as the migrations make it; their statements: lockstep migrate sql"

// named are definitions by the names of their objects.
type named map[string]string

func byName(all []item) named {
	m := named{}
	for _, i := range all {
		m[i.Name] = i.Definition
	}
	return m
}

func (n named) has(name string) bool {
	_, ok := n[name]
	return ok
}

var grantName = regexp.MustCompile(`^grant of (\S+) on (\S+) (\S+) to (\S+)$`)

// privilege writes the name of a grant as SQL has it after GRANT and REVOKE.
func privilege(name, to string) string {
	m := grantName.FindStringSubmatch(name)
	if m == nil {
		return name
	}
	right, kind, object, role := strings.ToUpper(m[1]), m[2], m[3], m[4]
	switch kind {
	case "column":
		dot := strings.LastIndexByte(object, '.')
		return fmt.Sprintf("%s (%s) ON %s %s %s", right, object[dot+1:], object[:dot], to, role)
	case "table", "view":
		return fmt.Sprintf("%s ON %s %s %s", right, object, to, role)
	}
	return fmt.Sprintf("%s ON %s %s %s %s", right, strings.ToUpper(kind), object, to, role)
}

// orNothing quotes a definition, of which a table has none.
func orNothing(definition string) string {
	if definition == "" {
		return "without one"
	}
	return strconv.Quote(definition)
}

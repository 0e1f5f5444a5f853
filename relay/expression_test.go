package relay

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/outbox"
)

const computePayload = `{"id": "H-1", "amount": 12.50, "big": 12345678901234567890, "count": 3, "zero": 0, "secret": "SECRET",
	"start": "2027-07-04T19:30:00-04:00", "day": "2027-07-04", "nested": {"rate": 1.10}, "none": null, "flag": true,
	"parties": [{"name": "SECRET", "age": 30, "fee": 1.10}, {"name": "B", "age": 4, "fee": 2.20}], "list": [3, 1.0, 2],
	"words": ["b", "a"]}`

func TestCompute(t *testing.T) {
	version := int64(7)
	tests := map[string]struct{ expr, want string }{
		"untouched number":          {`event.amount`, `12.50`},
		"untouched big integer":     {`event.big`, `12345678901234567890`},
		"untouched in an object":    {`{"r": event.nested.rate, "o": event.nested}`, `{"o":{"rate":1.10},"r":1.10}`},
		"untouched by a condition":  {`event.count > 2 ? event.amount : 0`, `12.50`},
		"untouched by ??":           {`event.none ?? event.amount`, `12.50`},
		"untouched by let":          {`let x = event.amount; x`, `12.50`},
		"untouched by map":          {`map(event.parties, .fee)`, `[1.10,2.20]`},
		"untouched by filter":       {`filter(event.parties, .age > 18)[0].fee`, `1.10`},
		"untouched by first":        {`first(event.list)`, `3`},
		"untouched list":            {`event.list`, `[3,1.0,2]`},
		"as text":                   {`"USD " + string(event.amount)`, `"USD 12.50"`},
		"integers":                  {`event.count * 2 + 1`, `7`},
		"decimals":                  {`event.amount * 2`, `25`},
		"division":                  {`event.count / 2`, `1.5`},
		"negation":                  {`-event.count`, `-3`},
		"compared":                  {`[event.amount == 12.5, event.count == 3, event.count in [1, 3], 3 in event.list]`, `[true,true,true,true]`},
		"sum":                       {`sum(event.list)`, `6`},
		"sum by":                    {`sum(event.parties, .age)`, `34`},
		"max":                       {`max(event.list)`, `3`},
		"sorted":                    {`map(sortBy(event.parties, .age), .age)`, `[4,30]`},
		"reduced":                   {`reduce(event.parties, #acc + .age, 0)`, `34`},
		"index":                     {`event.words[event.zero]`, `"b"`},
		"range":                     {`1..event.count`, `[1,2,3]`},
		"rounded":                   {`round(event.amount)`, `13`},
		"int of a decimal":          {`int(event.amount)`, `12`},
		"strings":                   {`upper(event.id) + "/" + key + "/" + type`, `"H-1/H-1/scheduling:updated"`},
		"joined":                    {`join(event.words, "<&>")`, `"b<&>a"`},
		"version":                   {`version + 1`, `8`},
		"header":                    {`headers.tenant`, `"t1"`},
		"missing header":            {`headers.nope ?? "none"`, `"none"`},
		"missing field":             {`event.nope?.deeper ?? "none"`, `"none"`},
		"end time":                  {`(date(event.start) + duration("45m")).Format("2006-01-02T15:04:05Z07:00")`, `"2027-07-04T20:15:00-04:00"`},
		"time as it is":             {`date(event.start) + duration("45m")`, `"2027-07-04T20:15:00-04:00"`},
		"time in a zone":            {`date(event.start).In(timezone("Europe/London")).Format("15:04 MST")`, `"00:30 BST"`},
		"date":                      {`date(event.day).Year()`, `2027`},
		"grouped, names are sorted": {`groupBy(event.parties, .age > 18 ? "b" : "a") | len()`, `2`},
		"nested predicates":         {`map(event.parties, count(event.list, # > 1))`, `[2,2]`},
		"JSON text":                 {`toJSON({"r": event.nested.rate})`, `"{\"r\":1.10}"`},
		"replaced":                  {`replace(event.id, "-", "/")`, `"H/1"`},
		"repeated":                  {`repeat("ab", event.count)`, `"ababab"`},
		"text of a time":            {`string(date(event.day))`, `"2027-07-04 00:00:00 +0000 UTC"`},
		"text of a duration":        {`string(duration("90m"))`, `"1h30m0s"`},
		"text of a list":            {`string(event.list)`, `"[3 1.0 2]"`},
		"list grown one by one":     {`len(reduce(1..300, concat(#acc, [{"a": #, "l": [event.list]}]), []))`, `300`},
		"joined by a pipe":          {`event.words | join()`, `"ba"`},
		"split and joined":          {`join(split(event.day, "-"), "")`, `"20270704"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := compile(t, Mapping{Compute: []Computed{{To: "x", Expr: tt.expr}}})
			ev := outbox.Event{
				Type: "scheduling:updated", Key: "H-1", Version: &version,
				Payload: raw(computePayload), Headers: map[string]string{"tenant": "t1"},
			}
			got, err := m.Map(ev)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != `{"x":`+tt.want+`}` {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// doubling is an expression that applies step, in which %[2]s is the value so
// far, to its own result 40 times.
func doubling(step string) string {
	var b strings.Builder
	b.WriteString(`let a0 = "xxxx";`)
	for i := range 40 {
		fmt.Fprintf(&b, "let a%[1]d = "+step+";", i+1, fmt.Sprintf("a%d", i))
	}
	return b.String() + "a40"
}

func TestComputeRefusesAtRunTime(t *testing.T) {
	tests := map[string]struct{ expr, reason string }{
		"text and number":        {`"Hearing " + event.count`, "cannot apply + to a string and a number; write string(…)"},
		"text and null":          {`"Hearing " + event.nope`, "cannot apply + to a string and null"},
		"text and object":        {`event.nested + "x"`, "cannot apply + to an object and a string"},
		"member of nothing":      {`event.nope.deeper`, "reads a member of a value that is missing or null"},
		"null":                   {`event.none`, "is null for this event"},
		"value in the complaint": {`int(event.secret)`, "cannot be evaluated for this event (column"},
		"date in the complaint":  {`date(event.secret)`, "date() needs an RFC 3339 time"},
		"date of a number":       {`date(event.count)`, "date() needs a string, not a number"},
		"zone in the complaint":  {`date(event.day).In(timezone(event.secret))`, "timezone() needs an IANA name"},
		"big integer":            {`event.big + 1`, "more than 64 bits"},
		"not finite":             {`event.amount / 0`, "not a finite number"},
		"duration":               {`duration("5m")`, "is a duration"},
		"function":               {`date(event.day).Year`, "not a JSON value"},
		"element that is absent": {`event.list[9]`, "an element that the array does not have"},
		"too many steps":         {`sum(1..1000, count(1..1000, # > 3))`, "too many steps"},
		"too much memory":        {`map(1..200000, 1..200000)`, "too much memory"},
		"repeat of a repeat":     {`repeat(repeat("x", 1000), 100000)`, "too much memory"},
		"doubled text":           {`reduce(1..60, #acc + #acc, "xxxx")`, "too much memory"},
		"doubled text by let":    {doubling("%[2]s + %[2]s"), "too much memory"},
		"doubled list":           {doubling("concat([%[2]s], [%[2]s])"), "too much memory"},
		"doubled list by reduce": {`reduce(1..60, concat(#acc, #acc), [1])`, "too much memory"},
		"doubled object":         {doubling(`{"l": %[2]s, "r": %[2]s}`), "too much memory"},
		"doubled JSON":           {doubling(`toJSON([%[2]s, %[2]s])`), "too much memory"},
		"replaced by much":       {`replace(repeat("x", 1000000), "x", repeat("y", 1000000))`, "too much memory"},
		"joined with much":       {`join(split(repeat("x", 10000), ""), repeat("y", 1000000))`, "too much memory"},
		"compared with itself":   {`let a = reduce(1..40, [#acc, #acc], 1); a == a`, "too much memory"},
		"flattened":              {`len(flatten(reduce(1..40, [#acc, #acc], 1)))`, "too much memory"},
		"nested one by one":      {`len(reduce(1..100000, [#acc], 1))`, "too many steps"},
		"upper case of much":     {`let s = repeat("x", 1000000); count(1..100, upper(s) != "")`, "too much memory"},
		"text of a method":       {`string(date(event.day).Year)`, "string() needs a JSON value"},
		"text of a zone":         {`string(timezone("Europe/London"))`, "string() needs a JSON value"},
		"join of numbers":        {`join(event.list, ",")`, "join() needs a list of texts, and found a number in it"},
		"repeat of a number":     {`repeat(event.count, 2)`, "repeat() needs a text"},
		"regular expression":     {`"a" matches event.secret + "("`, "cannot be evaluated"},
		"names that are numbers": {`groupBy(event.parties, .age)`, "names are not strings"},
		"key of bytes":           {`fromBase64("/w==")`, "not UTF-8"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := compile(t, Mapping{Compute: []Computed{{To: "x", Expr: tt.expr}}})
			got, err := m.Map(outbox.Event{Payload: raw(computePayload)})
			var fe *FieldError
			if !errors.As(err, &fe) {
				t.Fatalf("got %s, %v; want a FieldError", got, err)
			}
			if fe.Field != "x" || !strings.Contains(fe.Reason, tt.reason) {
				t.Errorf("got %q: %q, want …%q…", fe.Field, fe.Reason, tt.reason)
			}
			if strings.Contains(err.Error(), "SECRET") {
				t.Errorf("%q contains a value of the payload", err)
			}
		})
	}
}

func TestExpressionRefusedAtCompileTime(t *testing.T) {
	tests := map[string]struct{ expr, want string }{
		"unknown name":      {`hearingId + "x"`, "unknown name hearingId (column 1); known are event, type, key, version, headers; payload fields are written event.hearingId"},
		"syntax":            {`event.a +`, "unexpected token EOF"},
		"clock":             {`now()`, "now is not available, because the same event"},
		"order of a map":    {`keys(event)`, "keys is not available"},
		"order of values":   {`values(event)`, "values is not available"},
		"order of pairs":    {`toPairs(event)`, "toPairs is not available"},
		"digits":            {`fromJSON(event.a)`, "fromJSON is not available"},
		"environment":       {`$env["key"]`, "$env is not available"},
		"machine's zone":    {`date(event.a).Local()`, "Local() depends on the machine"},
		"zone, by variable": {`let f = date(event.a).Local; f()`, "Local() depends on the machine"},
		"types":             {`key + 1`, "mismatched types string and int"},
		"types of type":     {`type > 3`, "invalid operation"},
		"function type":     {`type(event.a)`, "string is not callable"},
		"function":          {`exec("ls")`, "unknown name exec"},
		"too many nodes":    {strings.Repeat("1+", 600) + "1", "exceeds maximum allowed nodes"},
		"too long":          {`"` + strings.Repeat("x", 5000) + `"`, "longer than 4096 bytes"},
		"two lines":         {"event.a +\n nope", "unknown name nope"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Mapping{Compute: []Computed{{To: "x", Expr: tt.expr}}}.Compile()
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "field x:") {
				t.Errorf("got %v, want …%q…", err, tt.want)
			}
		})
	}
}

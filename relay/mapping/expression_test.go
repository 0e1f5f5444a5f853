package mapping

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

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
		"equal lists":               {`[event.list == [3, 1, 2.0], event.list != [3, 1], [event.list] == [[3, 1, 2]], event.parties == event.parties]`, `[true,true,true,true]`},
		"equal objects":             {`[event.nested == {"rate": 1.1}, event.nested != {"rate": 1}, event.nested == event.list, event.none == nil]`, `[true,true,false,true]`},
		"equal texts":               {`[event.id == "H-1", event.id == event.count, event.day != event.id, event.count == "3"]`, `[true,false,true,false]`},
		"in":                        {`[2 in event.list, [1] in [[1]], "b" in event.words, "rate" in event.nested, "x" in event.nope ?? [], 7 in 1..9, "b" not in event.words]`, `[true,true,true,true,false,true,false]`},
		"without repetition":        {`uniq(concat(event.words, event.list, event.list, event.words, [nil, nil]))`, `["b","a",3,1,2,null]`},
		"matched":                   {`[event.day matches "^2027-", event.day matches event.id, event.nope matches "a", event.day matches "(?i)JULY"]`, `[true,false,false,false]`},
		"trimmed":                   {`trim(event.id, "H1") + trim("  x ")`, `"-x"`},
		"zone of the event":         {`date(event.day).In(timezone(event.nope ?? "Europe/London")).Format("15:04")`, `"01:00"`},
		"seconds and months":        {`[date(event.day).Unix(), date(event.day).Month()]`, `[1814659200,7]`},
		"branches of two kinds":     {`(event.flag ? 2 : uniq(event.list)) == "H-1"`, `false`},
		"number of another kind":    {`[event.big == "x", event.big == nil, event.big == event.list, event.big == event.flag]`, `[false,false,false,false]`},
		"larger list":               {`count(1..1000, # in event.list)`, `3`},
		"joined by a pipe":          {`event.words | join()`, `"ba"`},
		"digest":                    {`sha256(event.id)`, `"21eef6971ae7ad3dd8f2ae9cda03a2df72332ea4d07b8e8ae3c550176e7f4228"`},
		"short digest":              {`sha256(key + type)[:20]`, `"3b41ee7de1a7c64cb3f1"`},
		"UUID of a URL":             {`uuid5("url", "https://agency.example.gov/" + key)`, `"54f33250-d5a2-542c-90cd-a68afe2c757e"`},
		"UUID of a name":            {`uuid5("dns", "www.example.com")`, `"2ed6657d-e927-568b-95e1-2665a8aea6a2"`},
		"UUID in a namespace":       {`uuid5("9f1c7a52-0d7e-4a0e-8b43-5d1f6c2e7a10", key)`, `"584581e2-90b5-539d-a082-3ffa1a580d71"`},
		"split and joined":          {`join(split(event.day, "-"), "")`, `"20270704"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := compile(t, Mapping{Compute: []Computed{{To: "x", Expr: tt.expr}}})
			ev := outbox.Event{
				Type: "scheduling:updated", Key: "H-1", Version: &version,
				Payload: raw(computePayload), Headers: map[string]string{"tenant": "t1"},
			}
			got, err := m.Map(ev, Sending{}, nil)
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
		"number of nothing":      {`int(event.nope)`, "makes a number of a value that is missing or null"},
		"fraction of nothing":    {`float(event.nope)`, "makes a number of a value that is missing or null"},
		"null":                   {`event.none`, "is null for this event"},
		"value in the complaint": {`int(event.secret)`, "cannot be evaluated for this event (column"},
		"date in the complaint":  {`date(event.secret)`, "date() needs a time with an offset"},
		"date of a number":       {`date(event.count)`, "date() needs a string, not a number"},
		"zone in the complaint":  {`date(event.day).In(timezone(event.secret))`, "timezone() needs an IANA name"},
		"big integer":            {`event.big + 1`, "more than 64 bits"},
		"not finite":             {`event.amount / 0`, "not a finite number"},
		"duration":               {`duration("5m")`, "is a duration"},
		"function":               {`date(event.day).Year`, "not a JSON value"},
		"element that is absent": {`event.list[9]`, "an element that the array does not have"},
		"too many steps":         {`let l = 1..3000; sum(l, sum(l, # + 3))`, "too many steps"},
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
		"compared with itself":   {`let a = reduce(1..40, [#acc, #acc], 1); a == a`, "too many steps"},
		"flattened":              {`len(flatten(reduce(1..40, [#acc, #acc], 1)))`, "too many steps"},
		"nested one by one":      {`let a = reduce(1..100000, [#acc], 1); a == a`, "nested too deeply"},
		"number as an object":    {`event.count.String()`, "reads a member of a number"},
		"number, by name":        {`event.count["Str" + "ing"]`, "reads a member of a number"},
		"number, by get":         {`get(event.count, "String")`, "reads a member of a number"},
		"upper case of much":     {`let s = repeat("x", 1000000); count(1..100, upper(s) != "")`, "too much memory"},
		"text of a method":       {`string(date(event.day).Year)`, "string() needs a JSON value"},
		"text of a zone":         {`string(timezone("Europe/London"))`, "string() needs a JSON value"},
		"join of numbers":        {`join(event.list, ",")`, "join() needs a list of texts, and found a number in it"},
		"digest of a number":     {`sha256(event.count)`, "sha256() needs a text, not a number"},
		"UUID of a number":       {`uuid5("url", event.count)`, "uuid5() needs two texts"},
		"UUID without a UUID":    {`uuid5(event.id, key)`, "the namespace of uuid5() must be a UUID, or url, dns or oid"},
		"UUID in odd dashes":     {`uuid5("9f1c7a520d7e4a0e8b435d1f6c2e7a10----", key)`, "the namespace of uuid5() must be a UUID"},
		"repeat of a number":     {`repeat(event.count, 2)`, "repeat() needs a text"},
		"regular expression":     {`"a" matches event.secret + "("`, "not a regular expression"},
		"large pattern":          {`"a" matches repeat("(a?){1000}", event.count)`, "regular expression after matches is too large"},
		"match of a number":      {`event.count matches "a"`, "matches needs a text, not a number"},
		"names that are numbers": {`groupBy(event.parties, .age)`, "names are not strings"},
		"digits of a number":     {`event.amount[:3]`, "not a JSON value"},
		"element of a number":    {`first(event.amount)`, "reads a member of a number"},
		"key of bytes":           {`fromBase64("/w==")`, "not UTF-8"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := compile(t, Mapping{Compute: []Computed{{To: "x", Expr: tt.expr}}})
			got, err := m.Map(outbox.Event{Payload: raw(computePayload)}, Sending{}, nil)
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
		"unknown name":      {`hearingId + "x"`, "unknown name hearingId (column 1); known are event, headers, id, idempotency_key, key, occurred_at, ref, type, version; payload fields are written event.hearingId"},
		"null":              {`event.a == null`, "unknown name null: write nil (column 12)"},
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
		"inside a call":     {`upper(hearingId) + "x"`, "unknown name hearingId (column 7)"},
		"inside ==":         {`[hearingId] == event.list`, "unknown name hearingId"},
		"pattern":           {`event.a matches "("`, "missing closing )"},
		"large pattern":     {`event.a matches "(a?){1000}"`, "the expression does not compile: the regular expression after matches is too large"},
		"zone":              {`date(event.a).In(timezone("Nowhere/Land"))`, "timezone() needs an IANA name"},
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

// costlyPayload is an event of about 1 MiB with long lists and texts.
func costlyPayload() []byte {
	var b strings.Builder
	list := func(name string, n int, part func(i int) string) {
		fmt.Fprintf(&b, "%q: [", name)
		for i := range n {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(part(i))
		}
		b.WriteString("], ")
	}
	b.WriteByte('{')
	list("a", 30_000, func(i int) string { return fmt.Sprint(i) })
	list("b", 30_000, func(i int) string { return fmt.Sprint(100_000 + i) })
	list("c", 30_000, func(i int) string { return fmt.Sprint(100_000 + i) })
	list("halves", 10_000, func(i int) string { return fmt.Sprint(i) + ".5" })
	list("words", 10_000, func(i int) string { return fmt.Sprintf("%q", fmt.Sprint("w", i)) })
	list("objects", 1_000, func(i int) string { return fmt.Sprintf(`{"n": %d, "m": {"k": [%d]}}`, i, i) })
	list("long", 4, func(i int) string { return "1" + strings.Repeat("0", 20_000) + ".5e-20000" })
	fmt.Fprintf(&b, `"number": 1%s.5e-90000, "text": %q, "same": %q, "odd": %q}`,
		strings.Repeat("0", 90_000), strings.Repeat("a", 150_000), strings.Repeat("a", 150_000), strings.Repeat("é", 50_000))
	return []byte(b.String())
}

// No expression keeps a processor for long, whatever its operators and
// functions have to work on: it gives a result or says why not.
func TestExpressionOverALargeEventEnds(t *testing.T) {
	const shared = `let s = reduce(1..60, [#acc, #acc], 1); `
	steps, memory := "too many steps", "too much memory"
	tests := map[string]struct{ expr, reason string }{
		"in":                       {`all(event.a, not (# in event.b))`, steps},
		"in, of texts":             {`all(event.a, not (event.text in event.words))`, steps},
		"in an object":             {`all(event.a, all(event.b, not (event.text in event.objects[0])))`, steps},
		"in, of a range":           {`all(event.a, not (-1 in 1..20000))`, memory},
		"in, of lists":             {`all(event.a, not (event.b in [event.c]))`, ""},
		"uniq of numbers":          {`len(uniq(event.a))`, steps},
		"uniq of objects":          {`count(1..1000, len(uniq(event.objects)) > 0)`, steps},
		"uniq of texts":            {`len(uniq(event.words))`, ""},
		"==":                       {`count(event.a, event.b == event.c)`, steps},
		"!=":                       {`count(event.a, event.b != event.c)`, steps},
		"== of objects":            {`count(event.a, event.objects == event.objects)`, steps},
		"== of texts":              {`count(event.a, count(event.b, event.text == event.same) > 0)`, steps},
		"== of typed texts":        {`let s = upper(event.text); let t = upper(event.same); count(event.a, count(event.b, s == t) > 0)`, steps},
		"== of numbers":            {`count(event.a, count(event.b, event.number == 1) > 0)`, steps},
		"== of what shares":        {shared + `s == s`, steps},
		"== of pairs":              {shared + `fromPairs([["a", s]]) == fromPairs([["a", s]])`, steps},
		"< of texts":               {`count(event.a, count(event.b, event.text < event.same) > 0)`, steps},
		"< of numbers":             {`count(event.a, count(event.b, event.number < 1) > 0)`, steps},
		"matches":                  {`event.text matches "(a?){480}b"`, steps},
		"matches, in a loop":       {`count(event.a, event.text matches "^[a-z]+b")`, steps},
		"matches, by data":         {`event.text matches "(a?){" + string(event.a[480]) + "}b"`, steps},
		"matches, compiled":        {`count(event.a, count(event.b, "b" matches "a{" + string(#) + "}") > 0)`, "not a regular expression"},
		"matches, compiled often":  {`count(event.a, "b" matches "(a?){480}" + string(#))`, steps},
		"contains":                 {`any(event.a, any(event.words, event.text contains #))`, steps},
		"startsWith":               {`any(event.a, any(event.words, not (event.text startsWith event.same)))`, steps},
		"endsWith":                 {`any(event.a, any(event.words, not (event.text endsWith event.same)))`, steps},
		"indexOf":                  {`any(event.a, any(event.words, indexOf(event.text, #) > 0))`, steps},
		"lastIndexOf":              {`any(event.a, any(event.words, lastIndexOf(event.text, #) > 0))`, steps},
		"hasPrefix":                {`any(event.a, any(event.words, not hasPrefix(event.text, event.same)))`, steps},
		"trim":                     {`trim(event.odd, event.text + "é")`, steps},
		"trimPrefix":               {`any(event.a, trimPrefix(event.text, event.same) != "")`, steps},
		"len of a text":            {`any(event.a, any(event.words, len(event.text) == 1))`, steps},
		"upper":                    {`any(event.a, upper(event.text) == "b")`, memory},
		"split":                    {`any(event.a, len(split(event.text, "")) == 1)`, memory},
		"splitAfter":               {`any(event.a, len(splitAfter(event.text, "")) == 1)`, memory},
		"toBase64":                 {`any(event.a, toBase64(event.text) == "b")`, memory},
		"fromBase64":               {`any(event.a, fromBase64(event.text) == "b")`, memory},
		"replace":                  {`replace(event.text, "a", event.text)`, memory},
		"repeat":                   {`repeat(event.text, 100000)`, memory},
		"join":                     {`join(event.words, event.text)`, memory},
		"string":                   {`any(event.a, string(event.objects) == "b")`, steps},
		"string of what shares":    {shared + `string(s)`, steps},
		"toJSON":                   {`any(event.a, toJSON(event.objects) == "b")`, steps},
		"sha256":                   {`any(event.a, sha256(event.text) == "b")`, steps},
		"uuid5":                    {`any(event.a, uuid5("url", event.text) == "b")`, steps},
		"toJSON of what shares":    {shared + `toJSON(s)`, steps},
		"result that shares":       {shared + `s`, memory},
		"object that shares":       {`reduce(1..60, {{"l": #acc, "r": #acc}}, 1)`, memory},
		"int of a text":            {`any(event.a, any(event.b, int(event.number) == 3))`, steps},
		"float":                    {`any(event.a, any(event.b, float(event.number) == 3))`, steps},
		"doubled text":             {`reduce(1..60, #acc + #acc, "xxxx")`, memory},
		"concat":                   {`len(reduce(event.a, concat(#acc, [#]), []))`, memory},
		"sort":                     {`any(event.a, sort(event.b)[0] == 1)`, steps},
		"sort, of texts":           {`let l = map(event.a, # % 2 == 0 ? event.text : event.same); sort(l)[0] == ""`, steps},
		"sortBy":                   {`len(sortBy(event.a, # % 2 == 0 ? event.text : event.same))`, steps},
		"sortBy, in a loop":        {`any(event.a, len(sortBy(event.b, #)) == 1)`, memory},
		"groupBy":                  {`any(event.a, len(groupBy(event.b, #)) == 1)`, steps},
		"groupBy, of texts":        {`any(event.a, len(groupBy(event.b, event.text)) == 1)`, steps},
		"reverse":                  {`any(event.a, reverse(event.b)[0] == 1)`, memory},
		"flatten":                  {`any(event.a, len(flatten(event.b)) == 1)`, memory},
		"flatten of what shares":   {shared + `len(flatten([s]))`, steps},
		"flatten of deep lists":    {`len(flatten(reduce(1..9000, [#acc, 1], 1)))`, steps},
		"fromPairs":                {`any(event.a, len(fromPairs(map(event.words, [#, 1]))) == 1)`, memory},
		"fromPairs of what shares": {shared + `fromPairs([s])`, steps},
		"fromPairs of no pairs":    {`fromPairs(event.nope ?? [reduce(1..60, [#acc, #acc], 1)])`, steps},
		"max":                      {`any(event.a, max(event.b) == 1)`, steps},
		"min of what shares":       {shared + `min(s)`, steps},
		"mean of what shares":      {shared + `mean(s)`, steps},
		"median of what shares":    {shared + `median(s)`, steps},
		"median":                   {`any(event.a, median(event.b) == 1)`, steps},
		"sum":                      {`any(event.a, sum(event.halves) == 1)`, steps},
		"sum of long numbers":      {`any(event.a, any(event.b, sum(event.long) == 1))`, steps},
		"index that shares":        {shared + `event.nope[s]`, steps},
		"slice that shares":        {shared + `event.nope[s:]`, "cannot be evaluated"},
		"name by data":             {`any(event.a, any(event.b, event[event.text] == 1))`, steps},
		"names by data":            {`all(event.a, {{(event.text): 1}.x == nil})`, steps},
		"take":                     {`any(event.a, len(take(event.b, 1000)) == 1)`, ""},
		"first and last":           {`all(event.a, first(event.b) != last(event.b) and get(event.b, 3) != 1 and len(event.b) > 1)`, ""},
		"nested loops":             {`sum(event.a, count(event.b, # > 3))`, steps},
		"loop over ranges":         {`count(1..100000, count(1..100000, true) > 3)`, memory},
		"long body":                {`let n = 7; count(1..900000, ` + strings.Repeat("n+", 150) + `n > 3)`, steps},
		"map of maps":              {`map(event.a, map(event.b, #))`, memory},
		"objects":                  {`map(event.a, map(event.words, {{"a": #}}))`, memory},
		"zones":                    {`count(event.a, timezone("Europe/" + upper(string(event.nope ?? "london")) + string(#)) == nil)`, "timezone() needs"},
		"zone, in a loop":          {`count(event.a, timezone(event.nope ?? "Europe/London") == nil)`, ""},
		"times":                    {`count(event.a, count(event.b, date(event.nope ?? "2027-03-01").Format(event.text) == "b") > 3)`, memory},
		"count of booleans":        {`let l = map(event.a, true); any(event.a, count(l) == 1)`, steps},
		"long names":               {`let o = {(event.text): 1}; any(event.a, any(event.b, o != o))`, steps},
		"concat of many":           {`let l = 1..1000000; len(concat(` + strings.Repeat("l, ", 200) + `l))`, memory},
		"flatten of many":          {`let l = 1..1000000; len(flatten([` + strings.Repeat("l, ", 200) + `l]))`, steps},
		"median of many":           {`let l = 1..1000000; median([` + strings.Repeat("l, ", 200) + `l])`, steps},
		"find":                     {`count(event.a, find(event.b, # == 1) == 1)`, steps},
		"reduce":                   {`reduce(event.a, #acc + reduce(event.b, #acc + #, 0), 0)`, steps},
		"one pass each":            {`[all(event.a, # >= 0), len(filter(event.words, # contains "w9")), sum(event.b), len(map(event.objects, .m.k[0])), len(sort(event.b)), median(event.halves)] != nil`, ""},
		"a list of 1,000 by 1,000": {`let a = event.a[:1000]; let b = event.b[:1000]; count(a, # in b or any(b, # == 1))`, ""},
	}
	ev := outbox.Event{Payload: costlyPayload()}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := compile(t, Mapping{Compute: []Computed{{To: "cheap", Expr: "1"}, {To: "x", Expr: tt.expr}, {To: "y", Expr: "2"}}})
			done := make(chan error, 1)
			began := time.Now()
			go func() {
				e, err := newEvaluation(ev, Sending{}, nil, m.exprs...)
				if err == nil {
					if tt.reason == steps {
						e.steps = maxSteps / 8 * 7 // the rest shows the same in less time
					}
					_, err = m.evaluate(e)
				}
				done <- err
			}()
			select {
			case err := <-done:
				t.Logf("took %s: %v", time.Since(began).Round(time.Millisecond), err)
				fe, refused := errors.AsType[*FieldError](err)
				if refused != (tt.reason != "") || refused && (fe.Field != "x" || !strings.Contains(fe.Reason, tt.reason)) {
					t.Errorf("got %v, want %q", err, tt.reason)
				}
			case <-time.After(time.Minute):
				t.Fatal("no end after a minute")
			}
		})
	}
}

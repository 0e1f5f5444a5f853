package main

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestReferencesOfAFile(t *testing.T) {
	long := strings.Repeat("x", 513)
	for name, test := range map[string]struct {
		file string
		want string   // key=external_id/etag of each line
		says []string // problems, with their lines
	}{
		"CSV":                    {file: "key,external_id\nH-1,C-1\nH-2,\"C,2\"\n", want: "H-1=C-1/ H-2=C,2/"},
		"CSV with other columns": {file: "etag,key,external_id\n\"\"\"7\"\"\",H-1,C-1\n,H-2,C-2\n", want: `H-1=C-1/"7" H-2=C-2/`},
		"CSV of Windows":         {file: "\uFEFFkey,external_id\r\nH-1,C-1\r\n", want: "H-1=C-1/"},
		"JSON lines":             {file: "\uFEFF{\"key\":\"H-1\",\"external_id\":\"C-1\"}\n\n{\"key\":\"H-2\",\"external_id\":\"C-2\",\"etag\":\"W/\\\"7\\\"\"}", want: `H-1=C-1/ H-2=C-2/W/"7"`},
		"empty":                  {says: []string{"1: no references", "key,external_id,etag"}},
		"only a header":          {file: "key,external_id\n", says: []string{"1: no references"}},
		"no header":              {file: "H-1,C-1\n", says: []string{"1: want the names of the columns"}},
		"semicolons":             {file: "key;external_id\nH-1;C-1\n", says: []string{"1: want the names of the columns, separated by commas"}},
		"an unknown column":      {file: "key,external_id,note\nH-1,C-1,x\n", says: []string{"1: want the names of the columns"}},
		"a line with more cells": {file: "key,external_id\nH-1,C-1\nH-2,C-2,3\n", says: []string{"3: wrong number of fields"}},
		"an open quote":          {file: "key,external_id\nH-1,\"C-1\n", says: []string{"quote"}},
		"an id that is missing":  {file: "key,external_id\nH-1,\n,C-2\n", says: []string{"2: external_id is missing", "3: key is missing"}},
		"a key twice":            {file: "key,external_id\nH-1,C-1\nH-2,C-2\nH-1,C-3\n", says: []string{"4: key H-1 is on line 2 too"}},
		"an id that is too long": {file: "key,external_id\nH-1," + long + "\n", says: []string{"2: external_id has more than 512 bytes"}},
		"a key that is too long": {file: "key,external_id\n" + long + ",C-1\n", says: []string{"2: key has more than 512 bytes"}},
		"not UTF-8":              {file: "key,external_id\nH-1,caf\xe9\n", says: []string{"2: external_id has a character that was lost", "save the file as UTF-8"}},
		"a lone surrogate":       {file: `{"key":"H-1","external_id":"a\ud800"}`, says: []string{"1: external_id has a character that was lost"}},
		"a line break in an id":  {file: `{"key":"H-1","external_id":"a\nb"}`, says: []string{"1: external_id has", "characters that do not print"}},
		"a name that is unknown": {file: `{"key":"H-1","id":"a"}`, says: []string{`1: unknown field "id"`}},
		"JSON that is cut":       {file: "{\"key\":\"H-1\",\"external_id\":\"a\"}\n{\"key\":\n", says: []string{"2: unexpected EOF"}},
		"two objects on a line":  {file: `{"key":"H-1","external_id":"a"} {"key":"H-2","external_id":"b"}`, says: []string{"1: want one JSON object on a line"}},
		"learned values": {
			file: "key,external_id,learned\nH-1,C-1,\"{\"\"n\"\": \"\"4\"\"}\"\nH-2,C-2,\nH-3,C-3,{}\n",
			want: "H-1=C-1/n=4 H-2=C-2/ H-3=C-3/none",
		},
		"learned values in JSON":            {file: `{"key":"H-1","external_id":"C-1","learned":{"a":"1","b":"2"}}`, want: "H-1=C-1/a=1 b=2"},
		"a learned value that is a number":  {file: `{"key":"H-1","external_id":"a","learned":{"n":4}}`, says: []string{"1: learned must be a JSON object of texts"}},
		"learned values that are no object": {file: "key,external_id,learned\nH-1,C-1,n=4\n", says: []string{"2: learned must be a JSON object of texts"}},
		"a learned value that is empty":     {file: `{"key":"H-1","external_id":"a","learned":{"n":""}}`, says: []string{"1: learned has an empty name or value"}},
		"a learned value that is too long":  {file: `{"key":"H-1","external_id":"a","learned":{"n":"` + long + `"}}`, says: []string{"1: learned has more than 512 bytes"}},
		"more learned values than are kept": {file: `{"key":"H-1","external_id":"a","learned":{"a":"1","b":"1","c":"1","d":"1","e":"1","f":"1","g":"1","h":"1","i":"1","j":"1","k":"1","l":"1","m":"1","n":"1","o":"1","p":"1","q":"1"}}`, says: []string{"1: learned has 17 names, but at most 16"}},
		"an ETag without quotes":            {file: "key,external_id,etag\nH-1,C-1,v2\n", says: []string{`2: etag has no quotes: write '"v2"'`}},
		"a weak ETag without quotes":        {file: "key,external_id,etag\nH-1,C-1,W/2\n", says: []string{`2: etag has no quotes: write 'W/"2"'`}},
		"an ETag that has a space":          {file: `{"key":"H-1","external_id":"a","etag":"v 2"}`, says: []string{`1: etag is not one: write it with its quotes`}},
		"an id that is a number":            {file: `{"key":"H-1","external_id":7}`, says: []string{"1: cannot unmarshal number"}},
		"more problems than shown":          {file: "key,external_id\n" + strings.Repeat(",\n", 30), says: []string{"2: key is missing", "10 more"}},
	} {
		t.Run(name, func(t *testing.T) {
			refs, problems := parseReferences([]byte(test.file))
			var got []string
			for _, r := range refs {
				learned := r.learned.String()
				if r.learned != nil && learned == "" {
					learned = "none"
				}
				got = append(got, r.key+"="+r.externalID+"/"+r.etag+learned)
			}
			var said []string
			for _, p := range problems {
				said = append(said, p.Error())
			}
			if test.says == nil && (len(problems) > 0 || strings.Join(got, " ") != test.want) {
				t.Errorf("got %q and %q, want %q", got, said, test.want)
			}
			if test.says != nil && len(problems) == 0 {
				t.Error("not refused")
			}
			for _, want := range test.says {
				if !strings.Contains(strings.Join(said, "\n"), want) {
					t.Errorf("said %q, want %q", said, want)
				}
			}
		})
	}
}

func TestRefCommands(t *testing.T) {
	w := newWorld(t)
	w.relayUntil(`SELECT EXISTS (SELECT FROM outbox.sync WHERE backfill_seq IS NULL)`)
	operator, auditor := w.as(roleOperator), w.as(roleAuditor)
	auditor.run("ref", "get", "CourtCalendarSync", "H-1").wants(t, exitFailed, "CourtCalendarSync knows no reference of key H-1")
	auditor.run("ref", "get", "NoSync", "H-1").wants(t, exitFailed, `sync "NoSync" is not registered`)
	operator.run("ref", "set", "CourtCalendarSync", "H-1", "C-1").wants(t, exitUsage, "--reason is required")
	operator.run("ref", "set", "CourtCalendarSync", "H-1", "", "--reason", "r").wants(t, exitUsage, "give the receiver's id, or --unknown")
	operator.run("ref", "set", "CourtCalendarSync", "H-1", "C-1", "--unknown", "--reason", "r").wants(t, exitUsage, "give the receiver's id, or --unknown")
	operator.run("ref", "set", "CourtCalendarSync", "H-1", "--unknown", "--etag", "x", "--reason", "r").wants(t, exitUsage, "--etag and --learned belong to a record")
	operator.run("ref", "set", "CourtCalendarSync", "H-1", "C-1", "--etag", "v2", "--reason", "r").wants(t, exitUsage, `--etag has no quotes: write '"v2"'`)
	operator.run("ref", "set", "CourtCalendarSync", "H-1", "C-1", "--learned", "n=", "--reason", "r").wants(t, exitUsage, "--learned has an empty name or value")
	operator.run("ref", "set", "NoSync", "H-1", "C-1", "--reason", "r").wants(t, exitFailed, `sync "NoSync" is not registered`)
	operator.run("ref", "set", "CourtCalendarSync", "H-1", "C\n1", "--reason", "r").wants(t, exitFailed, "characters that print")
	auditor.run("ref", "set", "CourtCalendarSync", "H-1", "C-1", "--reason", "r").wants(t, exitFailed, "it needs the role outbox_operator")

	operator.run("ref", "set", "CourtCalendarSync", "H-1", "C-1", "--etag", `"7"`, "--actor", "anna", "--reason", "from the list").
		wants(t, 0, "C-1", "the next delivery of key H-1 to CourtCalendarSync uses it")
	rows := decode[[]refRow](t, auditor.run("ref", "get", "CourtCalendarSync", "H-1", "-o", "json").wants(t, 0))
	if len(rows) != 1 || deref(rows[0].ExternalID) != "C-1" || deref(rows[0].ETag) != `"7"` || rows[0].Version != nil {
		t.Errorf("got %+v", rows)
	}
	ask[int64](w, `WITH u AS (UPDATE outbox.external_ref SET learned = '{"versionNumber": "4", "part": "a"}' RETURNING 1) SELECT count(*) FROM u`)
	auditor.run("ref", "get", "CourtCalendarSync", "H-1").wants(t, 0, "part=a versionNumber=4")
	auditor.run("log", "--outcome", "reference_set").wants(t, 0, "/anna", "from the list", "H-1")
	operator.run("ref", "set", "CourtCalendarSync", "H-1", "C-1", "--etag", `W/"8"`, "--reason", "r").
		wants(t, 0, `W/"8"`, "part=a versionNumber=4", "CourtCalendarSync uses it\n")
	operator.run("ref", "set", "CourtCalendarSync", "H-1", "C-1", "--learned", "versionNumber=5", "--reason", "r").
		wants(t, 0, "versionNumber=5", `CourtCalendarSync uses it, and forgets ETag (was W/"8"), part (was a)`)
	operator.run("ref", "set", "CourtCalendarSync", "H-1", "C-2", "--reason", "r").wants(t, 0, "and forgets versionNumber (was 5)")
	operator.run("ref", "set", "CourtCalendarSync", "H-1", "C-2", "--learned", "a=1", "--learned", "b=2,3", "--reason", "r").wants(t, 0, "a=1 b=2,3")
	operator.run("ref", "set", "CourtCalendarSync", "H-1", "--unknown", "--reason", "deleted there").
		wants(t, 0, "H-1", "and forgets external id (was C-2), a (was 1), b (was 2,3)")

	file := filepath.Join(t.TempDir(), "court.csv")
	writeFile(t, file, "key,external_id\nH-1,C-9\nH-2,\nH-3,C-3\n")
	operator.run("ref", "import", "CourtCalendarSync", file, "--reason", "r").wants(t, exitUsage, "court.csv:3: external_id is missing", "nothing was changed")
	writeFile(t, file, "key,external_id\nH-1,C-9\nH-2,C-2\nH-3,C-3\n")
	operator.run("ref", "import", "CourtCalendarSync", file).wants(t, exitUsage, "--reason is required")
	operator.run("ref", "import", "NoSync", file, "--dry-run").wants(t, exitFailed, `nothing was changed: sync "NoSync" is not registered`)
	operator.run("ref", "import", "CourtCalendarSync", "no.csv", "--dry-run").wants(t, exitFailed, "no.csv")
	operator.run("ref", "import", "CourtCalendarSync", file, "--dry-run").wants(t, 0, "C-9", "3 references would be set; nothing was changed")
	if got := ask[string](w, `SELECT string_agg(key || coalesce(external_id, '-'), ' ') FROM outbox.external_ref`); got != "H-1-" {
		t.Errorf("after the dry run: %s", got)
	}
	operator.run("ref", "import", "CourtCalendarSync", file, "--reason", "the court's list").wants(t, 0, "3 references set")
	operator.stdin = `{"key":"H-3","external_id":"C-33"}`
	imported := decode[[]importRow](t, operator.run("ref", "import", "CourtCalendarSync", "-", "--reason", "corrected", "-o", "json").wants(t, 0))
	operator.stdin = `{"key":"H-3","external_id":"C-33","learned":{"n":"1"}}`
	operator.run("ref", "import", "CourtCalendarSync", "-", "--reason", "r").wants(t, 0, "n=1")
	operator.stdin = `{"key":"H-3","external_id":"C-33","learned":{}}`
	operator.run("ref", "import", "CourtCalendarSync", "-", "--reason", "r").wants(t, 0, "n (was 1)")
	if len(imported) != 1 || deref(imported[0].Before) != "C-3" || imported[0].ExternalID != "C-33" {
		t.Errorf("got %+v", imported)
	}
	if got := ask[string](w, `SELECT string_agg(key || coalesce(external_id, '-'), ' ' ORDER BY key) FROM outbox.external_ref`); got != "H-1C-9 H-2C-2 H-3C-33" {
		t.Errorf("after the imports: %s", got)
	}
	if n := ask[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'reference_set'`); n != 12 {
		t.Errorf("%d rows of the log, want 12", n)
	}
}

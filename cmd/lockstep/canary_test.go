package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
	"github.com/hms-mkt/lockstep/outbox"
)

// TestNoSecretAndNoPartyNameIsWritten puts a canary into every secret of a
// configuration and into everything personal of an event. It sends them to receivers
// that repeat their requests in every way that HTTP offers. Then it searches everything
// that the program writes: logs, metrics, health, the output of each command, the
// errors of configurations, and every column of the database. The exceptions are the
// event's payload and headers, which its writer wrote, and the body that is kept for
// the next attempt.
func TestNoSecretAndNoPartyNameIsWritten(t *testing.T) {
	c := newCanaryWorld(t)
	program := program(t)
	events := c.emitAll()

	relay := c.relay(program, "text")
	c.until(c.settled(), relay)
	address := relay.address(t)
	c.lookAtHTTP(address)
	c.lookAtDatabase()
	c.lookAtCommands(program, address, events)
	relay.stop(t)
	c.look("log as text", relay.String())

	for _, key := range []string{"H-1", "H-2", "H-7"} {
		c.run("requeue", "--key", key).wants(t, 0)
	}
	relay = c.relay(program, "json")
	c.until(c.settled(), relay)
	c.lookAtHTTP(relay.address(t))
	c.lookAtDatabase()
	relay.stop(t)
	c.look("log as JSON", relay.String())

	c.lookAtMistakes()
	c.lookAtAppend()

	if c.repeater.most > repeated {
		t.Errorf("a request holds %d texts to be repeated: raise the number of events", c.repeater.most)
	}
	if missing := c.repeater.missing(); !slices.Equal(missing, []string{"database password", "secret in a condition", "webhook secret", "webhook key", "HMAC secret"}) {
		t.Errorf("never sent to a receiver: %q: searching for these proves nothing", missing)
	}
}

// canaryWorld is the world with the canaries in it.
type canaryWorld struct {
	*world
	canaries     []canary
	all, secrets *finder
	repeater     *repeater
	targets      []target
	found        map[string]bool
	activity     map[string]bool // what the program's sessions were seen to do
}

func newCanaryWorld(t *testing.T) *canaryWorld {
	t.Helper()
	c := &canaryWorld{world: newWorld(t), found: map[string]bool{}, activity: map[string]bool{}}
	for _, name := range []string{
		"database password", "bearer token", "basic password", "API key", "client secret", "access token",
		"header", "header from a file", "URL query", "constant", "default value", "secret in a condition", "webhook secret", "webhook key", "SOAP password",
		"user password", "HMAC secret",
	} {
		c.canaries = append(c.canaries, canary{name: name, core: word(letters+digits, 32), secret: true})
	}
	for _, name := range []string{"party name", "notes", "remarks", "person in a list", "member name", "tenant"} {
		c.canaries = append(c.canaries, canary{name: name, core: word(letters, 20)})
	}
	c.canaries = append(c.canaries, canary{name: "case number", core: word(digits, 18)})
	c.all = newFinder(c.canaries...)
	c.secrets = newFinder(slices.DeleteFunc(slices.Clone(c.canaries), func(b canary) bool { return !b.secret })...)
	c.repeater = newRepeater(t, c.canaries)
	c.logIn()
	maps.Copy(c.env, map[string]string{
		"BEARER": c.core("bearer token"), "PASSWORD": c.core("basic password") + `"é\`, "API_KEY": c.core("API key"),
		"CLIENT_SECRET": c.core("client secret") + `"&é`, "HEADER": c.core("header"), "QUERY": c.core("URL query"),
		"CONSTANT": c.core("constant") + `"é`, "DEFAULT": c.core("default value"), "CONDITION": c.core("secret in a condition"),
		"HOOK_SECRET":   "whsec_" + base64.StdEncoding.EncodeToString([]byte(c.core("webhook secret"))),
		"SOAP_PASSWORD": c.core("SOAP password") + "<&é",
		"USER_PASSWORD": c.core("user password") + `"&é`, "HMAC_SECRET": c.core("HMAC secret"),
		"HOOK_KEY": "whsk_" + base64.StdEncoding.EncodeToString([]byte(c.core("webhook key"))),
	})
	c.writeConfig()
	return c
}

// core returns the text of the canary of that name.
func (c *canaryWorld) core(name string) string {
	c.t.Helper()
	i := slices.IndexFunc(c.canaries, func(b canary) bool { return b.name == name })
	if i < 0 {
		c.t.Fatalf("no canary is named %s", name)
	}
	return c.canaries[i].core
}

// logIn gives the program its own login, whose password is a canary.
func (c *canaryWorld) logIn() {
	c.t.Helper()
	u, err := url.Parse(pgtest.AsRole(c.t, c.env["DATABASE_URL"], roleRelay))
	if err != nil {
		c.t.Fatal(err)
	}
	password := c.core("database password") + `@/"é`
	login := pgx.Identifier{u.User.Username()}.Sanitize()
	for _, statement := range []string{
		"GRANT " + roleOperator + ", " + roleAuditor + " TO " + login,
		"ALTER ROLE " + login + " PASSWORD '" + password + "'",
	} {
		if _, err := c.conn.Exec(c.t.Context(), statement); err != nil {
			c.t.Fatal(err)
		}
	}
	u.User = url.UserPassword(u.User.Username(), password)
	c.env["DATABASE_URL"] = u.String()
}

// target is one sync, and how its receiver answers.
type target struct {
	name       string
	adapter    string // its section
	sync       string // further keys of the sync; default: carries
	answer     answer // nil for one that is never asked
	repeatsAll bool   // gets as many events as it takes to repeat everything in every spelling
}

// carries sends everything personal and the secrets of the file.
const carries = `mapping: {party.name: party.name, notes: notes, remarks: remarks, people: people, number: number, members: members, broken: broken,
      secret: {const: {deep: ["${CONSTANT}"]}}, absent: {to: absent, default: "${DEFAULT}"}}
    compute: {tenant: headers.tenant}`

// writeConfig writes the configuration. It has a sync for each kind of adapter, for
// each kind of auth, and for each way in which a receiver refuses, cuts or misses a
// request.
func (c *canaryWorld) writeConfig() {
	c.t.Helper()
	dir, p := c.t.TempDir(), c.repeater
	secretFile, authority := filepath.Join(dir, "header.secret"), filepath.Join(dir, "ca.pem")
	writeFile(c.t, secretFile, c.core("header from a file")+"\n")
	stranger := p.secure(c.t, func(*httptest.Server) {})
	strict := p.secure(c.t, func(s *httptest.Server) {
		s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12}
	})
	writeFile(c.t, authority, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: strict.Certificate().Raw})))
	closed := httptest.NewServer(nil)
	closed.Close()

	add := func(p target) { c.targets = append(c.targets, p) }
	const bearer = `auth: {kind: bearer, token: "${BEARER}"}`
	section := func(kind, base, name, more string) string {
		return fmt.Sprintf(`{kind: %s, url: "%s/%s/{fields.notes}?of=${QUERY}", timeout: 2s,
      headers: {X-Agency: "${HEADER}", X-File: "${file:%s}", X-Remarks: "{fields.remarks}"}, %s}`, kind, base, name, secretFile, more)
	}
	rest := func(base, name, more string) string { return section("rest", base, name, "external_id: /id, "+more) }
	oauth := func(endpoint string) string {
		return fmt.Sprintf(`auth: {kind: oauth2_client_credentials, token_url: "%s/%s", client_id: agency, client_secret: "${CLIENT_SECRET}"}`, p.URL, endpoint)
	}
	password := func(endpoint string) string {
		return fmt.Sprintf(`auth: {kind: oauth2_password, token_url: "%s/%s", client_id: agency, username: clerk, password: "${USER_PASSWORD}",
      second: {kind: hmac, header: X-Signature, secret: "${HMAC_SECRET}", sign: "{method}{path}{body}", value: "agency {signature}"}}`, p.URL, endpoint)
	}
	p.answers["token"] = issues(c.core("access token"))
	add(target{name: "accepted", adapter: rest(p.URL, "accepted", bearer), answer: accepts})
	for name, auth := range map[string]string{
		"bearer": bearer, "none": `auth: {kind: none}`, "oauth": oauth("token"), "password": password("token"),
		"basic":   `auth: {kind: basic, username: agency, password: "${PASSWORD}"}`,
		"api-key": `auth: {kind: api_key, key: "${API_KEY}"}`,
	} {
		name = "rest-" + name
		add(target{name: name, adapter: rest(p.URL, name, auth), answer: objects(400), repeatsAll: true})
	}
	for name, a := range map[string]answer{
		"302": objects(302), "401": objects(401), "403": objects(403), "409": objects(409), "422": objects(422), "429": objects(429),
		"500": objects(500), "503": objects(503), "503-later": objects(503, "Retry-After: 1"),
		"hangs-up":    says(""),
		"no-http":     says("SORRY % SORRY\r\n\r\n"),
		"bad-status":  says("HTTP/1.1 % %\r\n\r\n"),
		"bad-header":  says("HTTP/1.1 200 OK\r\n%\r\n % \x00: %\r\n\r\n"),
		"bad-length":  says("HTTP/1.1 200 OK\r\nContent-Length: %\r\n\r\n"),
		"bad-coding":  says("HTTP/1.1 200 OK\r\nTransfer-Encoding: %\r\n\r\n%"),
		"bad-gzip":    says("HTTP/1.1 500 Oops\r\nContent-Encoding: gzip\r\nContent-Length: 9999\r\n\r\n%"),
		"bad-upgrade": says("HTTP/1.1 101 %\r\nConnection: upgrade\r\nUpgrade: %\r\n\r\n%"),
		"cut":         says("HTTP/1.1 201 Created\r\nContent-Length: 9999\r\n\r\n{\"id\": \"%"),
	} {
		name = "rest-" + name
		add(target{name: name, adapter: rest(p.URL, name, bearer), answer: a})
	}
	for name, payload := range map[string]string{
		"webhook": "standard", "webhook-fields": "fields",
		"webhook-binary": "cloudevents_binary, source: /agency", "webhook-structured": "cloudevents_structured, source: /agency",
	} {
		more := `secrets: ["${HOOK_SECRET}", "${HOOK_KEY}"], payload: ` + payload + ", " + bearer
		add(target{name: name, adapter: section("webhook", p.URL, name, more), answer: objects(400), repeatsAll: name == "webhook"})
	}
	soap := func(name, more string) string {
		return section("soap", p.URL, name, bearer+`, namespaces: {cal: "urn:example:calendar"}, action: "urn:example:calendar/{fields.remarks}", `+more)
	}
	const body = `body: '<cal:Notify of="{fields.notes}"><cal:absent>{fields.absent}</cal:absent><cal:number>{fields.number}</cal:number>
      <cal:party lockstep:each="fields.people">{item.name}</cal:party><cal:party>{fields.party.name}</cal:party><cal:x lockstep:each="fields.secret.deep">{item}</cal:x></cal:Notify>'`
	for version, password := range map[string]string{"1.1": "text", "1.2": "digest"} {
		more := fmt.Sprintf(`version: %q, security: {kind: username_token, username: agency, password: "${SOAP_PASSWORD}", password_type: %s}, addressing: {}, %s`, version, password, body)
		name := "soap-" + version
		add(target{name: name, adapter: soap(name, more), answer: faults, repeatsAll: password == "text"})
		add(target{name: name + "-json", adapter: soap(name+"-json", more), answer: objects(500)})
		add(target{name: name + "-no-http", adapter: soap(name+"-no-http", more), answer: says("SORRY %\r\n\r\n")})
		add(target{name: name + "-bad-xml", adapter: soap(name+"-bad-xml", more), answer: says("HTTP/1.1 200 OK\r\nContent-Type: text/xml; charset=%\r\nConnection: close\r\n\r\n<!DOCTYPE %><%>&%;</%>")})
	}
	add(target{name: "soap-bad-value", adapter: soap("soap-bad-value", `body: '<cal:Notify>{fields.broken}</cal:Notify>'`)})
	trusts := fmt.Sprintf(", tls: {ca_file: %s}", authority)
	for name, adapter := range map[string]string{
		"tls-stranger":   rest(stranger.URL, "tls-stranger", bearer),
		"tls-strict":     rest(strict.URL, "tls-strict", bearer+trusts),
		"tls-not-spoken": rest(strings.Replace(p.URL, "http:", "https:", 1), "tls-not-spoken", bearer),
		"nobody-there":   rest(closed.URL, "nobody-there", bearer),
		"no-such-host":   rest("http://no-such-host.invalid", "no-such-host", bearer),
		"host-refused":   rest("https://{fields.remarks}.invalid", "x", bearer+`, allow: {hosts: [elsewhere.invalid]}`),
		"host-unknown":   rest("https://{fields.remarks}.invalid", "x", bearer+`, allow: {hosts: ["*.invalid"]}`),
		"bad-url":        rest(p.URL, "{fields.broken}", bearer),
		"bad-value":      rest(p.URL, "bad-value", bearer+`, routes: {"canary:*": {url: "`+p.URL+`/{fields.absent.inner}"}}`),
		"bad-field":      strings.Replace(rest(p.URL, "bad-field", bearer), "{fields.remarks}", "{fields.broken}", 1),
	} {
		add(target{name: name, adapter: adapter})
	}
	for i, spell := range spellings() {
		name := fmt.Sprint("token-refused-", i)
		p.answers[name+"-endpoint"] = func(w *bufio.Writer, said material) {
			said.turn, said.words = i, spell(c.core("client secret"))
			objects(400)(w, said)
		}
		add(target{name: name, adapter: rest(p.URL, name, oauth(name+"-endpoint"))})
		name = fmt.Sprint("password-refused-", i)
		p.answers[name+"-endpoint"] = func(w *bufio.Writer, said material) {
			said.turn, said.words = i, spell(c.core("user password"))
			objects(400)(w, said)
		}
		add(target{name: name, adapter: rest(p.URL, name, password(name+"-endpoint"))})
	}
	for name, a := range map[string]answer{
		"repeated": objects(401), "moved": objects(302), "empty": says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
		"unreadable": says("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n% % % % %"),
		"broken":     issues(c.core("access token") + "\n"), "hangs-up": says(""), "no-http": says("SORRY %\r\n\r\n"),
	} {
		name = "token-" + name
		p.answers[name+"-endpoint"] = a
		add(target{name: name, adapter: rest(p.URL, name, oauth(name+"-endpoint"))})
	}
	for name, sync := range map[string]string{
		"mapping-missing": `mapping: {nowhere: x}`,
		"mapping-time":    `mapping: {notes: {to: x, time: {format: RFC3339}}}`,
		"mapping-values":  `mapping: {notes: {to: x, values: {A: B}}}`,
		"mapping-object":  `mapping: {people: {to: x, values: {A: B}}}`,
		"mapping-inside":  `mapping: {notes.inner: x}`,
		"compute-int":     `compute: {x: int(event.notes)}`,
		"compute-float":   `compute: {x: float(event.notes)}`,
		"compute-add":     `compute: {x: event.notes + 1}`,
		"compute-date":    `compute: {x: date(event.notes)}`,
		"compute-span":    `compute: {x: duration(event.notes)}`,
		"compute-zone":    `compute: {x: timezone(event.notes)}`,
		"compute-index":   `compute: {x: "event.people[99]"}`,
		"compute-member":  `compute: {x: event.notes.inner.more}`,
		"compute-base64":  `compute: {x: fromBase64(event.notes)}`,
		"compute-matches": `compute: {x: event.notes matches event.broken}`,
		"compute-call":    `compute: {x: 'map(event.people, int(#.name))'}`,
		"when-int":        `when: int(event.notes) > 1`,
		"when-text":       `when: event.notes`,
		"when-secret":     `when: event.notes == "${CONDITION}"`,
	} {
		add(target{name: name, adapter: fmt.Sprintf(`{kind: rest, url: "%s/%s?of=${QUERY}", %s}`, p.URL, name, bearer), sync: sync})
	}

	yaml := "database: {url: \"${DATABASE_URL}\"}\nrelay: {poll: 1s, drain: 10s, name: relay-1}\nlisten: 127.0.0.1:0\nsyncs:\n"
	for _, target := range c.targets {
		p.answers[target.name] = target.answer
		sync, events := target.sync, "canary:all"
		if sync == "" {
			sync = carries
		}
		if target.repeatsAll {
			events = "canary:*"
		}
		yaml += fmt.Sprintf("  - name: %s\n    event: %q\n    retry: {initial: 10ms, max: 50ms, attempts: 2}\n    adapter: %s\n    %s\n", target.name, events, target.adapter, sync)
	}
	c.configure(yaml)
}

// payload is an event's, with everything personal in it.
func (c *canaryWorld) payload() string {
	c.t.Helper()
	b, err := json.Marshal(map[string]any{
		"party": map[string]any{"name": c.core("party name") + ` Núñez "Zed"`},
		"notes": c.core("notes") + " & <b>", "remarks": c.core("remarks"), "number": c.core("case number"),
		"people":  []any{map[string]any{"name": c.core("person in a list")}},
		"members": map[string]any{c.core("member name") + " Núñez": map[string]any{"role": "defendant"}},
		"broken":  c.core("notes") + "\n\u0001([",
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

// repeated is how many texts of one request are repeated at most.
const repeated = 15

// emitAll writes events, enough for the targets that repeat all, and returns the ids of some.
func (c *canaryWorld) emitAll() []string {
	c.t.Helper()
	const emit = `WITH written AS (
    INSERT INTO outbox.event (type, key, payload, headers)
    SELECT CASE WHEN n <= 3 THEN 'canary:all' ELSE 'canary:echo' END, 'H-' || n, $1::jsonb, jsonb_build_object('tenant', $2::text)
      FROM generate_series(1, $3::int) AS n
    RETURNING id, seq)
SELECT (array_agg(id::text ORDER BY seq))[1:6] FROM written`
	return ask[[]string](c.world, emit, c.payload(), c.core("tenant"), repeated*len(spellings()))
}

// settled is true once every sync has tried, and the targets that repeat all are done.
func (c *canaryWorld) settled() string {
	var all, repeatsAll []string
	for _, p := range c.targets {
		all = append(all, "('"+p.name+"')")
		if p.repeatsAll {
			repeatsAll = append(repeatsAll, "'"+p.name+"'")
		}
	}
	return `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE sync IN (` + strings.Join(repeatsAll, ", ") + `) AND state <> 'failed')
   AND NOT EXISTS (SELECT FROM (VALUES ` + strings.Join(all, ", ") + `) AS p (name)
                    WHERE NOT EXISTS (SELECT FROM outbox.delivery_log WHERE sync = p.name AND outcome <> 'requeued')
                      AND NOT EXISTS (SELECT FROM outbox.sync WHERE name = p.name AND hold_kind <> 'backfill'))`
}

// until waits for a condition, and watches what the program's sessions do.
func (c *canaryWorld) until(condition string, relay *relayRun) {
	c.t.Helper()
	waiting.For(c.t, 3*waitTimeout, condition, func() bool { // of dozens of syncs, some of which are throttled
		if ask[bool](c.world, condition) {
			return true
		}
		for _, text := range ask[[]string](c.world, `SELECT array_agg(application_name || ': ' || query) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`) {
			c.activity[text] = true
		}
		return false
	}, func() string {
		return ask[string](c.world, `SELECT string_agg(s::text, E'\n') FROM outbox.status AS s`)
	}, relay.String)
}

// look searches one place.
func (c *canaryWorld) look(place, text string) { c.search(c.all, place, text) }

func (c *canaryWorld) search(canaries *finder, place, text string) {
	c.t.Helper()
	for s, around := range canaries.find(text) {
		if once := place + s.name + s.form; !c.found[once] {
			c.found[once] = true
			c.t.Errorf("%s: the %s is in it, %s: …%s…", place, s.name, s.form, around)
		}
	}
}

func (c *canaryWorld) lookAtHTTP(address string) {
	c.t.Helper()
	for _, path := range []string{
		"/metrics", "/readyz", "/livez", "/healthz", "/", "/changes", "/failed", "/blocked", "/sync/rest-422", "/key/H-1", "/key/H-2", "/key/H-50", "/key/H-100",
	} {
		status, text := get(c.t, "http://"+address+path)
		if strings.HasPrefix(path, "/key/") && status != 200 {
			c.t.Errorf("%s is %d: searching it proves nothing", path, status)
		}
		c.look(path, text)
	}
}

// lookAtDatabase searches each column of everything in the schema, what
// why_not_delivered says, and what the program's sessions did.
func (c *canaryWorld) lookAtDatabase() {
	c.t.Helper()
	// The operator's URL or limits.per makes the scope from an event: here, the host comes from a field.
	unsearched := map[string]string{"event": " - 'payload' - 'headers'", "delivery": " - 'body'", "lane": " - 'scope'"}
	relations := ask[[]string](c.world, `SELECT array_agg(relname::text) FROM pg_class
 WHERE relnamespace = 'outbox'::regnamespace AND relkind IN ('r', 'p', 'v', 'm') AND NOT relispartition`)
	for _, relation := range relations {
		rows := ask[[]string](c.world, `SELECT coalesce(array_agg((to_jsonb(r)`+unsearched[relation]+`)::text), '{}') FROM outbox.`+pgx.Identifier{relation}.Sanitize()+` AS r`)
		for _, row := range rows {
			columns := map[string]json.RawMessage{}
			if err := json.Unmarshal([]byte(row), &columns); err != nil {
				c.t.Fatal(err)
			}
			for column, value := range columns {
				c.look("outbox."+relation+"."+column, string(value))
			}
		}
	}
	for _, relation := range []string{"delivery", "delivery_log", "sync", "external_ref", "status", "failed"} {
		if n := ask[int](c.world, `SELECT count(*) FROM outbox.`+relation); !slices.Contains(relations, relation) || n == 0 {
			c.t.Errorf("outbox.%s has %d rows: searching it proves nothing", relation, n)
		}
	}
	for _, sentence := range ask[[]string](c.world, `SELECT array_agg(w) FROM outbox.event AS e, outbox.why_not_delivered(e.id) AS w WHERE e.key IN ('H-1', 'H-2', 'H-50', 'H-100')`) {
		c.look("why_not_delivered", sentence)
	}
	if len(c.activity) == 0 {
		c.t.Error("no session of the program was seen")
	}
	for text := range c.activity {
		c.look("pg_stat_activity", text)
	}
}

// lookAtCommands runs every command, in each format.
func (c *canaryWorld) lookAtCommands(program, address string, events []string) {
	c.t.Helper()
	// A new command needs a line here. An empty line is for a command that another
	// place tries, or that only has subcommands.
	lines := map[string][]string{
		"":        {""},
		"run":     {},
		"console": {}, // its pages are those of run
		"config":  {""},
		"migrate": {""},
		"ref":     {""},
		"sync":    {""},

		"changes":        {"", "--limit 1"},
		"config init":    {"", "--profile graph"},
		"config check":   {""},
		"config print":   {"", "--defaults"},
		"config schema":  {""},
		"discard":        {"--all --dry-run", "--event " + events[4] + " --reason entered-by-hand"},
		"doctor":         {""},
		"explain":        {events[0], events[5]},
		"healthcheck":    {"", "--url http://" + address + "/readyz", "--url http://user:x@127.0.0.1:1"},
		"log":            {"--limit 100000", "--key H-1", "--event " + events[0]},
		"map":            {}, // below
		"migrate down":   {""},
		"migrate sql":    {""},
		"migrate status": {""},
		"migrate up":     {"", "--set scheduling"},
		"pause":          {"rest-422 --reason maintenance"},
		"ref get":        {"rest-409 H-1"},
		"ref import":     {"rest-409 -"}, // from an empty file
		"reconcile":      {"rest-409", "rest-409 --from 2027-03-01 --output csv"},
		"ref set":        {"rest-409 H-1 CAL-1 --reason entered-by-hand"},
		"repair":         {"--dry-run", "--reason entered-by-hand"},
		"replay":         {"--all --dry-run", "--event " + events[0] + " --reason lost"},
		"requeue":        {"--all --dry-run", "--event " + events[0]},
		"resume":         {"rest-422", "rest-401"},
		"retire":         {"rest-302 --reason gone"},
		"status":         {"", "--max-lag 1ms"},
		"sync apply":     {"--dry-run", "rest-302"},
		"sync list":      {""},
		"top":            {""},
		"version":        {""},

		"help":                  {"", "run"},
		"completion":            {""},
		"completion bash":       {""},
		"completion fish":       {""},
		"completion powershell": {""},
		"completion zsh":        {""},
	}
	root := (&app{}).root()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	var visit func(*cobra.Command)
	visit = func(command *cobra.Command) {
		path := strings.TrimSpace(strings.TrimPrefix(command.CommandPath(), "lockstep"))
		if _, ok := lines[path]; !ok {
			c.t.Errorf("lockstep %s is not searched: add it", path)
		}
		for _, sub := range command.Commands() {
			visit(sub)
		}
	}
	visit(root)
	for path, arguments := range lines {
		for i, more := range arguments {
			for _, format := range []string{"table", "json", "jsonl"} {
				args := append(strings.Fields(path+" "+more), "--output", format, "--log-level", "debug")
				run := c.run // in this process, which is quicker
				if format == "table" && i == 0 {
					run = func(args ...string) result { return c.execute(program, args...) }
				}
				r := run(args...)
				c.look("lockstep "+strings.Join(args, " "), r.stdout+r.stderr)
			}
		}
	}
	for i, p := range c.targets {
		if !p.repeatsAll && (strings.HasPrefix(p.name, "rest-") || strings.HasPrefix(p.name, "token-")) {
			continue // they differ in the answer, which map does not ask for
		}
		c.stdin = c.payload()
		args := [][]string{{"map", p.name, events[0]}, {"map", p.name, "-", "--type", "canary:all", "--output", "json"}}[i%2]
		r := c.run(args...)
		c.search(c.secrets, "lockstep "+strings.Join(args, " "), r.stdout+r.stderr) // it shows payloads
	}
	for _, tail := range []string{"@127.0.0.1:1/agency", "@[bad/agency", "@127.0.0.1:port/agency", "@no-such-host.invalid/agency", "@127.0.0.1:1/agency?sslmode=nonsense", "@" + c.server() + "/agency"} {
		for _, args := range [][]string{{"status"}, {"migrate", "status"}, {"run"}} {
			if args[0] == "run" && strings.Contains(tail, "127.0.0.1:1/") || strings.Contains(tail, "host") {
				continue // it would wait
			}
			args = append(args, "--database-url", "postgres://relay:"+c.core("database password")+tail)
			r := c.run(args...)
			c.look("lockstep "+strings.Join(args[:1], " ")+" with "+tail, r.stdout+r.stderr)
		}
	}
}

// server is the host of the database.
func (c *canaryWorld) server() string {
	u, err := url.Parse(c.env["DATABASE_URL"])
	if err != nil {
		c.t.Fatal("the database URL cannot be parsed")
	}
	return u.Host
}

// lookAtMistakes writes secrets into places where they do not belong.
func (c *canaryWorld) lookAtMistakes() {
	c.t.Helper()
	literal := c.core("API key")
	adapter := func(more string) string {
		return "syncs: [{name: S, event: \"a:*\", adapter: {kind: rest, url: \"https://court.example\", " + more + "}}]\n"
	}
	sync := func(more string) string {
		return "syncs: [{name: S, event: \"a:*\", adapter: {kind: rest, url: \"https://court.example\"}, " + more + "}]\n"
	}
	mistakes := []string{
		"password: " + literal + "\n", "database: {password: " + literal + "}\n", "database: {url: [" + literal + "]}\n",
		"database: {url: \"postgres://relay:" + literal + "@[bad/agency\"}\n", "database: {url: \"relay:" + literal + "@host\"}\n",
		"database: {url: \"host=h password='" + literal + "\"}\n", "database: {url: \"${BEARER}\"}\n", "database: \"${BEARER}\"\n",
		"database: {url: \"postgres://h/d\", max_connections: \"${BEARER}\"}\n",
		"relay: {workers: \"${BEARER}\", poll: \"${BEARER}\", lease: \"${BEARER}\", drain: \"${BEARER}\"}\n", "listen: \"${BEARER}\"\n",
		"retention: {events: \"${BEARER}\", log: \"${BEARER}\"}\n", "syncs: \"${BEARER}\"\n", "syncs: [\"${BEARER}\"]\n",
		"syncs: [{name: \"${BEARER} \", event: \"${BEARER} \", adapter: \"${BEARER}\"}]\n",
		sync(`from: "${BEARER}", on_failed: "${BEARER}", notify: "${BEARER}"`), sync(`retry: {initial: "${BEARER}", jitter: "${BEARER}", attempts: "${BEARER}"}`),
		sync(`limits: {concurrency: "${BEARER}", rate: "${BEARER}"}`), sync(`when: "${BEARER}"`), sync(`when: "event.x == '${BEARER}"`),
		sync(`when: "1 + '${BEARER}'"`), sync(`compute: {x: "${BEARER}"}`), sync(`compute: {x: "'${BEARER}' + ${BEARER}"}`),
		sync(`mapping: {a: {to: x, time: {zone: "${BEARER}", format: "${BEARER}"}}}`), sync(`mapping: {a: "${BEARER}..x", b: {to: ".${BEARER}"}}`),
		sync(`mapping: {a: {to: x, const: "${BEARER}"}, b: {const: "${BEARER}", default: "${BEARER}"}}`), sync(`mapping: "${BEARER}"`),
		adapter(`auth: {kind: "${BEARER}"}`), adapter(`auth: "${BEARER}"`), adapter(`auth: {kind: bearer, tokem: ` + literal + `}`),
		adapter(`auth: {kind: bearer, token: "${BEARER}", password: ` + literal + `}`), adapter(`auth: {kind: bearer, token: "` + literal + `\n"}`),
		adapter(`auth: {kind: basic, username: "${BEARER}:x", password: "${BEARER}"}`), adapter(`auth: {kind: api_key, header: "${BEARER} ", key: ` + literal + `}`),
		adapter(`auth: {kind: bearer, token: [` + literal + `]}`), adapter(`auth: {kind: bearer, token: {` + literal + `: x}}`),
		adapter(`auth: {kind: oauth2_client_credentials, client_id: a, client_secret: "${BEARER}", token_url: "https://a:` + literal + `@court.example"}`),
		adapter(`auth: {kind: oauth2_client_credentials, client_id: a, client_secret: "${BEARER}", token_url: "${BEARER}"}`),
		adapter(`headers: {X-A: "` + literal + ` {x}"}`), adapter(`headers: {X-A: "` + literal + ` {"}`), adapter(`headers: {X-A: "` + literal + `\u0001"}`),
		adapter(`headers: {X-A: "{${BEARER}}"}`), adapter(`headers: {"X A": ` + literal + `, Host: ` + literal + `}`), adapter(`headers: [` + literal + `]`),
		adapter(`headers: "${BEARER}"`), adapter(`headers: {X-A: ["${BEARER}"]}`), adapter(`timeout: "${BEARER}"`), adapter(`method: "${BEARER}"`),
		adapter(`tls: {ca_file: "${BEARER}", cert_file: "${BEARER}", key_file: "${BEARER}"}`), adapter(`tls: {ca_file: "${file:` + c.env["LOCKSTEP_CONFIG"] + `}"}`),
		adapter(`routes: {"a:*": {method: "${BEARER}", url: "${BEARER}"}}`), adapter(`routes: "${BEARER}"`), adapter(`external_id: "${BEARER}"`),
		adapter(`outcomes: {409: "${BEARER}"}`), adapter(`outcomes: {"${BEARER}": delivered}`), adapter(`if_match: "${BEARER}"`),
		strings.Replace(adapter("method: POST"), "https://court", "https://agency:"+literal+"@court", 1),
		strings.Replace(adapter("method: POST"), "https://court", "https://agency:"+literal+"@[court", 1),
		strings.Replace(adapter("method: POST"), "https://court", "https://${BEARER}@court", 1),
		strings.Replace(adapter("method: POST"), "https://court.example", "${BEARER}", 1),
		strings.Replace(adapter("method: POST"), "https://court.example", "https://court.example/{${BEARER}}?x={y}", 1),
		strings.Replace(adapter("method: POST"), "kind: rest", `kind: "${BEARER}"`, 1),
		strings.Replace(adapter(`secrets: ["${BEARER}"]`), "rest", "webhook", 1), strings.Replace(adapter(`secrets: [`+literal+`, whsec_`+literal+`]`), "rest", "webhook", 1),
		strings.Replace(adapter(`secrets: ["${HOOK_SECRET}", "${HOOK_SECRET}x"], payload: "${BEARER}"`), "rest", "webhook", 1),
		strings.Replace(adapter(`secrets: "${HOOK_SECRET}", source: "${BEARER}"`), "rest", "webhook", 1), strings.Replace(adapter(`secrets: [`+literal+`], types: "${BEARER}"`), "rest", "webhook", 1),
		strings.Replace(adapter(`body: "<a>${BEARER}"`), "rest", "soap", 1), strings.Replace(adapter(`body: "<a>{${BEARER}}</a>", header: "<k>`+literal+`</k>`+literal+`<l>"`), "rest", "soap", 1), strings.Replace(adapter(`body: "<a of='`+literal+`'>`+literal+` & `+literal+`</a>"`), "rest", "soap", 1),
		strings.Replace(adapter(`body: "<x:a/>", namespaces: {"${BEARER}": "${BEARER}"}, version: "${BEARER}", external_id: "${BEARER}/${BEARER}:x"`), "rest", "soap", 1),
		strings.Replace(adapter(`body: "<a/>", security: {kind: username_token, password: "${BEARER}", password_type: "${BEARER}", timestamp: "${BEARER}"}`), "rest", "soap", 1),
		strings.Replace(adapter(`body: "<a/>", security: {username: a, password: `+literal+`}, answers: [{code: "${BEARER}", class: "${BEARER}"}, "${BEARER}"]`), "rest", "soap", 1),
		// Not YAML.
		"token: \"" + literal + "\n", "token: '" + literal + "\n", "token: " + literal + ": x\n", "token: [" + literal + "\n", "token: {" + literal + "\n",
		"token: " + literal + "\n token: x\n", "token: \"${BEARER\"\n", "token: ${BEARER}\n  ${BEARER}: x\n", "token: {a: ${BEARER}}\n", "\ttoken: " + literal + "\n",
		"token: &" + literal + " x\n", "token: *" + literal + "\n", "token: !" + literal + " x\n", "token: |" + literal + "\n", "token: \"\\" + literal + "\"\n",
		"- " + literal + "\ntoken: x\n", "a: 1\n---\ntoken: " + literal + "\n", literal + "\n", "token: \"${file:/" + "nowhere}\"\n", "%" + literal + "\n", "@" + literal + "\n",
		"token: \"" + literal + "\" " + literal + "\n", "token: " + literal + "\n" + literal + "\n", "{\"token\": \"" + literal + "\", }}\n",
	}
	for _, mistake := range mistakes {
		c.configure(mistake)
		for _, args := range [][]string{{"config", "check"}, {"config", "check", "-o", "json"}, {"config", "print"}, {"run"}, {"sync", "list"}, {"map", "S", "-"}} {
			r := c.run(args...)
			if args[0] == "config" && args[1] == "check" && r.code == 0 {
				c.t.Errorf("%s accepts: %s", strings.Join(args, " "), mistake)
			}
			c.look("lockstep "+strings.Join(args, " ")+" with "+strings.TrimSpace(mistake), r.stdout+r.stderr)
		}
	}
}

// lookAtAppend has the database refuse events, whose errors a writer logs.
func (c *canaryWorld) lookAtAppend() {
	c.t.Helper()
	payload, private := c.payload(), c.core("notes")
	for name, event := range map[string]outbox.Event{
		"too large":    {Type: "canary:all", Key: "H-1", Payload: json.RawMessage(`{"notes": "` + private + strings.Repeat(word(letters, 64), 20_000) + `"}`)},
		"no type":      {Key: "H-1", Payload: json.RawMessage(payload)},
		"no key":       {Type: "canary:all", Payload: json.RawMessage(payload)},
		"no object":    {Type: "canary:all", Key: "H-1", Payload: json.RawMessage(`["` + private + `"]`)},
		"no JSON":      {Type: "canary:all", Key: "H-1", Payload: json.RawMessage(`{"notes": ` + private + `}`)},
		"a NUL":        {Type: "canary:all", Key: "H-1", Payload: json.RawMessage(`{"notes": "` + private + `\u0000"}`)},
		"no UTF-8":     {Type: "canary:all", Key: "H-1", Payload: json.RawMessage(`{"notes": "` + private + "\xff" + `"}`)},
		"a bad header": {Type: "canary:all", Key: "H-1", Payload: json.RawMessage(payload), Headers: map[string]string{"tenant": private + "\x00"}},
	} {
		err := pgx.BeginFunc(c.t.Context(), c.conn, func(tx pgx.Tx) error { return outbox.Append(c.t.Context(), tx, event) })
		if err == nil {
			c.t.Errorf("an event with %s was taken", name)
			continue
		}
		c.look("outbox.Append of an event with "+name, err.Error())
	}
}

// relayRun is a relay as a process, and everything it writes.
type relayRun struct {
	cmd *exec.Cmd
	mu  sync.Mutex
	b   bytes.Buffer
}

func (t *relayRun) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.Write(b)
}

func (t *relayRun) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}

func (c *canaryWorld) relay(program, format string) *relayRun {
	c.t.Helper()
	run := &relayRun{cmd: exec.Command(program, "run", "--log-level", "debug", "--log-format", format)} //nolint:noctx // it is ended by a signal
	run.cmd.Env, run.cmd.Stdout, run.cmd.Stderr = c.environ(), run, run
	if err := run.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = run.cmd.Process.Kill() })
	return run
}

var serving = regexp.MustCompile(`serving health and metrics.*?(127\.0\.0\.1:\d+)`)

// address is where the relay serves health and metrics.
func (t *relayRun) address(tb testing.TB) string {
	tb.Helper()
	m := serving.FindStringSubmatch(t.String())
	if m == nil {
		tb.Fatalf("the relay serves nothing: %s", t)
	}
	return m[1]
}

func (t *relayRun) stop(tb testing.TB) {
	tb.Helper()
	if err := t.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		tb.Fatal(err)
	}
	if err := t.cmd.Wait(); err != nil {
		tb.Errorf("the relay: %v: %s", err, t)
	}
}

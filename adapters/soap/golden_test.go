package soap

import (
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// Each file has a request as it is sent: the headers of the protocol, then the
// envelope.
func TestEnvelopes(t *testing.T) {
	const fields = `{"case":"NY-07/4711","start":"2027-03-15T09:30:00-04:00","room":"3A","sealed":false,"seats":12345678901234567890.10,
		"note":"A < B & \"C\" ]]> 'd'\r\n{key}","parties":[{"name":"Jane <b>Doe</b>","role":"\"plaintiff\"\t","phones":["1","2"]},{"name":"ACME & Sons"}],"tags":["a","b"],"none":[],"court":{"code":"NY-07"}}`
	for name, c := range map[string]Config{
		"soap11": hearings(),
		"soap12": hearings().in(func(c *Config) { c.Version = Version12 }),
		"soap12 without action": hearings().in(func(c *Config) {
			c.Version, c.Action = Version12, ""
		}),
		"security text": hearings().in(func(c *Config) {
			c.Security = Security{Kind: UsernameToken, Username: "agency <1>", Password: "p&ss", PasswordType: Text}
		}),
		"security digest": hearings().in(func(c *Config) {
			c.Version = Version12
			c.Security = Security{Kind: UsernameToken, Username: "agency", Password: "s3cr3t", PasswordType: Digest, Timestamp: 300e9}
		}),
		"addressing": hearings().in(func(c *Config) { c.Addressing = &Addressing{} }),
		"addressing to": hearings().in(func(c *Config) {
			c.Addressing = &Addressing{To: "urn:clinic:calendar?a=1&b=2"}
			c.Header = `<wsa:ReplyTo><wsa:Address>http://www.w3.org/2005/08/addressing/anonymous</wsa:Address></wsa:ReplyTo>`
		}),
		"headers": hearings().in(func(c *Config) {
			c.Header = `
				<cal:Agency soap:mustUnderstand="1">AGENCY</cal:Agency>
				<cal:Event id="{id}" version="{version}" type="{type}" at="{occurred_at}"/>
				<cal:Own lockstep:if="fields.missing"/><t:Tenant xmlns:t="urn:t">{key} {ref.external_id}</t:Tenant>`
		}),
		"values": hearings().in(func(c *Config) {
			c.Body = `<cal:NotifyHearing note="{fields.note}" xml:lang="en"><!-- {not.a.placeholder} -->
  <cal:note>{fields.note}</cal:note>
  <cal:literal attr="&lt;&quot;&#10;">&lt;b&gt; &amp; <![CDATA[<i>{fields.room}</i>]]></cal:literal>
  <cal:types sealed="{fields.sealed}" seats="{fields.seats}" court="{fields.court.code}"/>
</cal:NotifyHearing>`
		}),
		"default namespace": hearings().in(func(c *Config) {
			c.Namespaces = nil
			c.Body = `<NotifyHearing xmlns="urn:example:calendar"><reference>{fields.case}</reference></NotifyHearing>`
		}),
		"lists": hearings().in(func(c *Config) {
			c.Body = `<cal:NotifyHearing>
  <cal:party lockstep:each="fields.parties" role="{item.role?}" case="{fields.case}"><cal:name>{item.name}</cal:name><cal:phone lockstep:each="item.phones?">{item}</cal:phone></cal:party>
  <cal:tag lockstep:each="fields.tags" value="{item}"/><cal:none lockstep:each="fields.none"/><cal:none lockstep:each="fields.missing?">{item}</cal:none>
  <cal:represented lockstep:each="fields.parties" lockstep:if="item.role">{item.name}</cal:represented>
</cal:NotifyHearing>`
		}),
		"optional": hearings().in(func(c *Config) {
			c.Body = `<cal:NotifyHearing status="{fields.missing?}" room="{fields.room?}">
  <cal:remarks kind="x">{fields.missing?}</cal:remarks><cal:room>room {fields.room?}</cal:room>
  <cal:deep><cal:inner>{fields.court.missing?}</cal:inner></cal:deep>
  <cal:cancel lockstep:if="fields.missing"><cal:why>{fields.missing}</cal:why></cal:cancel><cal:if lockstep:if="fields.sealed">{fields.sealed}</cal:if>
</cal:NotifyHearing>`
		}),
	} {
		t.Run(name, func(t *testing.T) {
			a := fixed(t, c)
			msg := hearing(fields)
			req, err := a.request(a.operations.Find(msg.Type), msg, a.attempt())
			if err != nil {
				t.Fatal(err)
			}
			var wire strings.Builder
			for _, h := range []string{"Content-Type", "SOAPAction"} {
				for _, v := range req.Header.Values(h) {
					wire.WriteString(h + ": " + v + "\n")
				}
			}
			wire.WriteString("\n" + string(req.Body))
			wellFormed(t, string(req.Body))

			file := filepath.Join("testdata", strings.ReplaceAll(name, " ", "_")+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(wire.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), wire.String()); diff != "" {
				t.Errorf("-want +got, rewrite it with -update:\n%s", diff)
			}
		})
	}
}

// wellFormed checks with encoding/xml's own rules, which tree.go does not use.
func wellFormed(t *testing.T, document string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(document))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
	}
}

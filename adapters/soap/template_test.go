package soap

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/hms-mkt/lockstep/adapters"
)

func TestBadTemplatesAreRefusedWithTheirPlace(t *testing.T) {
	for name, tc := range map[string]struct{ body, want string }{
		"no XML":                       {"NotifyHearing", "body: line 1, column 1: text is outside of an element: put it inside one"},
		"an envelope":                  {"<soap:Envelope><soap:Body><a/></soap:Body></soap:Envelope>", "body: line 1, column 1: <soap:Envelope> is written by the adapter: write only its content"},
		"a Body of another prefix":     {`<s:Body xmlns:s="http://www.w3.org/2003/05/soap-envelope"/>`, "body: line 1, column 1: <s:Body> is written by the adapter"},
		"no element":                   {"  <!-- nothing -->\n", "body: holds 0 elements; write one, the operation"},
		"two elements":                 {"<a/><b/>", "body: holds 2 elements"},
		"not closed":                   {"<cal:a>\n  <cal:b></cal:b>\n", "body: line 1, column 1: <cal:a> is not closed"},
		"closed wrongly":               {"<cal:a>\n  <cal:b></cal:c></cal:a>", "body: line 2, column 10: </cal:c> closes <cal:b>, which was opened in line 2"},
		"closes nothing":               {"<a/></a>", "body: line 1, column 5: </a> closes nothing"},
		"bad XML":                      {"<a>\n<b attr></b></a>", "body: line 2, column 9: attribute name without = in element"},
		"an entity":                    {"<a>&nbsp;</a>", "body: line 1, column 10: invalid character entity &nbsp;"},
		"a bare ampersand":             {"<a>R & D</a>", "body: line 1, column 7: write an ampersand as &amp;"},
		"a DTD":                        {`<!DOCTYPE a><a/>`, "body: line 1, column 1: a DTD is not allowed"},
		"an entity declared":           {"<a>x</a>\n<!DOCTYPE a [<!ENTITY b \"c\">]>", "body: line 2, column 1: a DTD is not allowed"},
		"an XML declaration":           {`<?xml version="1.0"?><a/>`, "body: line 1, column 1: a processing instruction or XML declaration is not allowed"},
		"a processing instruction":     {`<a><?php echo 1 ?></a>`, "body: line 1, column 4: a processing instruction"},
		"a prefix not declared":        {"<cal:a>\n   <ecf:b/></cal:a>", "body: line 2, column 4: the prefix ecf is not declared; add it to namespaces"},
		"an attribute's prefix":        {`<cal:a ecf:b="1"/>`, "body: line 1, column 1: the prefix ecf is not declared"},
		"a prefix declared inside":     {`<cal:a><b xmlns:x="urn:x"/><x:b/></cal:a>`, "body: line 1, column 28: the prefix x is not declared"},
		"twice":                        {`<a b="1" b="2"/>`, "body: line 1, column 1: <a> has the attribute b twice"},
		"unknown placeholder":          {"<a>\n  <b>é {field.case}</b></a>", "body: line 2, column 8: {field.case} is not a placeholder that is allowed here; known are {id}, {idempotency_key}, {type}, {key}, {version}, {occurred_at}, {ref.external_id}, {ref.etag}, {fields.NAME} for a mapped field"},
		"unknown in an attribute":      {`<a b="{keys}"/>`, "body: line 1, column 7: {keys} is not a placeholder"},
		"empty placeholder":            {`<a>{}</a>`, "body: line 1, column 4: {} is not a placeholder"},
		"no field":                     {`<a>{fields.}{fields..a}{fields}</a>`, "body: line 1, column 4: {fields.} is not a placeholder"},
		"a lone brace":                 {"<a>\n}</a>", "body: line 2, column 1: a brace does not belong to a placeholder such as {key}"},
		"a brace as a reference":       {"<a>&#123;</a>", "body: line 1, column 4: a brace does not belong"},
		"placeholder of a name":        {"<{key}/>", "body: line 1, column 2: expected element name after <"},
		"placeholder as markup":        {"<a {key}/>", "body: line 1, column 4: expected attribute name in element"},
		"namespace from data":          {`<a xmlns="{key}"/>`, "body: line 1, column 1: xmlns has a placeholder, but a namespace never comes from data: write its URI"},
		"a prefix without a namespace": {`<a xmlns:b=""><b:c/></a>`, "body: line 1, column 1: xmlns:b declares no namespace"},
		"a taken prefix":               {`<a xmlns:soap="urn:x"/>`, "body: line 1, column 1: the prefix soap is taken"},
		"item outside":                 {`<a>{item.name}</a>`, "body: line 1, column 4: {item.name} is outside of an element with lockstep:each"},
		"item next to it":              {`<a><b lockstep:each="fields.l"/><c>{item}</c></a>`, "{item} is outside of an element with lockstep:each"},
		"if of an item outside":        {`<a><b lockstep:if="item.x"/></a>`, `line 1, column 4: lockstep:if="item.x" is not the name of a value`},
		"each without a list":          {`<a><b lockstep:each=""/></a>`, "line 1, column 4: lockstep:each is empty"},
		"each of a placeholder":        {`<a><b lockstep:each="{fields.l}"/></a>`, `lockstep:each="{fields.l}": write the name of a list, such as fields.parties`},
		"each of the key":              {`<a><b lockstep:each="key"/></a>`, "write the name of a list"},
		"if of a placeholder":          {`<a><b lockstep:if="{fields.l}"/></a>`, "is not the name of a value, such as fields.remarks"},
		"if of a name with ?":          {`<a><b lockstep:if="fields.x?"/></a>`, "is not the name of a value"},
		"two question marks":           {`<a><b>{fields.x??}</b></a>`, "{fields.x??} is not a placeholder that is allowed here"},
		"unknown lockstep":             {`<a><b lockstep:for="fields.l"/></a>`, "lockstep:for is not known; there are lockstep:each and lockstep:if"},
		"an element of lockstep":       {`<a><lockstep:each/></a>`, "<lockstep:each>: there are no elements of lockstep"},
		"an optional operation":        {`<a>{fields.x?}</a>`, "<a> may be repeated or left out, but the operation is sent exactly once"},
		"a repeated operation":         {`<a lockstep:each="fields.x"/>`, "the operation is sent exactly once"},
		"an operation with if":         {`<a lockstep:if="fields.x"/>`, "the operation is sent exactly once"},
		"nested too deep":              {strings.Repeat("<a>", 65), "body: line 1, column 193: the elements nest deeper than 64"},
		"all that is wrong at once":    {`<a>{x}<b>{y}</b></a>`, "line 1, column 10: {y} is not"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(hearings().in(func(c *Config) { c.Body = tc.body }))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got  %v\nwant %s", err, tc.want)
			}
			for line := range strings.Lines(err.Error()) {
				if !strings.HasPrefix(line, "body: ") {
					t.Errorf("the line %q does not name the field", line)
				}
			}
		})
	}
}

func TestValuesThatCannotBeSent(t *testing.T) {
	for name, tc := range map[string]struct{ body, message, want string }{
		"missing":             {`<a>{fields.x}</a>`, `{}`, "body: {fields.x} is not known: the mapped fields have none of this name, or null"},
		"null":                {`<a>{fields.x}</a>`, `{"x":null}`, "{fields.x} is not known"},
		"an object":           {`<a>{fields.x}</a>`, `{"x":{"y":1}}`, "{fields.x} is an object or a list"},
		"an object, optional": {`<a><b>{fields.x?}</b></a>`, `{"x":[]}`, "{fields.x} is an object or a list"},
		"NUL":                 {`<a>{fields.x}</a>`, `{"x":"a\u0000b"}`, "{fields.x} has U+0000 at byte 1, which XML 1.0 cannot carry"},
		"escape":              {`<a b="{fields.x}"/>`, `{"x":"a\u001b"}`, "{fields.x} has U+001B at byte 1"},
		"U+FFFE":              {`<a>{fields.x}</a>`, `{"x":"\ufffe"}`, "{fields.x} has U+FFFE at byte 0"},
		"no list":             {`<a><b lockstep:each="fields.x"/></a>`, `{"x":"y"}`, "lockstep:each: fields.x is not a list"},
		"a missing list":      {`<a><b lockstep:each="fields.x"/></a>`, `{}`, "lockstep:each: fields.x is not known"},
		"a missing member":    {`<a><b lockstep:each="fields.x">{item.y}</b></a>`, `{"x":[{"y":1},{}]}`, "{item.y} is not known"},
		"a null item":         {`<a><b lockstep:each="fields.x">{item}</b></a>`, `{"x":[null]}`, "{item} is not known"},
		"no object":           {`<a>{fields.x}</a>`, `[1]`, "the body is not a JSON object"},
		"if without object":   {`<a><b lockstep:if="fields.x"/></a>`, `[1]`, "lockstep:if: fields.x cannot be read"},
		"too often":           {`<a><b lockstep:each="fields.x"><c lockstep:each="fields.x" lockstep:if="fields.y"/></b></a>`, `{"x":[` + strings.Repeat("1,", 2000) + `1]}`, "lockstep:each: fields.x: the lists of the envelope have more than 1048576 items"},
		"too long":            {`<a><b lockstep:each="fields.x"><c lockstep:each="fields.x">{fields.y}</c></b></a>`, `{"y":"` + strings.Repeat("y", 1000) + `","x":[` + strings.Repeat("1,", 200) + `1]}`, "the envelope gets longer than 16777216 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			a := fixed(t, hearings().in(func(c *Config) { c.Body = tc.body }))
			receipt, err := a.Deliver(t.Context(), hearing(tc.message))
			if adapters.ClassOf(err) != adapters.ClassPermanent || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %s, %v\nwant %s", adapters.ClassOf(err), err, tc.want)
			}
			if !strings.HasPrefix(err.Error(), "POST clinic.example.gov/CalendarService: nothing was sent: ") || receipt.Code != "" {
				t.Errorf("receipt %+v, error %v", receipt, err)
			}
		})
	}
}

// structure reads a document with encoding/xml's own namespaces: its elements and
// attributes, and the text of each.
func structure(document string) (shape string, texts []string, err error) {
	var b strings.Builder
	d := xml.NewDecoder(strings.NewReader(document))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return b.String(), texts, nil
		}
		if err != nil {
			return "", nil, err
		}
		switch token := token.(type) {
		case xml.StartElement:
			b.WriteString("<" + token.Name.Space + " " + token.Name.Local)
			for _, a := range token.Attr {
				b.WriteString(" " + a.Name.Space + " " + a.Name.Local + "=")
				texts = append(texts, a.Value)
			}
			b.WriteString(">")
		case xml.EndElement:
			b.WriteString("</>")
		case xml.CharData:
			b.WriteString(".")
			texts = append(texts, string(token))
		case xml.Comment, xml.Directive:
			return "", nil, errors.New("a value became a comment or a directive")
		}
	}
}

// A value is text at every position: the document has the same elements and attributes
// as with a harmless value, and has exactly the value in it.
func TestValuesNeverBecomeMarkup(t *testing.T) {
	a := fixed(t, hearings().in(func(c *Config) {
		c.Body = `<cal:a b="{fields.v}" c="x{fields.v}y"><cal:d>{fields.v}</cal:d>{fields.v}<cal:e lockstep:each="fields.l" f="{item}">-{item}-</cal:e></cal:a>`
		c.Header = `<cal:h i="{fields.v}">{fields.v}</cal:h>`
	}))
	document := func(value string) (string, error) {
		body, err := json.Marshal(map[string]any{"v": value, "l": []string{value, value}})
		if err != nil {
			return "", err
		}
		return render(t, a, hearing(string(body)))
	}
	harmless, err := document("VALUE")
	if err != nil {
		t.Fatal(err)
	}
	wantShape, wantTexts, err := structure(harmless)
	if err != nil {
		t.Fatal(err)
	}
	tricky := []string{"<", ">", "&", `"`, "'", "]]>", "<![CDATA[", "<!--", "-->", "<?", "?>", "<!DOCTYPE", "&lt;", "&#0;", "{key}", "{fields.v}", "\r", "\n", "\r\n", "\t", "</cal:d>", "\u0085", "\u2028", "\x00", "\ufffe", "😀"}
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.OneOf(rapid.String(), rapid.Custom(func(t *rapid.T) string {
			return strings.Join(rapid.SliceOf(rapid.OneOf(rapid.SampledFrom(tricky), rapid.StringN(0, 3, -1))).Draw(t, "parts"), "")
		})).Filter(func(s string) bool { return s != "" && utf8.ValidString(s) }).Draw(t, "value")
		got, err := document(value)
		if xmlText(value) != nil {
			if adapters.ClassOf(err) != adapters.ClassPermanent {
				t.Fatalf("%q was sent, or fails with %v", value, err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		shape, texts, err := structure(got)
		if err != nil {
			t.Fatalf("%v in\n%s", err, got)
		}
		if shape != wantShape {
			t.Fatalf("%q changes the document:\n%s\n%s", value, shape, got)
		}
		for i, text := range texts {
			if want := strings.ReplaceAll(wantTexts[i], "VALUE", value); text != want {
				t.Fatalf("text %d is %q, want %q", i, text, want)
			}
		}
	})
}

package hl7

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/clinic"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const segments = `SCH|{key}^AGENCY|{ref.external_id?}^CLINIC||||{fields.reason?}|^{fields.title}||{fields.minutes?}|min|^^{fields.minutes?}^{fields.start}||||||||||||||Booked
TQ1|1||||||{fields.start}
NTE|1||{fields.remarks?}
PID|1||{fields.case.number?}^^^AGENCY
RGS|1
AIL|1||{fields.room}^^^{fields.courthouse?}&COURT~{fields.floor?}^FLOOR`

// calendar is a configuration that uses everything.
func calendar(address string) Config {
	return Config{
		Address: address, SendingApplication: "AGENCY", SendingFacility: "SCHED", ReceivingApplication: "CLINIC^1.2.3^ISO", ReceivingFacility: "EPIC", Timeout: 5 * time.Second,
		Segments: segments, ExternalID: "ZAP-2",
		Messages: map[string]Message{
			"scheduling:created":   {Event: "S12"},
			"scheduling:updated":   {Event: "S13"},
			"scheduling:cancelled": {Event: "S15", Segments: "SCH|{key}|{ref.external_id?}||||{fields.reason?}|||||||||||||||||||Cancelled"},
			"scheduling:moved":     {Event: "S15", Then: []Next{{Event: "S12"}}},
		},
	}
}

func newAdapter(t *testing.T, c Config) *Adapter {
	t.Helper()
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// hearing is a message of the relay. fields are JSON members.
func hearing(what, id, fields string) adapters.Message {
	return adapters.Message{
		ID: id, IdempotencyKey: id, Type: "scheduling:" + what, Key: "H-2027-7", Version: new(int64(3)), OccurredAt: time.Date(2027, 3, 1, 9, 0, 0, 5e8, time.FixedZone("", -5*3600)), Attempt: 1,
		Body: []byte(`{"start":"20270315093000-0400","title":"Hearing 7","room":"3A"` + fields + `}`),
	}
}

// Each file has a message as it is sent, a line for each segment.
func TestMessages(t *testing.T) {
	const all = `,"reason":"WD^x","minutes":45,"remarks":"a|b^c&d~e\\f\r\ng\nh\ti","case":{"number":"NY-07"},"courthouse":"Ω","floor":2`
	for name, tc := range map[string]struct {
		msg    adapters.Message
		change func(*Config)
	}{
		"all fields":      {msg: hearing("created", "e-1", all)},
		"required fields": {msg: hearing("updated", "e-1", "")},
		"empty fields":    {msg: hearing("updated", "e-1", `,"reason":"","remarks":null,"case":{},"minutes":""`)},
		"known id": {msg: func() adapters.Message {
			m := hearing("updated", "e-1", "")
			m.Ref.ExternalID = "F|7"
			return m
		}()},
		"cancelled": {msg: hearing("cancelled", "e-1", `,"reason":"WD"`)},
		"second step": {msg: func() adapters.Message {
			m := hearing("moved", "e-1", "")
			m.IdempotencyKey, m.Step = "e-1/2", 1
			return m
		}()},
		"enhanced version 2.3": {msg: hearing("created", "e-1", ""), change: func(c *Config) { c.Acknowledgement, c.Version, c.Processing = Enhanced, "2.3", "T" }},
		"nothing in the header": {msg: hearing("created", "e-1", ""), change: func(c *Config) {
			c.SendingApplication, c.SendingFacility, c.ReceivingApplication, c.ReceivingFacility = "", "", "", ""
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := calendar("clinic.example.org:2575")
			if tc.change != nil {
				tc.change(&c)
			}
			p, err := newAdapter(t, c).Preview(tc.msg)
			if err != nil {
				t.Fatal(err)
			}
			got := p.Method + " " + p.URL + "\n" + strings.ReplaceAll(string(p.Body), "\r", "\n")
			path := filepath.Join("testdata", strings.ReplaceAll(name, " ", "-")+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("message (-want +got; run with -update if that is meant):\n%s", diff)
			}
		})
	}
}

// Messages that cannot be made fail for good, and their values are not repeated.
func TestNothingIsSent(t *testing.T) {
	a := newAdapter(t, calendar("127.0.0.1:1"))
	without := hearing("created", "e-1", "")
	without.OccurredAt = time.Time{}
	third := hearing("moved", "e-1", "")
	third.Step = 2
	for name, tc := range map[string]struct {
		msg  adapters.Message
		want string
	}{
		"start block":   {hearing("created", "e-1", `,"remarks":"Jane\u000bDoe"`), `segment NTE: {fields.remarks} has a control character (U+000B) at byte 4`},
		"end block":     {hearing("created", "e-1", `,"remarks":"Jane\u001cDoe"`), `has a control character (U+001C) at byte 4`},
		"NUL":           {hearing("created", "e-1", `,"remarks":"\u0000"`), `has a control character (U+0000)`},
		"a list":        {hearing("created", "e-1", `,"remarks":["Jane"]`), `{fields.remarks} is an object or a list`},
		"missing":       {adapters.Message{Type: "scheduling:created", Key: "k", OccurredAt: time.Unix(1, 0), Body: []byte(`{"start":"20270315","room":"3A"}`)}, `segment SCH: {fields.title} is not known`},
		"empty":         {adapters.Message{Type: "scheduling:created", Key: "k", OccurredAt: time.Unix(1, 0), Body: []byte(`{"start":"","title":"x","room":"3A"}`)}, `{fields.start} is not known: it is empty`},
		"no message":    {hearing("archived", "e-1", ""), `SIU to mllp://127.0.0.1:1: nothing was sent: no message is configured for events of this type: add one to messages`},
		"no time":       {without, `the event has no time, which MSH-7 needs`},
		"too many done": {third, `2 steps of this event are done, and the configuration has only 2`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := a.Deliver(t.Context(), tc.msg)
			if adapters.ClassOf(err) != adapters.ClassPermanent || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "Jane") || !adapters.IsRedacted(err) {
				t.Errorf("%s: %v\nwant %s", adapters.ClassOf(err), err, tc.want)
			}
			if _, previewErr := a.Preview(tc.msg); previewErr == nil || previewErr.Error() != err.Error() {
				t.Errorf("the preview says: %v", previewErr)
			}
		})
	}
}

// reply is a receiver that answers with bytes of the test. Each call of answer is for one
// message; nil bytes end the connection.
func reply(t *testing.T, answer func(n int, message string) []byte) (address string, connections func() int) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var serving sync.WaitGroup
	var conns []net.Conn
	messages := 0
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			serving.Go(func() {
				defer func() { _ = conn.Close() }()
				r := bufio.NewReader(conn)
				for {
					message, err := readBlock(r)
					if err != nil {
						return
					}
					mu.Lock()
					n := messages
					messages++
					mu.Unlock()
					out := answer(n, string(message))
					if out == nil {
						return
					}
					if _, err := conn.Write(out); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, conn := range conns {
			_ = conn.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return l.Addr().String(), func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(conns)
	}
}

func framed(segments ...string) []byte {
	return []byte("\x0b" + strings.Join(segments, "\r") + "\r\x1c\r")
}

const header = `MSH|^~\&|CLINIC|EPIC|AGENCY|SCHED|20270301||ACK|A1|P|2.5.1`

// The class of every answer, the text in the log, and whether the connection is used again.
func TestAnswers(t *testing.T) {
	id := controlID("e-1")
	ok := "MSA|AA|" + id
	for name, tc := range map[string]struct {
		answer   []byte
		outcomes map[string]string
		class    adapters.Class
		code     string
		says     string
		kept     bool
	}{
		"AA": {answer: framed(header, ok), class: adapters.ClassDelivered, code: "AA", kept: true},
		"CA": {answer: framed(header, "MSA|CA|"+id), class: adapters.ClassAccepted, code: "CA", kept: true},
		"AE with ERR of 2.5": {
			answer: framed(header, "MSA|AE|"+id+"|Application error", "ERR||AIL^1^3~SCH^1^11|103^Table value not found^HL70357|E||||no such room"),
			class:  adapters.ClassPermanent, code: "AE 103", says: "answered AE 103: Application error; AIL-3; Table value not found; no such room", kept: true,
		},
		"AE with ERR of 2.3": {
			answer: framed(header, "MSA|AE|"+id, "ERR|SCH^1^11^102&Data type error~SCH^1^7^101&Required field missing"),
			class:  adapters.ClassPermanent, code: "AE 102", says: "SCH-11; Data type error; 101; SCH-7; Required field missing", kept: true,
		},
		"AE with MSA-6":   {answer: framed(header, "MSA|AE|"+id+"||||204^Unknown key identifier"), class: adapters.ClassPermanent, code: "AE 204", says: "Unknown key identifier", kept: true},
		"CE":              {answer: framed(header, "MSA|CE|"+id), class: adapters.ClassPermanent, code: "CE", says: "answered CE: without a reason", kept: true},
		"AR":              {answer: framed(header, "MSA|AR|"+id+"|database down"), class: adapters.ClassTransient, code: "AR", says: "database down", kept: true},
		"CR":              {answer: framed(header, "MSA|CR|"+id), class: adapters.ClassTransient, code: "CR", kept: true},
		"AR of a field":   {answer: framed(header, "MSA|AR|"+id, "ERR||SCH^1^11|207"), class: adapters.ClassTransient, code: "AR 207", kept: true},
		"AR of MSH-9":     {answer: framed(header, "MSA|AR|"+id, "ERR||MSH^1^9|207"), class: adapters.ClassPermanent, code: "AR 207", kept: true},
		"AR of MSH-11":    {answer: framed(header, "MSA|AR|"+id, "ERR|MSH^1^11"), class: adapters.ClassPermanent, code: "AR", kept: true},
		"CR of MSH-12":    {answer: framed(header, "MSA|CR|"+id, "ERR||MSH^1^12"), class: adapters.ClassPermanent, code: "CR", kept: true},
		"AR of a version": {answer: framed(header, "MSA|AR|"+id, "ERR|||203"), class: adapters.ClassPermanent, code: "AR 203", kept: true},
		"outcome of AE":   {answer: framed(header, "MSA|AE|"+id), outcomes: map[string]string{"AE": "transient"}, class: adapters.ClassTransient, code: "AE", kept: true},
		"outcome of a code": {
			answer: framed(header, "MSA|AE|"+id, "ERR|||205"), outcomes: map[string]string{"AE": "transient", "205": "duplicate"},
			class: adapters.ClassDuplicate, code: "AE 205", kept: true,
		},
		"other separators":         {answer: []byte("\x0bMSH#*~!%#C#E#A#S#2027##ACK#1#P#2.5\rMSA#AE#" + id + "#no room!F!2\r\x1c\r"), class: adapters.ClassPermanent, code: "AE", says: "no room#2", kept: true},
		"line feeds":               {answer: framed(header + "\n" + ok + "\n"), class: adapters.ClassDelivered, code: "AA", kept: true},
		"it repeats what was sent": {answer: framed(header, "MSA|AE|"+id+"|Hearing of Jane Doe"), class: adapters.ClassPermanent, code: "AE", says: adapters.Hidden, kept: true},
		"bytes that do not print":  {answer: framed(header, "MSA|AE|"+id+"|a\x1b[31mb\xff\x00c"), class: adapters.ClassPermanent, code: "AE", says: "answered AE: abc", kept: true},
		"another message":          {answer: framed(header, "MSA|AA|ANOTHER"), class: adapters.ClassUnknown, says: "sent, but the answer is to another message"},
		"another message, AE":      {answer: framed(header, "MSA|AE|ANOTHER"), class: adapters.ClassUnknown, says: "the answer is to another message"},
		"no MSA-2":                 {answer: framed(header, "MSA|AR"), class: adapters.ClassUnknown, says: "the answer is to another message"},
		"another code":             {answer: framed(header, "MSA|OK|"+id), class: adapters.ClassUnknown, code: "OK", says: "answered OK: without a reason", kept: true},
		"no MSA":                   {answer: framed(header), class: adapters.ClassUnknown, says: "the answer has no acknowledgement code (MSA-1)"},
		"not HL7":                  {answer: []byte("\x0bhello\x1c\r"), class: adapters.ClassUnknown, says: "the answer is not an HL7 message"},
		"HTTP":                     {answer: []byte("HTTP/1.1 400 Bad Request\r\n\r\n"), class: adapters.ClassUnknown, says: "does not begin with the start block of MLLP (0x0B): check address and tls"},
		"a byte before":            {answer: append([]byte("\r"), framed(header, ok)...), class: adapters.ClassUnknown, says: "does not begin with the start block"},
		"a byte after":             {answer: append(framed(header, ok), '\n'), class: adapters.ClassDelivered, code: "AA"},
		"twice":                    {answer: slices.Concat(framed(header, ok), framed(header, ok)), class: adapters.ClassDelivered, code: "AA"},
		"64 KiB and more":          {answer: framed(header, ok, "NTE|1||"+strings.Repeat("x", 64<<10)), class: adapters.ClassUnknown, says: "the answer is longer than 65536 bytes"},
		"no answer":                {answer: nil, class: adapters.ClassUnknown, says: "sent, but no answer: the connection was closed"},
	} {
		t.Run(name, func(t *testing.T) {
			address, connections := reply(t, func(n int, message string) []byte {
				if n == 0 {
					return tc.answer
				}
				return framed(header, "MSA|AA|"+strings.Split(message, "|")[9])
			})
			c := calendar(address)
			c.Outcomes = tc.outcomes
			a := newAdapter(t, c)
			msg := hearing("created", "e-1", `,"remarks":"Jane Doe"`)
			receipt, err := a.Deliver(t.Context(), msg)
			class := adapters.ClassOf(err)
			switch {
			case receipt.Duplicate:
				class = adapters.ClassDuplicate
			case receipt.Accepted:
				class = adapters.ClassAccepted
			}
			if class != tc.class || receipt.Code != tc.code || receipt.SHA256 == "" {
				t.Errorf("%s with %q, want %s with %q: %v", class, receipt.Code, tc.class, tc.code, err)
			}
			if err != nil && (!strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "Jane") || !adapters.IsRedacted(err)) {
				t.Errorf("got  %v\nwant %s", err, tc.says)
			}
			if _, err := a.Deliver(t.Context(), hearing("created", "e-2", "")); err != nil {
				t.Errorf("the next message: %v", err)
			}
			if kept := connections() == 1; kept != tc.kept {
				t.Errorf("%d connections", connections())
			}
		})
	}
}

// An answer that breaks off, or is too slow.
func TestSlowAndBrokenAnswers(t *testing.T) {
	half := framed(header, "MSA|AA|"+controlID("e-1"))[:20]
	for name, tc := range map[string]struct {
		answer []byte
		says   string
	}{
		"silent":         {[]byte{}, "sent, but no answer: the timeout of 100ms is up"},
		"half an answer": {half, "sent, but the answer has no end (0x1C 0x0D): the timeout of 100ms is up"},
	} {
		t.Run(name, func(t *testing.T) {
			address, _ := reply(t, func(int, string) []byte { return tc.answer })
			c := calendar(address)
			c.Timeout = 100 * time.Millisecond
			_, err := newAdapter(t, c).Deliver(t.Context(), hearing("created", "e-1", ""))
			if adapters.ClassOf(err) != adapters.ClassUnknown || !strings.Contains(err.Error(), tc.says) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", adapters.ClassOf(err), err)
			}
		})
	}
	t.Run("closed in the middle", func(t *testing.T) {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		serving.Go(func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = readBlock(bufio.NewReader(conn))
			_, _ = conn.Write(half)
			_ = conn.Close()
		})
		t.Cleanup(func() { _ = l.Close(); serving.Wait() })
		_, err = newAdapter(t, calendar(l.Addr().String())).Deliver(t.Context(), hearing("created", "e-1", ""))
		if want := "sent, but the answer has no end (0x1C 0x0D): the connection was closed"; adapters.ClassOf(err) != adapters.ClassUnknown || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", adapters.ClassOf(err), err)
		}
	})
	t.Run("nobody listens", func(t *testing.T) {
		_, err := newAdapter(t, calendar("127.0.0.1:1")).Deliver(t.Context(), hearing("created", "e-1", ""))
		if want := "SIU^S12 to mllp://127.0.0.1:1: nothing was sent: connection refused"; adapters.ClassOf(err) != adapters.ClassTransient || err.Error() != want {
			t.Errorf("%s: %v", adapters.ClassOf(err), err)
		}
	})
}

// An adapter has as many messages in flight as connections, and one on each.
func TestConnections(t *testing.T) {
	const most, messages = 3, 12
	arrived, release := make(chan struct{}, messages), make(chan struct{})
	address, connections := reply(t, func(_ int, message string) []byte {
		arrived <- struct{}{}
		<-release
		return framed(header, "MSA|AA|"+strings.Split(message, "|")[9])
	})
	c := calendar(address)
	c.Connections, c.Timeout = most, time.Minute
	a := newAdapter(t, c)
	if a.MaxInFlight() != most || a.AttemptTimeout() != time.Minute {
		t.Errorf("%d in flight, %s", a.MaxInFlight(), a.AttemptTimeout())
	}
	var sending sync.WaitGroup
	for n := range messages {
		sending.Go(func() {
			if _, err := a.Deliver(t.Context(), hearing("created", string(rune('a'+n)), "")); err != nil {
				t.Error(err)
			}
		})
	}
	for range most {
		<-arrived
	}
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error)
	go func() {
		_, err := a.Deliver(ctx, hearing("created", "z", ""))
		waiting <- err
	}()
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) || adapters.ClassOf(err) != adapters.ClassTransient {
		t.Errorf("a message that waits for a connection: %v", err)
	}
	if len(arrived) > 0 {
		t.Error("more messages are in flight than there are connections")
	}
	close(release)
	sending.Wait()
	if n := connections(); n != most {
		t.Errorf("%d connections", n)
	}
	if _, err := a.Deliver(t.Context(), hearing("created", "y", "")); err != nil || a.Close() != nil {
		t.Error(err)
	}
}

// The clinic applies messages once, gives an id of its own, and the adapter keeps it until
// the appointment ends.
func TestAnAppointment(t *testing.T) {
	c := clinic.Start(t)
	a := newAdapter(t, calendar(c.Address))
	var ref adapters.Ref
	deliver := func(msg adapters.Message) adapters.Receipt {
		t.Helper()
		msg.Ref = ref
		receipt, err := a.Deliver(t.Context(), msg)
		if err != nil {
			t.Fatal(err)
		}
		if receipt.Ref != nil {
			ref = *receipt.Ref
		}
		return receipt
	}
	deliver(hearing("created", "e-1", `,"minutes":45`))
	if ref.ExternalID != "F-1" || ref.Version == nil || *ref.Version != 3 {
		t.Errorf("%+v", ref)
	}
	moved := hearing("updated", "e-2", "")
	moved.Body = bytes.ReplaceAll(moved.Body, []byte("0315093000"), []byte("0316100000"))
	moved.Body = bytes.ReplaceAll(moved.Body, []byte("Hearing 7"), []byte(`Señor & sons ^ \\ | ~ \n é`))
	deliver(moved)
	deliver(moved)
	want := clinic.Appointment{Status: "booked", Filler: "F-1", Events: []string{"S12", "S13"}, Start: "20270316100000-0400", Room: "3A", Title: "Señor & sons ^ \\ | ~ \r é"}
	if diff := cmp.Diff(want, c.Appointments()["H-2027-7^AGENCY"]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	first := hearing("moved", "e-3", "")
	if receipt := deliver(first); !receipt.More || ref.ExternalID != "" {
		t.Errorf("after the first step: %+v, %+v", receipt, ref)
	}
	first.Step, first.IdempotencyKey = 1, "e-3/2"
	if receipt := deliver(first); receipt.More || ref.ExternalID != "F-2" {
		t.Errorf("after the second step: %+v, %+v", receipt, ref)
	}
	if got := c.Appointments()["H-2027-7^AGENCY"]; got.Status != "booked" || got.Start != "20270315093000-0400" {
		t.Errorf("%+v", got)
	}
	if seen := c.Seen(); len(seen) != 5 || seen[1] != seen[2] || seen[3] == seen[4] || len(seen[0]) != 20 {
		t.Errorf("control ids %q", seen)
	}
}

// What is sent depends on whether the receiver has an appointment.
func TestKnownAppointment(t *testing.T) {
	c := clinic.Start(t)
	config := calendar(c.Address)
	config.ExternalID, config.Segments = "", "SCH|{key}||||||^{fields.title}||||^^^{fields.start}"
	config.Messages = map[string]Message{
		"scheduling:cancelled": {Event: "S15"},
		"scheduling:*":         {Event: "S12", Known: &Known{Event: "S15", Then: []Next{{Event: "S12"}}}},
	}
	a := newAdapter(t, config)
	var ref adapters.Ref
	var sent []string
	for n, what := range []string{"updated", "updated", "cancelled", "updated"} {
		msg := hearing(what, "e-"+string(rune('1'+n)), "")
		for more := true; more; msg.Step++ {
			msg.Ref, msg.IdempotencyKey = ref, msg.ID+"/"+string(rune('1'+msg.Step))
			p, _ := a.Preview(msg)
			receipt, err := a.Deliver(t.Context(), msg)
			if err != nil {
				t.Fatal(err)
			}
			sent, ref, more = append(sent, p.Method), *receipt.Ref, receipt.More
		}
	}
	if got, want := strings.Join(sent, " "), "SIU^S12 SIU^S15 SIU^S12 SIU^S15 SIU^S12"; got != want {
		t.Errorf("sent %s, want %s", got, want)
	}
	if got := c.Appointments()["H-2027-7"]; got.Status != "booked" || ref.ExternalID != "H-2027-7" {
		t.Errorf("%+v, %+v", got, ref)
	}
}

// A receiver that acknowledges everything twice never gets another message confirmed by it.
func TestSecondAcknowledgement(t *testing.T) {
	c := clinic.Start(t)
	c.Always(clinic.Twice)
	a := newAdapter(t, calendar(c.Address))
	for n := range 5 {
		msg := hearing("created", "e-"+string(rune('1'+n)), "")
		msg.Key += string(rune('a' + n))
		if _, err := a.Deliver(t.Context(), msg); err != nil && !adapters.IsUnknown(err) {
			t.Error(err)
		}
	}
	c.Always(clinic.Normal)
	if seen, held := c.Seen(), c.Held(); len(seen) != 5 || len(held) != 5 {
		t.Errorf("seen %d, held %d", len(seen), len(held))
	}
}

// The id of an answer that lacks it.
func TestNoID(t *testing.T) {
	for _, c := range []struct {
		known, answer, want string
		noID                bool
	}{
		{"", "ZAP||F-1", "F-1", false},
		{"F-1", "ZAP||F-2", "F-2", false},
		{"F-1", "ZAP|x", "F-1", false},
		{"", "ZAP|x", "", true},
		{"", "ZAP||a\x7fb", "", true},
		{"", `ZAP||F\T\1~F-2`, "F&1", false},
	} {
		address, _ := reply(t, func(int, string) []byte { return framed(header, "MSA|AA|"+controlID("e-1"), c.answer) })
		msg := hearing("created", "e-1", "")
		msg.Ref.ExternalID = c.known
		receipt, err := newAdapter(t, calendar(address)).Deliver(t.Context(), msg)
		if err != nil || receipt.Ref.ExternalID != c.want || receipt.NoID != c.noID {
			t.Errorf("%q, %q: %+v, %+v, %v", c.known, c.answer, receipt, receipt.Ref, err)
		}
	}
}

func TestWhatTheRelayAsks(t *testing.T) {
	a := newAdapter(t, calendar("clinic.example.org:2575"))
	want := []string{"case.number", "courthouse", "floor", "minutes", "reason", "remarks", "room", "start", "title"}
	got := slices.Compact(slices.Sorted(slices.Values(a.Fields())))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fields (-want +got)\n%s", diff)
	}
	created, cancelled := hearing("created", "e-1", ""), hearing("cancelled", "e-1", "")
	if a.Shape(created) == a.Shape(cancelled) {
		t.Error("two templates have one shape")
	}
	for name, change := range map[string]func(*Config){
		"version":  func(c *Config) { c.Version = "2.4" },
		"header":   func(c *Config) { c.ReceivingFacility = "X" },
		"template": func(c *Config) { c.Segments += "\nAIP|1" },
		"event":    func(c *Config) { c.Messages["scheduling:created"] = Message{Event: "S14"} },
	} {
		c := calendar("clinic.example.org:2575")
		change(&c)
		if newAdapter(t, c).Shape(created) == a.Shape(created) {
			t.Errorf("another %s has the same shape", name)
		}
	}
	if shape := newAdapter(t, calendar("other.example.org:1")).Shape(created); shape != a.Shape(created) {
		t.Error("another address has another shape")
	}
}

// A kept connection that the receiver has closed, or on which it has sent something more, is
// not used for the next message.
func TestKeptConnections(t *testing.T) {
	for name, after := range map[string]func(net.Conn){
		"closed": func(conn net.Conn) { _ = conn.Close() },
		"a late answer": func(conn net.Conn) {
			_, _ = conn.Write(framed(header, "MSA|AE|"+controlID("e-2")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			received, done := make(chan struct{}), make(chan struct{}, 2)
			var serving sync.WaitGroup
			serving.Go(func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					message, err := readBlock(bufio.NewReader(conn))
					if err != nil {
						return
					}
					_, _ = conn.Write(framed(header, "MSA|AA|"+strings.Split(string(message), "|")[9]))
					<-received
					after(conn)
					done <- struct{}{}
					defer func() { _ = conn.Close() }()
				}
			})
			a := newAdapter(t, calendar(l.Addr().String()))
			t.Cleanup(func() { _ = l.Close(); _ = a.Close(); serving.Wait() })
			for _, id := range []string{"e-1", "e-2"} {
				if _, err := a.Deliver(t.Context(), hearing("created", id, "")); err != nil {
					t.Fatalf("%s: %v", id, err)
				}
				received <- struct{}{}
				<-done
			}
		})
	}
}

// After the first step, the steps are those of the only list that has more.
func TestStepsOfAnUnknownAppointment(t *testing.T) {
	c := calendar("clinic.example.org:2575")
	c.Messages = map[string]Message{"*": {Event: "S12", Then: []Next{{Event: "S14"}}, Known: &Known{Event: "S13"}}}
	a := newAdapter(t, c)
	msg := hearing("created", "e-1", "")
	msg.Step, msg.Ref.ExternalID = 1, "F-1"
	if p, err := a.Preview(msg); err != nil || p.Method != "SIU^S14" {
		t.Errorf("%+v, %v", p, err)
	}
}

// An attempt with a span has a span of its exchange, without anything of the message.
func TestSpan(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	tracer := trace.NewTracerProvider(trace.WithSpanProcessor(spans)).Tracer("test")
	address, _ := reply(t, func(n int, message string) []byte {
		if n == 0 {
			return framed(header, "MSA|AA|"+strings.Split(message, "|")[9])
		}
		return nil
	})
	a := newAdapter(t, calendar(address))
	for _, class := range []adapters.Class{adapters.ClassDelivered, adapters.ClassUnknown} {
		ctx, attempt := tracer.Start(t.Context(), "deliver")
		if _, err := a.Deliver(ctx, hearing("created", "e-1", "")); adapters.ClassOf(err) != class {
			t.Errorf("%s: %v", class, err)
		}
		attempt.End()
	}
	host, port, _ := net.SplitHostPort(address)
	var got []string
	for _, s := range spans.Ended() {
		text := s.Name()
		for _, attribute := range s.Attributes() {
			text += " " + string(attribute.Key) + "=" + attribute.Value.String()
		}
		got = append(got, text)
	}
	name := "SIU^S12 to mllp://" + address + " server.address=" + host + " server.port=" + port
	if diff := cmp.Diff([]string{name, "deliver", name + " error.type=unknown", "deliver"}, got); diff != "" {
		t.Errorf("spans (-want +got)\n%s", diff)
	}
}

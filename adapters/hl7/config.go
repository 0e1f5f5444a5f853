package hl7

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/route"
)

// Defaults and bounds of [Config].
const (
	DefaultVersion     = "2.5.1"
	DefaultTimeout     = 15 * time.Second
	MinTimeout         = 10 * time.Millisecond
	MaxTimeout         = 10 * time.Minute
	DefaultConnections = 1
	MaxConnections     = 64
)

// The modes of [Config.Acknowledgement].
const (
	Original = "original"
	Enhanced = "enhanced"
)

// Config describes one HL7 interface.
//
// A segment is a line such as
//
//	SCH|{key}|{ref.external_id?}||||{fields.reason?}
//
// Its separators are those of HL7: | between fields, ~ between repetitions, ^ between
// components and & between subcomponents. If the value of {NAME?} is missing, the smallest of
// these parts that has it is empty. A field or segment whose placeholders are all optional and
// all missing is left out with its fixed text.
type Config struct {
	// Address is host and port of the receiver. Required.
	Address string `yaml:"address" required:"adapter" pattern:":[0-9]{1,5}$" doc:"Host and port of the receiver, such as clinic.example.org:2575."`

	// Version is the version of HL7 in MSH-12. Default: 2.5.1.
	Version string `yaml:"version" oneof:"2.3|2.3.1|2.4|2.5|2.5.1|2.6|2.7|2.7.1|2.8" doc:"Version of HL7, in quotes if it has one dot. Default: 2.5.1."`

	// SendingApplication, SendingFacility, ReceivingApplication and ReceivingFacility are
	// MSH-3 to MSH-6, with ^ between components. Default: empty.
	SendingApplication   string `yaml:"sending_application" doc:"Name of your system (MSH-3)."`
	SendingFacility      string `yaml:"sending_facility" doc:"Name of your agency (MSH-4)."`
	ReceivingApplication string `yaml:"receiving_application" doc:"Name of the receiver's system (MSH-5)."`
	ReceivingFacility    string `yaml:"receiving_facility" doc:"Name of the receiver's organisation (MSH-6)."`

	// Processing is P (production), T (training) or D (debugging), for MSH-11. Default: P.
	Processing string `yaml:"processing" oneof:"P|T|D" doc:"P: production, T: training, D: debugging (MSH-11). Default: P."`

	// Acknowledgement is original or enhanced. In the original mode the answer says what
	// the receiver made of the message. In the enhanced mode it says that the receiver has
	// stored the message, and no other answer is asked for (MSH-15 is AL, MSH-16 is NE).
	// Default: original.
	Acknowledgement string `yaml:"acknowledgement" oneof:"original|enhanced" doc:"original: the answer says what became of the message. enhanced: it says that the receiver has stored it. Default: original."`

	// Messages are what is sent, by event type, or pattern in which * is any number of
	// characters. An exact type wins, then the pattern with the most other characters.
	// Required.
	Messages map[string]Message `yaml:"messages" required:"adapter" filled:"true" keys:"event" doc:"What is sent, by event type or pattern."`

	// Segments are the lines after MSH. The first one is SCH. Required, here or in every
	// message.
	Segments string `yaml:"segments" doc:"Segments after MSH, a line each, with placeholders such as {fields.start}. The first one is SCH."`

	// ExternalID is the field of an answer that has the receiver's own id of the
	// appointment, such as SCH-2 or ZAP-3.1. Default: no id is read, and the reference of a
	// key is the key itself, as long as the receiver has its appointment.
	ExternalID string `yaml:"external_id" pattern:"^[A-Z][A-Z0-9]{2}-[0-9]{1,2}" doc:"Where the receiver's own id is in its answer: segment, field and component, such as SCH-2 or SCH-2.1."`

	// Outcomes give acknowledgement codes (AE, AR, CE, CR) and error codes of HL7 table
	// 0357 (such as 207) another class than the default table in docs/adapters/hl7.md. An
	// error code goes first.
	Outcomes map[string]string `yaml:"outcomes" keys:"acknowledgement" oneof:"delivered|duplicate|accepted|transient|throttled|auth|forbidden|permanent|conflict|unknown" doc:"Class by acknowledgement code, such as AE, or error code, such as 207, instead of that of the default table."`

	// TLS turns TLS on, and says which certificates to trust and which client certificate
	// to show. An empty section is TLS with the system's authorities. Default: no TLS.
	TLS *adapters.TLS `yaml:"tls" doc:"Turns TLS on: certificates to trust, and the client certificate. Default: no TLS."`

	// Timeout bounds an attempt, from the name lookup to the end of the answer. It is from
	// 10ms to 10m. Default: 15s.
	Timeout time.Duration `yaml:"timeout" doc:"Longest time of an attempt, to the end of the answer: 10ms to 10m. Default: 15s."`

	// Connections is how many connections a relay has at most, from 1 to 64. Each has one
	// message in flight. Default: 1.
	Connections int `yaml:"connections" doc:"Most connections of a relay, each with one message in flight: 1 to 64. Default: 1."`
}

// Message is what is sent for events of one type.
type Message struct {
	// Event is the trigger event: S12 new appointment, S13 other time, S14 other change,
	// S15 cancellation, S17 deletion, or another one of SIU. Required.
	Event string `yaml:"event" short:"true" pattern:"^S(1[2-9]|2[0-467])$" doc:"Trigger event of SIU, such as S12."`

	// Segments are used instead of those of Config. Default: those of Config.
	Segments string `yaml:"segments" doc:"Segments of this message. Default: those of the adapter."`

	// Then are further messages for the same event, for systems that know no change of
	// time: a cancellation and a new booking. Each is sent after the one before was
	// accepted, as a step of its own with its own control id, also after a crash.
	Then []Next `yaml:"then" doc:"Further messages for the same event, each after the one before was accepted."`

	// Known is used instead while the receiver has an appointment of the key: after the
	// first message that it accepted, until S15 or S17. Default: the same message.
	Known *Known `yaml:"known" doc:"What is sent instead while the receiver has an appointment of the key, such as S13."`
}

// Known is what is sent while the receiver has an appointment of the key.
type Known struct {
	Event    string `yaml:"event" short:"true" pattern:"^S(1[2-9]|2[0-467])$" doc:"Trigger event of SIU, such as S13."` // required
	Segments string `yaml:"segments" doc:"Segments of this message. Default: those of the adapter."`                    // default: Config.Segments
	Then     []Next `yaml:"then" doc:"Further messages for the same event, each after the one before was accepted."`    // see Message.Then; only one of the two may have it
}

// Next is a further message for the same event.
type Next struct {
	Event    string `yaml:"event" short:"true" pattern:"^S(1[2-9]|2[0-467])$" doc:"Trigger event of SIU, such as S12."` // required
	Segments string `yaml:"segments" doc:"Segments of this message. Default: those of the adapter."`                    // default: Config.Segments
}

var (
	versions = []string{"2.3", "2.3.1", "2.4", "2.5", "2.5.1", "2.6", "2.7", "2.7.1", "2.8"}

	// trigger matches the events of SIU with the structure SIU_S12 (HL7 2.5.1, 10.4).
	trigger = regexp.MustCompile(`^S(1[2-9]|2[0-467])$`)

	outcomeKey = regexp.MustCompile(`^([AC][ERA]|[0-9]{3})$`)
)

func (c Config) withDefaults() Config {
	c.Version = cmp.Or(c.Version, DefaultVersion)
	c.Processing = cmp.Or(c.Processing, "P")
	c.Acknowledgement = cmp.Or(c.Acknowledgement, Original)
	c.Timeout = cmp.Or(c.Timeout, DefaultTimeout)
	c.Connections = cmp.Or(c.Connections, DefaultConnections)
	return c
}

// New returns an adapter for c. Its error reports everything that is wrong with c, each line
// with the field's name, and no secret.
func New(c Config) (*Adapter, error) {
	c = c.withDefaults()
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := checkAddress(c.Address); err != nil {
		wrong("address: %w", err)
	}
	for _, word := range []struct {
		key, value string
		words      []string
	}{
		{"version", c.Version, versions},
		{"processing", c.Processing, []string{"P", "T", "D"}},
		{"acknowledgement", c.Acknowledgement, []string{Original, Enhanced}},
	} {
		if !slices.Contains(word.words, word.value) {
			wrong("%s: %q is not one of %s", word.key, word.value, strings.Join(word.words, ", "))
		}
	}
	for _, name := range c.names() {
		if err := checkName(name[1]); err != nil {
			wrong("%s: %w", name[0], err)
		}
	}
	if c.Timeout < MinTimeout || c.Timeout > MaxTimeout {
		wrong("timeout: %s is not from %s to %s", c.Timeout, MinTimeout, MaxTimeout)
	}
	if c.Connections < 1 || c.Connections > MaxConnections {
		wrong("connections: %d is not from 1 to %d", c.Connections, MaxConnections)
	}
	a := &Adapter{header: c, what: "mllp://" + c.Address}
	var err error
	a.messages, err = parseMessages(c)
	errs = append(errs, err)
	if a.externalID, err = parsePlace(c.ExternalID); err != nil {
		wrong("external_id: %w", err)
	}
	if c.ExternalID == "" && a.usesID() {
		wrong("external_id: is required by {ref.external_id} in the segments: write where an answer has the receiver's id, or remove the placeholder")
	}
	a.outcomes, err = parseOutcomes(c.Outcomes)
	errs = append(errs, err)
	a.pool, err = newPool(c)
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return a, nil
}

// names are the fields MSH-3 to MSH-6, with their keys.
func (c Config) names() [][2]string {
	return [][2]string{
		{"sending_application", c.SendingApplication},
		{"sending_facility", c.SendingFacility},
		{"receiving_application", c.ReceivingApplication},
		{"receiving_facility", c.ReceivingFacility},
	}
}

func checkAddress(address string) error {
	if address == "" {
		return errors.New("is required: host and port, such as clinic.example.org:2575")
	}
	host, port, err := net.SplitHostPort(address)
	n, numberErr := strconv.ParseUint(port, 10, 16)
	if err != nil || numberErr != nil || n == 0 || host == "" || strings.ContainsAny(host, "{}/@ ") {
		return fmt.Errorf("%q is not a host and a port, such as clinic.example.org:2575", address)
	}
	return nil
}

// checkName refuses what does not fit into a field of MSH.
func checkName(text string) error {
	if strings.ContainsAny(text, "|~{}") {
		return errors.New("has one of the characters | ~ { }: write a name, with ^ between components")
	}
	return printable(text)
}

// parseMessages reads the messages by event type.
func parseMessages(c Config) (route.Table[plan], error) {
	var errs []error
	check := func(field string, err error) {
		for _, e := range exchange.Flatten(err) {
			errs = append(errs, fmt.Errorf("%s: %w", field, e))
		}
	}
	common, err := parseSegments(c.Segments)
	check("segments", err)
	parse := func(field, event, segments string) message {
		m := message{event: event, source: cmp.Or(segments, c.Segments), segments: common}
		switch {
		case event == "":
			check(field+"event", errors.New("is required: a trigger event such as S12"))
		case !trigger.MatchString(event):
			check(field+"event", fmt.Errorf("%q is not a trigger event of SIU: write S12 (new), S13 (other time), S14 (other change), S15 (cancelled) or another one", event))
		}
		if segments != "" {
			m.segments, err = parseSegments(segments)
			check(field+"segments", err)
		} else if c.Segments == "" {
			check(field+"segments", errors.New("are required, here or for all messages in segments of the adapter"))
		}
		return m
	}
	steps := func(field, event, segments string, then []Next) []message {
		all := []message{parse(field, event, segments)}
		for i, next := range then {
			all = append(all, parse(fmt.Sprintf("%sthen[%d].", field, i), next.Event, next.Segments))
		}
		return all
	}
	all := map[string]plan{}
	for _, pattern := range slices.Sorted(maps.Keys(c.Messages)) {
		m := c.Messages[pattern]
		field := fmt.Sprintf("messages[%q].", pattern)
		if pattern == "" {
			check(strings.TrimSuffix(field, "."), errors.New("name an event type, or a pattern such as *:created"))
		}
		p := plan{first: steps(field, m.Event, m.Segments, m.Then)}
		if p.known = p.first; m.Known != nil {
			p.known = steps(field+"known.", m.Known.Event, m.Known.Segments, m.Known.Then)
			if len(m.Then) > 0 && len(m.Known.Then) > 0 {
				check(field+"then, "+field+"known.then", errors.New("a message and its known cannot both have then: after the first step it would not be clear which list continues"))
			}
		}
		all[pattern] = p
	}
	if len(all) == 0 {
		errs = append(errs, errors.New(`messages: is required: write what is sent for each event type, such as {"scheduling:created": S12}`))
	}
	return route.New(all, plan{}), errors.Join(errs...)
}

func parseOutcomes(outcomes map[string]string) (map[string]adapters.Class, error) {
	classes := map[string]adapters.Class{}
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(outcomes)) {
		class := adapters.Class(outcomes[key])
		if !outcomeKey.MatchString(key) {
			errs = append(errs, fmt.Errorf("outcomes[%q]: is not a code: write an acknowledgement code, such as AE, or an error code of three digits, such as 207", key))
		}
		if err := exchange.CheckClass(class); err != nil {
			errs = append(errs, fmt.Errorf("outcomes[%q]: %w", key, err))
		}
		classes[key] = class
	}
	return classes, errors.Join(errs...)
}

package config

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/relay"
)

const maxDuration = 100 * 365 * 24 * time.Hour

// scalar says how the values of a type are written.
type scalar struct {
	kind    kind   // kindText: a special notation, in which 0 may be a number
	want    string // what to write, such as "a duration such as 15s"
	types   any    // of the schema
	pattern string // of the schema; default: a text with ${

	// parse returns a value of the type. Its error says what is wrong and what to write
	// instead, and does not repeat the text.
	parse func(text string) (any, error)
}

var scalars = map[reflect.Type]scalar{
	reflect.TypeFor[bool]():          {kindBool, "true or false", []string{"boolean", "string"}, "", parseBool},
	reflect.TypeFor[float64]():       {kindNumber, "a number", []string{"number", "string"}, "", parseFloat},
	reflect.TypeFor[int]():           {kindNumber, "a whole number", []string{"integer", "string"}, "", parseInt},
	reflect.TypeFor[time.Duration](): {kindText, "a duration such as 15s", []string{"string", "integer"}, `^(0|` + durationPattern + `|.*\$\{.*)$`, parseDuration},
	reflect.TypeFor[Period]():        {kindText, "a period such as 90d or 84mo", "string", `^([0-9]+mo|` + durationPattern + `|.*\$\{.*)$`, parsePeriod},
	reflect.TypeFor[Percent]():       {kindText, "a percentage such as 20%", []string{"string", "integer"}, `^((100|[0-9]{1,2}(\.[0-9]+)?)%|0|.*\$\{.*)$`, parsePercent},
	reflect.TypeFor[Rate]():          {kindText, "a rate such as 20/s, or 0", []string{"string", "integer"}, `^([0-9]+(\.[0-9]+)?/[smh]|0|.*\$\{.*)$`, func(text string) (any, error) { return ParseRate(text) }},

	reflect.TypeFor[relay.Weekdays]():  {kindText, "days such as Mon-Fri", "string", `^(` + daysPattern + `( *, *` + daysPattern + `)*|.*\$\{.*)$`, parseDays},
	reflect.TypeFor[relay.TimeOfDay](): {kindText, "a time of day such as 08:00", "string", `^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00|.*\$\{.*)$`, parseTimeOfDay},
	reflect.TypeFor[relay.Date]():      {kindText, "a date such as 2026-12-25", "string", `^([0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])|.*\$\{.*)$`, parseDate},
}

const durationPattern = `([0-9]+d([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))*|([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+)`

func parseBool(text string) (any, error)  { return strconv.ParseBool(text) }
func parseFloat(text string) (any, error) { return strconv.ParseFloat(text, 64) }

func parseInt(text string) (any, error) {
	i, err := strconv.ParseInt(text, 10, 32)
	return int(i), err
}

// within reports whether value is within the bounds low and high, which come from tags.
func (s scalar) within(value any, low, high string) bool {
	measure := func(value any) float64 {
		switch x := value.(type) {
		case Period:
			return float64(x.Duration) + float64(x.Months)*30*24*float64(time.Hour)
		case time.Duration:
			return float64(x)
		default:
			return float64(x.(int))
		}
	}
	least, _ := s.parse(low)
	most, _ := s.parse(high)
	return measure(least) <= measure(value) && measure(value) <= measure(most)
}

var (
	errNoUnit  = errors.New("has no unit: write for example 15s")
	errTooLong = errors.New("is longer than 100 years: shorten it")
)

var durationText = regexp.MustCompile(`^(?:(\d+)d)?((?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))*)$`)

// parseDuration reads Go's notation and days: 50ms, 1h30m, 3d, 1d12h.
func parseDuration(text string) (any, error) {
	m := durationText.FindStringSubmatch(text)
	_, notNumber := strconv.ParseFloat(text, 64)
	switch {
	case text == "0":
		return time.Duration(0), nil
	case strings.HasPrefix(text, "-"):
		return nil, errors.New("is negative: a duration is 0 or more, such as 15s")
	case notNumber == nil:
		return nil, errNoUnit
	case m == nil || text == "":
		return nil, errors.New("is not a duration: write a number with a unit, such as 500ms, 15s, 5m, 2h or 3d")
	}
	days, tooMany := strconv.ParseInt("0"+m[1], 10, 32)
	total, tooLong := time.ParseDuration(fmt.Sprintf("%dh%s", 24*days, m[2]))
	if tooMany != nil || tooLong != nil || total > maxDuration {
		return nil, errTooLong
	}
	return total, nil
}

// parsePeriod reads a duration, or calendar months as 84mo.
func parsePeriod(text string) (any, error) {
	if digits, ok := strings.CutSuffix(text, "mo"); ok {
		if months, err := strconv.ParseUint(digits, 10, 32); err == nil && months <= 1200 {
			return Period{Months: int(months)}, nil
		} else if err == nil {
			return nil, errTooLong
		}
	}
	d, err := parseDuration(text)
	switch {
	case err == nil:
		return Period{Duration: d.(time.Duration)}, nil
	case strings.HasPrefix(err.Error(), "is not"), errors.Is(err, errNoUnit):
		return nil, errors.New("is not a period: write days or months, such as 90d or 84mo")
	}
	return nil, err
}

func parsePercent(text string) (any, error) {
	digits, ok := strings.CutSuffix(text, "%")
	x, err := strconv.ParseFloat(digits, 64)
	if !ok && text != "0" || err != nil || math.IsNaN(x) || x < 0 || x > 100 {
		return nil, errors.New("is not a share: write a percentage from 0% to 100%, such as 20%")
	}
	return Percent(x / 100), nil
}

// ParseRate reads 20/s, 600/m, 1000/h, or 0.
func ParseRate(text string) (Rate, error) {
	if text == "0" {
		return 0, nil
	}
	count, unit, _ := strings.Cut(text, "/")
	per := map[string]float64{"s": 1, "m": 60, "h": 3600}[unit]
	x, err := strconv.ParseFloat(count, 64)
	if err != nil || per == 0 || math.IsNaN(x) || x <= 0 || x > 1e6 {
		return 0, errors.New("is not a rate: write a number per second, minute or hour, such as 20/s, 600/m or 1000/h, or 0 for no limit")
	}
	return Rate(x / per), nil
}

package config

import (
	"errors"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const maxDuration = 100 * 365 * 24 * time.Hour

// duration is Go's notation and days: 50ms, 1h30m, 3d, 1d12h.
type duration time.Duration

var errNoUnit = errors.New("has no unit: write for example 15s")

var durationText = regexp.MustCompile(`^(?:(\d+)d)?((?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))*)$`)

func (d *duration) parse(text string) error {
	bad := errors.New("is not a duration: write a number with a unit, such as 500ms, 15s, 5m, 2h or 3d")
	switch {
	case text == "0":
		*d = 0
		return nil
	case strings.HasPrefix(text, "-"):
		return errors.New("is negative: a duration is 0 or more, such as 15s")
	}
	m := durationText.FindStringSubmatch(text)
	if m == nil || text == "" {
		if _, err := strconv.ParseFloat(text, 64); err == nil {
			return errNoUnit
		}
		return bad
	}
	var total time.Duration
	if m[1] != "" {
		days, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil || days > int64(maxDuration/(24*time.Hour)) {
			return errors.New("is longer than 100 years")
		}
		total = time.Duration(days) * 24 * time.Hour
	}
	if m[2] != "" {
		rest, err := time.ParseDuration(m[2])
		if err != nil {
			return bad
		}
		total += rest
	}
	if total < 0 || total > maxDuration {
		return errors.New("is longer than 100 years")
	}
	*d = duration(total)
	return nil
}

func (d *duration) schema() map[string]any {
	return map[string]any{"type": "string", "pattern": `^(0|([0-9]+d)?([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))*|.*\$\{.*)$`}
}

var periodText = regexp.MustCompile(`^(\d{1,5})mo$`)

// parse reads a duration, or calendar months as 84mo.
func (p *Period) parse(text string) error {
	if m := periodText.FindStringSubmatch(text); m != nil {
		months, err := strconv.Atoi(m[1])
		if err != nil || months > 1200 {
			return errors.New("is longer than 100 years")
		}
		*p = Period{Months: months}
		return nil
	}
	var d duration
	if err := d.parse(text); err != nil {
		if strings.HasPrefix(err.Error(), "is not") || errors.Is(err, errNoUnit) {
			return errors.New("is not a period: write days or months, such as 90d or 84mo")
		}
		return err
	}
	*p = Period{Duration: time.Duration(d)}
	return nil
}

func (p *Period) schema() map[string]any {
	return map[string]any{"type": "string", "pattern": `^([0-9]+mo|([0-9]+d)?([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))*|.*\$\{.*)$`}
}

// percent is a share: 20% is 0.2.
type percent float64

func (p *percent) parse(text string) error {
	digits, ok := strings.CutSuffix(text, "%")
	x, err := strconv.ParseFloat(digits, 64)
	if text == "0" {
		ok, err = true, nil
	}
	if !ok || err != nil || math.IsNaN(x) || x < 0 || x > 100 {
		return errors.New("is not a share: write a percentage from 0% to 100%, such as 20%")
	}
	*p = percent(x / 100)
	return nil
}

func (p *percent) schema() map[string]any {
	return map[string]any{"type": []string{"string", "integer"}, "pattern": `^([0-9]+(\.[0-9]+)?%|0|.*\$\{.*)$`}
}

// rate is a number per second: 20/s, 600/m, 1000/h; 0 is no limit.
type rate float64

func (r *rate) parse(text string) error {
	bad := errors.New("is not a rate: write a number per second, minute or hour, such as 20/s, 600/m or 1000/h, or 0 for no limit")
	if text == "0" {
		*r = 0
		return nil
	}
	count, unit, _ := strings.Cut(text, "/")
	per := map[string]float64{"s": 1, "m": 60, "h": 3600}[unit]
	x, err := strconv.ParseFloat(count, 64)
	if err != nil || per == 0 || math.IsNaN(x) || x <= 0 || x > 1e6 {
		return bad
	}
	*r = rate(x / per)
	return nil
}

func (r *rate) schema() map[string]any {
	return map[string]any{"type": []string{"string", "integer"}, "pattern": `^([0-9]+(\.[0-9]+)?/[smh]|0|.*\$\{.*)$`}
}

// notation says what to write for p.
func notation(p scalar) string {
	switch p.(type) {
	case *duration:
		return "a duration such as 15s"
	case *Period:
		return "a period such as 90d or 84mo"
	case *percent:
		return "a percentage such as 20%"
	}
	return "a rate such as 20/s, or 0"
}

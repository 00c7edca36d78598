package file

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/google/pprof/profile"
)

// FormatValue writes a value of a pprof unit for people, as the flame graph does: 1530000000 nanoseconds are "1.53 s".
func FormatValue(v int64, unit string) string {
	x := float64(v)
	switch unit {
	case "nanoseconds":
		return formatTime(x)
	case "microseconds":
		return formatTime(x * 1e3)
	case "milliseconds":
		return formatTime(x * 1e6)
	case "seconds":
		return formatTime(x * 1e9)
	case "bytes":
		return scaled(x, []step{{1 << 40, 1 << 40, " TiB"}, {1 << 30, 1 << 30, " GiB"}, {1 << 20, 1 << 20, " MiB"},
			{1 << 10, 1 << 10, " KiB"}, {0, 1, " B"}})
	}
	s := scaled(x, []step{{1e12, 1e12, " T"}, {1e9, 1e9, " G"}, {1e6, 1e6, " M"}, {1e4, 1e3, " k"}, {0, 1, ""}})
	if unit != "" && unit != "count" {
		s += " " + unit
	}
	return s
}

func formatTime(ns float64) string {
	if ns == 0 {
		return "0 s"
	}
	return scaled(ns, []step{{7.2e12, 3.6e12, " h"}, {1.2e11, 6e10, " min"}, {1e9, 1e9, " s"}, {1e6, 1e6, " ms"}, {1e3, 1e3, " µs"},
		{0, 1, " ns"}})
}

// step: from least on, a value is divided by size and gets name.
type step struct {
	least, size float64
	name        string
}

func scaled(x float64, steps []step) string {
	for _, s := range steps {
		if math.Abs(x) < s.least {
			continue
		}
		y := x / s.size
		digits := 2
		switch {
		case math.Abs(y) >= 100 || y == math.Trunc(y):
			digits = 0
		case math.Abs(y) >= 10:
			digits = 1
		}
		return strconv.FormatFloat(y, 'f', digits, 64) + s.name
	}
	return strconv.FormatFloat(x, 'f', -1, 64)
}

// FormatShare writes part of whole in per cent.
func FormatShare(part, whole int64) string {
	if whole == 0 {
		return "–"
	}
	p := float64(part) / float64(whole) * 100
	switch a := math.Abs(p); {
	case p == 0:
		return "0%"
	case a < 0.01:
		return "<0.01%"
	case a < 10:
		return fmt.Sprintf("%.2f%%", p)
	}
	return fmt.Sprintf("%.1f%%", p)
}

// clean makes a hostile string safe to print on one line: control characters, escape sequences for terminals and marks
// that turn the direction of the text become visible.
func clean(s string) string {
	bad := func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsPrint(r) }
	if strings.IndexFunc(s, bad) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if bad(r) && r != unicode.ReplacementChar {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// summary says in a few words what a profile holds.
func summary(p *profile.Profile, index int) []Fact {
	st := p.SampleType[index]
	var total int64
	samples := 0
	for _, s := range p.Sample {
		if index < len(s.Value) && s.Value[index] > 0 {
			total += s.Value[index]
			samples++
		}
	}
	value := FormatValue(total, st.Unit)
	if st.Unit == "nanoseconds" && p.DurationNanos > 0 && st.Type == "cpu" {
		value += fmt.Sprintf(" in %s: %.2f CPUs", FormatValue(p.DurationNanos, "nanoseconds"), float64(total)/float64(p.DurationNanos))
	} else if p.DurationNanos > 0 {
		value += " in " + FormatValue(p.DurationNanos, "nanoseconds")
	}
	facts := []Fact{{st.Type, value}}
	if st.Unit == "nanoseconds" && p.Period > 0 && p.PeriodType != nil && p.PeriodType.Unit == "nanoseconds" {
		facts = append(facts, Fact{"samples", fmt.Sprintf("%d at %d Hz, %d different stacks", total/p.Period, (1_000_000_000+p.Period/2)/p.Period, samples)})
	} else {
		facts = append(facts, Fact{"stacks", strconv.Itoa(samples)})
	}
	if p.TimeNanos > 0 {
		t := time.Unix(0, p.TimeNanos).UTC()
		when := t.Format("2006-01-02 15:04:05 UTC")
		if p.DurationNanos > 0 {
			end := t.Add(time.Duration(p.DurationNanos))
			layout := "15:04:05 UTC"
			if end.YearDay() != t.YearDay() || end.Year() != t.Year() {
				layout = "2006-01-02 15:04:05 UTC"
			}
			when = t.Format("2006-01-02 15:04:05") + " to " + end.Format(layout)
		}
		facts = append(facts, Fact{"time", when})
	}
	return facts
}

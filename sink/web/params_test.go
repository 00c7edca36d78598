package web

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func TestTimesAreReadInEverySpelling(t *testing.T) {
	for _, c := range []struct {
		in   string
		want time.Time // zero: refused
	}{
		{"", noon}, {"now", noon}, {"now-1h", noon.Add(-time.Hour)}, {"now-1h30m", noon.Add(-90 * time.Minute)}, {"-15m", noon.Add(-15 * time.Minute)},
		{"now-3d", noon.AddDate(0, 0, -3)}, {"-1w2d3h", noon.Add(-(9*24 + 3) * time.Hour)}, {"now+5m", noon.Add(5 * time.Minute)},
		{"2026-11-25T11:00:00Z", noon.Add(-time.Hour)}, {"2026-11-25T12:00:00+01:00", noon.Add(-time.Hour)}, {"2026-11-25T11:59:59.5Z", noon.Add(-500 * time.Millisecond)},
		{"1795608000000", time.UnixMilli(1795608000000)}, {" now ", noon},
		{in: "1795608000"}, {in: "yesterday"}, {in: "now-"}, {in: "now1h"}, {in: "-"}, {in: "--1h"}, {in: "now--1h"}, {in: "-1y"}, {in: "99999999999999999999"},
		{in: "1999-01-01T00:00:00Z"}, {in: "9999-01-01T00:00:00Z"}, {in: "-9999999h"}, {in: "5"}, {in: strings.Repeat("1", 100)}, {in: "now-d"}, {in: "-70000d"},
	} {
		got, err := parseTime(c.in, noon, "now")
		if c.want.IsZero() {
			if e, ok := errors.AsType[*Error](err); !ok || e.Status != http.StatusBadRequest || e.Remedy == "" {
				t.Errorf("%q: got %v, %v, want a bad request with its remedy", c.in, got, err)
			}
			continue
		}
		if err != nil || !got.Equal(c.want) {
			t.Errorf("%q: got %v, %v, want %v", c.in, got, err, c.want)
		}
	}
}

func TestSelectionsAreRead(t *testing.T) {
	q := url.Values{"from": {"now-1h"}, "match": {"service_name=shop/cart", `pod=~"web-.*"`}, "left_match": {"node!=a"}, "left_to": {"now-30m"}, "right_from": {"-10m"}, "type": {"process_cpu:cpu:nanoseconds:cpu:nanoseconds"}}
	left, err := parseSelection(q, "left_", noon)
	if err != nil {
		t.Fatal(err)
	}
	if !left.From.Equal(noon.Add(-time.Hour)) || !left.To.Equal(noon.Add(-30*time.Minute)) || len(left.Match) != 3 || left.Type != "process_cpu" {
		t.Errorf("left is %+v", left)
	}
	right, err := parseSelection(q, "right_", noon)
	if err != nil {
		t.Fatal(err)
	}
	if !right.From.Equal(noon.Add(-10*time.Minute)) || !right.To.Equal(noon) || len(right.Match) != 2 {
		t.Errorf("right is %+v", right)
	}
}

func TestBadSelectionsAreRefusedWithTheirRemedy(t *testing.T) {
	for _, q := range []string{"from=now&to=now-1h", "from=-500d", "match=foo", "match==x", "match=a=~(", "match=" + strings.Repeat("a", 2000), "match=a=~" + url.QueryEscape(strings.Repeat("(", 900)),
		"container=" + strings.Repeat("a", 300), "type=" + strings.Repeat("a", 300), strings.Repeat("match=a=b&", 40), "from=%00", "to=never"} {
		v, err := url.ParseQuery(q)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = parseSelection(v, "", noon); err == nil {
			t.Errorf("%.60s: taken", q)
		} else if e, ok := errors.AsType[*Error](err); !ok || e.Status != http.StatusBadRequest || e.Remedy == "" {
			t.Errorf("%.60s: %v, want a bad request with its remedy", q, err)
		}
	}
}

func TestStepsFitTheRange(t *testing.T) {
	for _, c := range []struct {
		span, want time.Duration
		step       string
	}{
		{15 * time.Minute, 10 * time.Second, ""}, {time.Hour, 30 * time.Second, ""}, {24 * time.Hour, 20 * time.Minute, ""}, {72 * time.Hour, time.Hour, ""},
		{time.Second, 10 * time.Second, ""}, {366 * 24 * time.Hour, 7 * 24 * time.Hour, ""}, {time.Hour, time.Minute, "1m"}, {time.Hour, 0, "1s"}, {time.Hour, 0, "x"}, {time.Hour, 0, "-1m"}, {time.Hour, 0, "1ms"},
	} {
		q := url.Values{}
		if c.step != "" {
			q.Set("step", c.step)
		}
		got, err := parseStep(q, selection{From: noon.Add(-c.span), To: noon}, 10*time.Second)
		if (c.want == 0) != (err != nil) || got != c.want {
			t.Errorf("step %q of %v: got %v, %v, want %v", c.step, c.span, got, err, c.want)
		}
	}
}

// FuzzSelection: whatever a request says, it is understood or refused, within bounds, and what was understood survives the
// deep view's links.
func FuzzSelection(f *testing.F) {
	for _, s := range []string{"from=now-1h&to=now", "from=-15m&match=a%3Db&match=c%3D~d.*&container=web", "from=1795608000000&to=2026-11-25T12:00:00Z", "from=&to=&type=", "match=a%3D%22b%22", "from=-1w2d3h4m5s&step=10s",
		"left_from=now-2h&left_to=now-1h&right_match=x!%3Dy", "from=now-9223372036854775807ns", "container=%ff%00"} {
		f.Add(s)
	}
	d := newDeepView("")
	f.Fuzz(func(t *testing.T, s string) {
		q, err := url.ParseQuery(s)
		if err != nil {
			return
		}
		for _, prefix := range []string{"", "left_", "right_"} {
			sel, err := parseSelection(q, prefix, noon)
			if err != nil {
				if _, ok := errors.AsType[*Error](err); !ok {
					t.Fatalf("refused without a remedy: %v", err)
				}
				continue
			}
			if !sel.From.Before(sel.To) || sel.From.Before(earliest) || sel.To.After(latest) || len(sel.Match) > maxMatchers {
				t.Fatalf("out of bounds: %+v", sel)
			}
			if step, err := parseStep(q, sel, 10*time.Second); err == nil && sel.To.Sub(sel.From)/step > maxPoints {
				t.Fatalf("%v steps of %v", sel.To.Sub(sel.From)/step, step)
			}
			if sel.To.UnixMilli() == sel.From.UnixMilli() {
				continue
			}
			seg := d.encodeSelection(sel, noon)
			if len(seg) > maxSelection {
				continue
			}
			back, err := d.decodeSelection(seg, false, noon)
			if err != nil || back.From.UnixMilli() != sel.From.UnixMilli() || back.Container != sel.Container || len(back.Match) != len(sel.Match) {
				t.Fatalf("%+v came back as %+v, %v", sel, back, err)
			}
		}
	})
}

func TestDeepLinksAreSignedWhereATokenIsNeeded(t *testing.T) {
	d := newDeepView("a token of some length")
	sel, err := parseSelection(url.Values{"from": {"-1h"}, "container": {"web"}}, "", noon)
	if err != nil {
		t.Fatal(err)
	}
	seg := d.encodeSelection(sel, noon)
	if _, err := d.decodeSelection(seg, false, noon.Add(time.Hour)); err != nil {
		t.Errorf("a fresh link: %v", err)
	}
	if _, err := d.decodeSelection(seg, false, noon.Add(deepLinkLife+time.Minute)); err == nil {
		t.Error("an old link still works")
	}
	other := newDeepView("").encodeSelection(sel, noon)
	for name, bad := range map[string]string{"unsigned": other, "another token": newDeepView("another token").encodeSelection(sel, noon), "another selection": "x" + seg, "a longer life": strings.Replace(seg, ".", ".9", 1), "no body": ".", "empty": ""} {
		if _, err := d.decodeSelection(bad, false, noon); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := d.decodeSelection(other, true, noon); err != nil {
		t.Errorf("through the Unix socket no signature is needed: %v", err)
	}
}

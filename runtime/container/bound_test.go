package container

import (
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestWhatIsWithinTheBoundsIsLeftAlone(t *testing.T) {
	labels := map[string]string{"a": "b", "multi": "line\nwith\ttabs and \x1b[31mcolour", "empty": "", "日本": "語"}
	c := Container{ID: strings.Repeat("a", MaxID), Runtime: "docker", Name: "Bär 1", Image: strings.Repeat("i", MaxText), Labels: labels,
		CgroupPath: "/" + strings.Repeat("p", MaxPath-1), Pod: Pod{Annotations: map[string]string{"k": strings.Repeat("v", MaxValue)}}}
	want := c.Clone()
	if n, err := c.Bound(); n != 0 || err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("%d changed, %v: %+v", n, err, c)
	}
	if reflect.ValueOf(c.Labels).Pointer() != reflect.ValueOf(labels).Pointer() {
		t.Error("the labels were copied")
	}
}

func TestTextIsCutAndMended(t *testing.T) {
	c := Container{ID: "x", Name: "evil\x1b[2J\r\nname\x00\u202e", Image: "bad\xff\xfe:1", KubernetesContainer: strings.Repeat("é", MaxText), Namespace: strings.Repeat("\xff", 100_000),
		Pod: Pod{Name: "ok"}}
	n, err := c.Bound()
	if n != 4 || err != nil || c.Name != "evil�[2J��name��" || c.Image != "bad��:1" || c.KubernetesContainer != strings.Repeat("é", MaxText/2) || c.Pod.Name != "ok" {
		t.Errorf("%d changed, %v: %.200q", n, err, []string{c.Name, c.Image, c.KubernetesContainer})
	}
	if len(c.Namespace) > MaxText || !utf8.ValidString(c.Namespace) {
		t.Errorf("%d bytes", len(c.Namespace))
	}
}

func TestAnIDIsNotCut(t *testing.T) {
	for _, c := range []Container{{ID: strings.Repeat("a", MaxID+1)}, {ID: "a\xff"}, {ID: "a\x1b[2J"}, {ID: "a\n"}, {ID: "x", CgroupPath: "/" + strings.Repeat("p", MaxPath)}} {
		if _, err := c.Bound(); err == nil || len(err.Error()) > 300 {
			t.Errorf("%.40q: got %v", c.ID, err)
		}
	}
}

func TestLabelsAreBounded(t *testing.T) {
	many := map[string]string{}
	for i := range 5000 {
		many[fmt.Sprintf("label-%04d", i)] = "v"
	}
	for name, c := range map[string]struct {
		labels map[string]string
		check  func(map[string]string) bool
		n      int
	}{
		"64 kB in one":  {map[string]string{"big": strings.Repeat("x", 64<<10), "small": "kept"}, func(m map[string]string) bool { return len(m["big"]) == MaxValue && m["small"] == "kept" }, 1},
		"many of 16 kB": {map[string]string{"a": strings.Repeat("x", MaxValue), "b": strings.Repeat("x", MaxValue), "c": strings.Repeat("x", MaxValue), "d": strings.Repeat("x", MaxValue), "z": "kept"}, func(m map[string]string) bool { return len(m) == 4 && m["z"] == "kept" && m["d"] == "" }, 1},
		"thousands":     {many, func(m map[string]string) bool { return len(m) == MaxLabels && m["label-0000"] == "v" }, 5000 - MaxLabels},
		"a long key":    {map[string]string{strings.Repeat("k", MaxKey+1): "v", "k": "v"}, func(m map[string]string) bool { return maps.Equal(m, map[string]string{"k": "v"}) }, 1},
		"a bad key":     {map[string]string{"k\xff": "v", "k": "v"}, func(m map[string]string) bool { return maps.Equal(m, map[string]string{"k": "v"}) }, 1},
		"a bad value":   {map[string]string{"k": "v\xff\xfev"}, func(m map[string]string) bool { return m["k"] == "v�v" }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			before := maps.Clone(c.labels)
			ctr := Container{ID: "x", Labels: c.labels, Annotations: map[string]string{"fine": "yes"}}
			n, err := ctr.Bound()
			if err != nil || n != c.n || !c.check(ctr.Labels) || ctr.Annotations["fine"] != "yes" {
				t.Errorf("%d changed, %v: %d labels", n, err, len(ctr.Labels))
			}
			if !maps.Equal(before, c.labels) {
				t.Error("the caller's map was written to")
			}
			if n, err := ctr.Bound(); n != 0 || err != nil {
				t.Errorf("bounded again: %d changed, %v", n, err)
			}
		})
	}
}

// An image cannot drown what its user says about the container.
func TestLabelsThatSteerAreKept(t *testing.T) {
	labels := map[string]string{"stoker.enable": "false", "pyroscope.io/service_name": strings.Repeat("s", 2000)}
	for i := range 5000 {
		labels[fmt.Sprint(i)] = ""
	}
	c := Container{ID: "x", Labels: labels}
	if _, err := c.Bound(); err != nil || c.Labels["stoker.enable"] != "false" || len(c.Labels["pyroscope.io/service_name"]) != 2000 || len(c.Labels) != MaxLabels {
		t.Errorf("%v, %d labels", err, len(c.Labels))
	}
	c.Strip()
	if len(c.Labels) != 2 || c.Labels["stoker.enable"] != "false" || c.Annotations != nil {
		t.Errorf("%+v", c)
	}
	if size := c.Size(); size < 2000 || size > 3000 {
		t.Errorf("size %d", size)
	}
}

func FuzzBound(f *testing.F) {
	f.Add("id", "name\x1b", "key", "value\xff", 3)
	f.Add("\xff", strings.Repeat("é", 2000), "", strings.Repeat("\xff", 20_000), 600)
	f.Fuzz(func(t *testing.T, id, name, key, value string, n int) {
		labels := map[string]string{}
		for i := range min(max(n, 0), 2000) {
			labels[fmt.Sprint(key, i)] = value
		}
		c := Container{ID: id, Name: name, Labels: labels, Pod: Pod{Annotations: map[string]string{key: value}}}
		if _, err := c.Bound(); err != nil {
			return
		}
		if !utf8.ValidString(c.ID+c.Name) || strings.ContainsFunc(c.ID+c.Name, unicode.IsControl) || len(c.Name) > MaxText {
			t.Errorf("id %q, name %q", c.ID, c.Name)
		}
		bytes := 0
		for k, v := range c.Labels {
			if bytes += len(k) + len(v); !utf8.ValidString(k+v) || len(k) > MaxKey || len(v) > MaxValue {
				t.Errorf("label %.40q = %.40q", k, v)
			}
		}
		if len(c.Labels) > MaxLabels || bytes > MaxLabelBytes {
			t.Errorf("%d labels of %d bytes", len(c.Labels), bytes)
		}
		if n, err := c.Bound(); n != 0 || err != nil {
			t.Errorf("bounded again: %d changed, %v", n, err)
		}
	})
}

package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func all([]byte) bool { return true }

// states are as runtimes write them, and as nobody should.
var states = []string{
	// runc 1.1.5 under Docker and ctr, containerd's CRI, Podman 4.3.1
	`{"ociVersion":"1.0.2-dev","id":"c1","status":"creating","pid":4711,"bundle":"/run/containerd/io.containerd.runtime.v2.task/default/c1"}`,
	`{"ociVersion":"1.2.0","id":"3f","status":"creating","pid":12,"bundle":"/b","annotations":{"io.kubernetes.cri.container-name":"main","io.kubernetes.cri.sandbox-namespace":"shop"}}`,
	`{"ociVersion":"1.0.2-dev","id":"9d","status":"creating","pid":99,"bundle":"/b","annotations":{"a.b":"c","io.container.manager":"libpod","org.opencontainers.image.stopSignal":"15"}}`,
	// crun
	`{"ociVersion":"1.0","id":"9d","pid":99,"root":"/r","bundle":"/b","status":"created"}`,
	// other order, spaces, escapes, values of other kinds, keys twice
	" {\n\t\"annotations\" : { \"k\\u00e9y\" : \"\\ud83d\\ude00 \\\"\\\\\\/\\b\\f\\n\\r\\t\", \"n\": 1, \"o\": {\"x\":[\"}\", {}]} } , \"pid\" : 7 , \"id\" : \"a\\/b\" } ",
	`{"id":"x","id":"y","pid":1,"pid":2,"annotations":{"a":"1"},"annotations":{"b":"2","b":"3"}}`,
	`{"id":"\ud800x\udc00","pid":0,"annotations":null}`,
	"{\"id\":\"\xff\xc3\",\"pid\":1}",
	`{"ID":"no","Id":"no","pid":3}`,
	`{}`, `[]`, `null`, ``, `{"id":`, `{"id":"x","pid":12`, `{"id":"x","pid":012}`, `{"id":"x","pid":-1}`, `{"id":"x","pid":1e3}`, `{"id":1,"pid":"2"}`,
	`{"id":"x","pid":99999999999999999999}`, `{"id":"x","a":{"b":[[[`, `{"id":"x\`, `{"id":"x\u12`, `{"id":"x","pid":1]`,
}

func TestParseStateReadsWhatRuntimesWrite(t *testing.T) {
	for _, c := range []struct {
		in   string
		want string
	}{
		{states[0], "c1 4711"},
		{states[1], "3f 12 io.kubernetes.cri.container-name=main io.kubernetes.cri.sandbox-namespace=shop"},
		{states[2], "9d 99 a.b=c io.container.manager=libpod org.opencontainers.image.stopSignal=15"},
		{states[3], "9d 99"},
		{states[4], "a/b 7 kéy=😀 \"\\/\b\f\n\r\t"},
		{states[5], "y 2 b=2 b=3"},
		// Cut off: what came before counts, half a number does not.
		{`{"id":"x","pid":12,"annotations":{"a":"1","b":"`, "x 12 a=1"},
		{`{"id":"x","pid":12`, "x 0"},
		{`{"pid":12,"bundle":"/b`, " 12"},
	} {
		s := ParseState([]byte(c.in), all)
		got := fmt.Sprintf("%s %d", s.ID, s.PID)
		for _, a := range s.Annotations {
			got += fmt.Sprintf(" %s=%s", a.Key, a.Value)
		}
		if got != c.want {
			t.Errorf("%s\n got %q\nwant %q", c.in, got, c.want)
		}
	}
}

// What is a state to encoding/json is the same state here.
func FuzzParseState(f *testing.F) {
	for _, s := range states {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := ParseState(bytes.Clone(b), all)
		var want map[string]json.RawMessage
		if json.Unmarshal(b, &want) != nil || want == nil {
			if m, ok := s.Append(nil); ok { // a state with a mistake in it is still told as far as it goes
				if _, ok := Parse(m); !ok {
					t.Fatalf("the message of %q is none: %x", b, m)
				}
			}
			return
		}
		var id string
		var pid int32
		if json.Unmarshal(want["id"], &id) != nil || json.Unmarshal(want["pid"], &pid) != nil || pid < 0 {
			return // somebody's nonsense; where it ends is not defined
		}
		if strings.Contains(string(want["pid"]), "-") || string(want["pid"]) == "null" || string(want["id"]) == "null" {
			return
		}
		if string(s.ID) != id || s.PID != int(pid) {
			// An earlier key of the same name may have stopped the parser.
			if strings.Count(string(b), `id"`)+strings.Count(string(b), `\u`) <= 2 {
				t.Fatalf("%q: got %q %d, want %q %d", b, s.ID, s.PID, id, pid)
			}
			return
		}
		for _, a := range s.Annotations {
			if !utf8.Valid(a.Key) || !utf8.Valid(a.Value) {
				t.Fatalf("%q: annotation %q=%q is no UTF-8", b, a.Key, a.Value)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range states {
		if m, ok := ParseState([]byte(s), all).Append(nil); ok {
			f.Add(m)
		}
	}
	f.Add([]byte{version, flagCut, 1, 0, 0, 0, 1, 0, 'x', 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := Parse(b)
		if !ok {
			return
		}
		if m.ID == "" || len(m.ID) > MaxID || m.PID <= 0 || len(b) > MaxMessage {
			t.Fatalf("%x: believed %+v", b, m)
		}
		// What is read is what would be said, but for the order and for what a later key has overwritten.
		again := State{ID: []byte(m.ID), PID: m.PID}
		for _, k := range slices.Sorted(maps.Keys(m.Annotations)) {
			again.Annotations = append(again.Annotations, Annotation{[]byte(k), []byte(m.Annotations[k])})
		}
		b2, ok := again.Append(nil)
		if !ok {
			t.Fatalf("%+v cannot be said", m)
		}
		m2, ok := Parse(b2)
		if m2.Cut = m.Cut; !ok || fmt.Sprint(m2) != fmt.Sprint(m) {
			t.Fatalf("%+v became %+v", m, m2)
		}
	})
}

func TestAnnotationsThatDoNotFitAreLeftOutAndTheIDNever(t *testing.T) {
	s := State{ID: bytes.Repeat([]byte("f"), MaxID), PID: 1<<31 - 1}
	for n := range 64 {
		s.Annotations = append(s.Annotations, Annotation{[]byte(fmt.Sprint("key", n)), bytes.Repeat([]byte("v"), 1024)})
	}
	s.Annotations = append(s.Annotations, Annotation{[]byte("last"), []byte("fits")}, Annotation{[]byte("huge"), make([]byte, 1<<20)})
	b, ok := s.Append([]byte("in front"))
	b = b[len("in front"):]
	m, parsed := Parse(b)
	if !ok || !parsed || len(b) > MaxMessage || !m.Cut || m.ID != string(s.ID) || m.PID != s.PID || m.Annotations["last"] != "fits" || len(m.Annotations) != 4 {
		t.Errorf("%d bytes, %t, %t, %d annotations: %+v", len(b), ok, parsed, len(m.Annotations), m)
	}
	for _, s := range []State{{ID: []byte("x")}, {PID: 1}, {ID: make([]byte, MaxID+1), PID: 1}, {ID: []byte("x"), PID: -1}} {
		if b, ok := s.Append(nil); ok || len(b) != 0 {
			t.Errorf("%+v is told: %x", s, b)
		}
	}
}

func TestAStateCutAtTheLimitStillHasItsContainer(t *testing.T) {
	value := strings.Repeat("x", 2*MaxState)
	in := `{"ociVersion":"1.0","id":"c1","status":"creating","pid":5,"bundle":"/b","annotations":{"stoker.service":"web","big":"` + value + `"}}`
	m, ok := ParseState([]byte(in[:MaxState]), Wanted).Append(nil)
	got, parsed := Parse(m)
	if !ok || !parsed || got.ID != "c1" || got.PID != 5 || got.Annotations["stoker.service"] != "web" {
		t.Errorf("got %+v, %t, %t", got, ok, parsed)
	}
}

func TestOnlyTheWantedAnnotationsAreTold(t *testing.T) {
	in := `{"id":"c1","pid":5,"annotations":{"io.kubernetes.cri-o.Volumes":"[…]","io.kubernetes.pod.name":"web-0","stoker.enable":"false","secret":"x"}}`
	s := ParseState([]byte(in), Wanted)
	if len(s.Annotations) != 2 || string(s.Annotations[0].Value) != "web-0" || string(s.Annotations[1].Value) != "false" {
		t.Errorf("got %q", s.Annotations)
	}
}

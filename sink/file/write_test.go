package file

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/pprof/profile"
	"golang.org/x/net/html"

	"github.com/stoker-profiler/stoker/sink/pprof"
)

var update = flag.Bool("update", false, "write the golden files anew")

var options = Options{
	Title: "shop/cart",
	Facts: []Fact{{"node", "edge-3"}, {"image", "registry.example.net/shop/cart:1.4"}},
	Notes: []string{"12 samples lost: their stacks did not arrive."},
}

func write(t testing.TB, f Format, p *profile.Profile, o Options) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, f, p, o); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it anew)\ngot:\n%s\nwant:\n%s", file, got, want)
	}
}

func TestGolden(t *testing.T) {
	narrow := options
	narrow.Width, narrow.Rows = 60, 3
	for _, c := range []struct {
		name   string
		format Format
		o      Options
	}{
		{"small.txt", Text, options}, {"narrow.txt", Text, narrow}, {"small.folded", Folded, options}, {"small.svg", SVG, options},
		{"small.speedscope.json", Speedscope, options}, {"small.html", HTML, options},
	} {
		got := write(t, c.format, small(), c.o)
		if c.format == HTML { // without the scripts and styles, which have tests of their own
			got = regexp.MustCompile(`(?s)<style>.*?</style>|<script>.*?</script>|'sha256-[^']*'`).ReplaceAllString(got, "…")
		}
		golden(t, c.name, got)
	}
}

func TestNarrowTextFits(t *testing.T) {
	for width := 56; width < 120; width += 7 {
		for line := range strings.Lines(write(t, Text, large(), Options{Width: width, Title: strings.Repeat("t", 300)})) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
				t.Fatalf("%d characters for a width of %d: %s", n, width, line)
			}
		}
	}
}

func TestPprofRoundTrip(t *testing.T) {
	p, err := pprof.Parse([]byte(write(t, Pprof, small(), options)))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := p.String(), small().String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestDifferenceOnlyWhereItCanBeShown(t *testing.T) {
	o := options
	o.Base = small()
	for _, f := range []Format{Pprof, HTML} {
		if out := write(t, f, large(), o); len(out) == 0 {
			t.Errorf("%s: empty", f)
		}
	}
	for _, f := range []Format{SVG, Folded, Speedscope, Text} {
		if err := Write(io.Discard, f, large(), o); err == nil || !strings.Contains(err.Error(), ".html") {
			t.Errorf("%s: error %v, want one that names the formats that can", f, err)
		}
	}
}

func TestSampleTypeThatIsNotThere(t *testing.T) {
	for _, i := range []int{-1, 1} {
		if err := Write(io.Discard, Text, small(), Options{SampleIndex: i}); err == nil {
			t.Errorf("sample type %d passed", i)
		}
	}
}

func TestFormatOf(t *testing.T) {
	for name, want := range map[string]Format{"a.pb.gz": Pprof, "a.b/x.HTML": HTML, "x.svg": SVG, "x.folded": Folded, "x.json": Speedscope, "x.txt": Text, "-": Text} {
		if got, err := FormatOf(name); got != want || err != nil {
			t.Errorf("%s: %s, %v; want %s", name, got, err, want)
		}
	}
	for _, name := range []string{"", "x", "x.gz", "x.png", "html"} {
		if _, err := FormatOf(name); err == nil || !strings.Contains(err.Error(), ".pb.gz, .html, .svg") {
			t.Errorf("%q: error %v, want one that lists the endings", name, err)
		}
	}
	for _, e := range endings {
		if f, err := ParseFormat(e.name); f != e.format || err != nil || f.String() != e.name || f.Ending() != e.ending || f.ContentType() == "" {
			t.Errorf("%s: %v, %v", e.name, f, err)
		}
	}
	if _, err := ParseFormat("flame"); err == nil {
		t.Error("an unknown format passed")
	}
}

// elements lists what a page is made of: elements with their attributes' names, and its text.
func elements(t testing.TB, page string) (tags []string, text string) {
	t.Helper()
	root, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for n := range root.Descendants() {
		switch n.Type {
		case html.ElementNode:
			tag := n.Data
			for _, a := range n.Attr {
				tag += " " + a.Key
			}
			tags = append(tags, tag)
		case html.TextNode:
			if p := n.Parent.Data; p != "script" && p != "style" {
				b.WriteString(n.Data)
			}
		}
	}
	return tags, b.String()
}

func TestPageHoldsHostileNamesAsTextOnly(t *testing.T) {
	o := options
	o.Title, o.Notes = hostile, []string{hostile}
	o.Facts = []Fact{{hostile, hostile}}
	page := write(t, HTML, small(), o)
	tags, text := elements(t, page)
	scripts := 0
	for _, tag := range tags {
		name, attributes, _ := strings.Cut(tag, " ")
		switch name {
		case "script":
			scripts++
		case "img", "iframe", "object", "link", "base":
			t.Errorf("the page has <%s>", tag)
		}
		for a := range strings.FieldsSeq(attributes) {
			if strings.HasPrefix(a, "on") || a == "style" || a == "src" || a == "href" {
				t.Errorf("the page has <%s>", tag)
			}
		}
	}
	if scripts != 3 {
		t.Errorf("%d scripts, want the data, the flame graph and the page's own", scripts)
	}
	if want := clean(hostile); strings.Count(text, want) < 5 {
		t.Errorf("the name is there %d times as text", strings.Count(text, want))
	}
}

func TestNothingNamesAnotherHost(t *testing.T) {
	url := regexp.MustCompile(`(?i)(https?:)?//[a-z0-9-]+\.[a-z.]+[^\s"'<)]*`)
	for _, f := range []Format{HTML, SVG} {
		for _, found := range url.FindAllString(write(t, f, small(), options), -1) {
			if found != "http://www.w3.org/2000/svg" {
				t.Errorf("%s names %s", f, found)
			}
		}
	}
	entries, err := fs.ReadDir(Assets, "assets")
	if err != nil || len(entries) != 2 {
		t.Fatalf("assets: %v, %v", entries, err)
	}
	for _, e := range entries {
		b, err := fs.ReadFile(Assets, "assets/"+e.Name())
		if err != nil {
			t.Fatal(err)
		}
		if found := url.FindAll(b, -1); found != nil {
			t.Errorf("%s names %s", e.Name(), found)
		}
		if bytes.Contains(bytes.ToLower(b), []byte("</s")) {
			t.Errorf("%s would end the element that it is put in", e.Name())
		}
		for _, bad := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"} {
			if bytes.Contains(b, []byte(bad)) {
				t.Errorf("%s uses %s", e.Name(), bad)
			}
		}
	}
}

func FuzzNames(f *testing.F) {
	for _, s := range []string{hostile, "", "a;b", "\x00\x01\x02", "]]>", "<!--", "\u2028\u202e", "\xff\xfe", "operator<<(std::ostream&, T const&)", "main.(*T).f[go.shape.int]"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, name, module string) {
		b := newProfile()
		b.add(10, [2]string{app, "main"}, [2]string{module, name}, [2]string{app, "leaf"})
		o := Options{Title: name, Notes: []string{module}, Facts: []Fact{{module, name}}}
		plain := newProfile()
		plain.add(10, [2]string{app, "main"}, [2]string{libc, "f"}, [2]string{app, "leaf"})
		want, _ := elements(t, write(t, HTML, plain.p, Options{Title: "t", Notes: []string{"n"}, Facts: []Fact{{"a", "b"}}}))
		got, _ := elements(t, write(t, HTML, b.p, o))
		if module == "" { // no <small> with the file
			return
		}
		if name != "main" && name != "leaf" && fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("the page is made of\n%v, want\n%v", got, want)
		}
		dec := xml.NewDecoder(strings.NewReader(write(t, SVG, b.p, o)))
		for {
			if _, err := dec.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("SVG: %v", err)
			}
		}
		if s := write(t, Folded, b.p, o); strings.Count(s, "\n") != 1 || strings.Count(s, ";") != 2 {
			t.Errorf("folded: %q", s)
		}
		if s := write(t, Speedscope, b.p, o); !json.Valid([]byte(s)) {
			t.Errorf("speedscope: %q", s)
		}
		for _, r := range write(t, Text, b.p, o) {
			if r < ' ' && r != '\n' || r == 0x7f || 0x80 <= r && r < 0xa0 {
				t.Errorf("text has the control character %U", r)
			}
		}
	})
}

func TestSpeedscopeIsWhatItsSchemaWants(t *testing.T) {
	p := large()
	var got struct {
		Schema string `json:"$schema"`
		Shared struct {
			Frames []map[string]any `json:"frames"`
		} `json:"shared"`
		Profiles []struct {
			Type, Name, Unit     string
			StartValue, EndValue int64
			Samples              [][]int
			Weights              []int64
		} `json:"profiles"`
	}
	dec := json.NewDecoder(strings.NewReader(write(t, Speedscope, p, options)))
	if err := dec.Decode(&got); err != nil {
		t.Fatal(err)
	}
	x := got.Profiles[0]
	if got.Schema != "https://www.speedscope.app/file-format-schema.json" || len(got.Profiles) != 1 || x.Type != "sampled" || x.Unit != "nanoseconds" || x.StartValue != 0 {
		t.Errorf("schema %q, %d profiles, type %s, unit %s", got.Schema, len(got.Profiles), x.Type, x.Unit)
	}
	if len(x.Samples) != len(x.Weights) || len(x.Samples) != len(p.Sample) {
		t.Errorf("%d samples, %d weights, want %d", len(x.Samples), len(x.Weights), len(p.Sample))
	}
	var sum int64
	for i, s := range x.Samples {
		sum += x.Weights[i]
		for _, n := range s {
			if n < 0 || n >= len(got.Shared.Frames) {
				t.Fatalf("sample %d names frame %d of %d", i, n, len(got.Shared.Frames))
			}
		}
	}
	if sum != x.EndValue {
		t.Errorf("weights sum to %d, the end is %d", sum, x.EndValue)
	}
}

func TestCreateIsAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "x.folded")
	for range 2 { // the second time it replaces the first
		if err := Create(name, small(), options); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != write(t, Folded, small(), options) {
		t.Errorf("%q, %v", got, err)
	}
	if err := create(filepath.Join(dir, "y.svg"), func(w io.Writer) error {
		if _, err := w.Write([]byte("half")); err != nil {
			t.Error(err)
		}
		return errors.New("the rest did not come")
	}); err == nil {
		t.Error("a failed write passed")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
}

func TestCreateWritesThroughLinksAndIntoPipes(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target.txt"), filepath.Join(dir, "link.txt")
	if err := os.WriteFile(target, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if err := Create(link, small(), options); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link became %v, %v", info.Mode(), err)
	}
	if got, err := os.ReadFile(target); err != nil || string(got) == "old" {
		t.Errorf("the link's target holds %q, %v", got, err)
	}
	device := filepath.Join(dir, "null.txt")
	if err := os.Symlink(os.DevNull, device); err != nil {
		t.Fatal(err)
	}
	if err := Create(device, small(), options); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(os.DevNull); err != nil || info.Mode()&fs.ModeDevice == 0 {
		t.Fatalf("%s is now %v, %v", os.DevNull, info.Mode(), err)
	}
}

func TestCreateNamesTheRemedy(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "d.svg"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		filepath.Join(dir, "no", "x.svg"): "create the directory",
		filepath.Join(dir, "d.svg"):       "name a file in it",
		filepath.Join(dir, "x.png"):       ".pb.gz",
		"/proc/x.svg":                     "",
		"-":                               "standard output",
	} {
		if err := Create(name, small(), options); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want it to say %q", name, err, want)
		}
	}
	for _, c := range []struct {
		err  error
		want string
	}{{fs.ErrPermission, "choose a directory"}, {errors.New("other"), ""}} {
		if got := remedy(c.err, "/x"); !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%v: %q", c.err, got)
		}
	}
}

func TestFormatValue(t *testing.T) {
	for _, c := range []struct {
		v    int64
		unit string
		want string
	}{
		{0, "nanoseconds", "0 s"}, {999, "nanoseconds", "999 ns"}, {1_530_000_000, "nanoseconds", "1.53 s"}, {-1_530_000, "nanoseconds", "-1.53 ms"},
		{119e9, "nanoseconds", "119 s"}, {121e9, "nanoseconds", "2.02 min"}, {9000e9, "nanoseconds", "2.50 h"}, {12_340, "microseconds", "12.3 ms"},
		{1536, "bytes", "1.50 KiB"}, {0, "bytes", "0 B"}, {1 << 40, "bytes", "1 TiB"}, {9999, "count", "9999"}, {12_345, "count", "12.3 k"}, {2_000_000, "", "2 M"},
		{5, "goroutines", "5 goroutines"},
	} {
		if got := FormatValue(c.v, c.unit); got != c.want {
			t.Errorf("%d %s: %q, want %q", c.v, c.unit, got, c.want)
		}
	}
}

//go:build browser

package file

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stoker-profiler/stoker/test/browsertest"
)

// pages writes the pages that the tests look at and returns their directory.
func pages(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	diff := options
	base := large()
	base.Sample = base.Sample[:900]
	compare := large()
	compare.Sample = compare.Sample[600:]
	diff.Base = base
	for name, write := range map[string]func(string) error{
		"small.html": func(f string) error { return Create(f, small(), options) },
		"large.html": func(f string) error { return Create(f, large(), options) },
		"diff.html":  func(f string) error { return Create(f, compare, diff) },
		"large.svg":  func(f string) error { return Create(f, large(), options) },
	} {
		if err := write(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const find = `(name => Array.from(document.querySelectorAll(".sfg-frame")).find(e => e.textContent === name))`

func quiet(t *testing.T, p *browsertest.Page) {
	t.Helper()
	for _, s := range p.Trouble() {
		t.Errorf("the page has trouble: %s", s)
	}
}

func TestFlameGraphAnswersMouseAndKeys(t *testing.T) {
	b := browsertest.Start(t)
	p := b.Open("file://"+pages(t)+"/small.html", browsertest.Options{Width: 1280, Height: 800})
	p.Wait(find + `("main")`)
	width := func(name string) (w float64) {
		t.Helper()
		p.Eval(find+fmt.Sprintf("(%q).getBoundingClientRect().width", name), &w)
		return w
	}
	count := func(selector string) (n int) {
		t.Helper()
		p.Eval(fmt.Sprintf("document.querySelectorAll(%q).length", selector), &n)
		return n
	}
	all := count(".sfg-frame")
	if all != 11 {
		t.Errorf("%d frames, want 11: the root and ten nodes", all)
	}
	if r := width("read") / width("all"); r < 0.14 || r > 0.16 {
		t.Errorf("read takes %.3f of the width, want 0.15", r)
	}

	p.Click(find + `("read")`)
	if r := width("read") / width("main"); r < 0.99 {
		t.Errorf("after the click read takes %.3f of the width, want all of it", r)
	}
	if p.Text(find+`("memcpy")`) != "undefined" {
		t.Error("after the click a frame beside it is still there")
	}
	if s := p.Text(`document.querySelector(".sfg-details").textContent`); !strings.Contains(s, "read") || !strings.Contains(s, "150 ms (15.0%)") || !strings.Contains(s, "libc.so.6") {
		t.Errorf("details: %q", s)
	}
	p.Key("ArrowDown")
	if s := p.Text(`document.activeElement.textContent`); s != "do_syscall_64" {
		t.Errorf("arrow down went to %q", s)
	}
	p.Key("Enter")
	if r := width("do_syscall_64") / width("all"); r < 0.99 {
		t.Errorf("Enter did not zoom: %.3f", r)
	}
	p.Key("Escape")
	if n := count(".sfg-frame"); n != all {
		t.Errorf("after Escape %d frames, want %d", n, all)
	}

	p.Key("/")
	p.Type("price|^vfs_")
	if s := p.Text(`document.querySelector(".sfg-found").textContent`); s != "66.0% in 3 frames" {
		t.Errorf("search found %q", s)
	}
	if n := count(".sfg-match"); n != 3 {
		t.Errorf("%d frames are marked", n)
	}
	p.Key("Escape")
	if n := count(".sfg-match"); n != 0 || p.Text(`document.querySelector(".sfg-found").textContent`) != "" {
		t.Errorf("Escape left %d frames marked", n)
	}
	p.Eval(`document.querySelector(".sfg-search").focus()`, nil)
	p.Type("serve(Request")
	if s := p.Text(`document.querySelector(".sfg-found").textContent`); s != "91.0% in 2 frames" {
		t.Errorf("text that is no regular expression found %q", s)
	}

	p.Click(`Array.from(document.querySelectorAll(".fn")).find(e => e.textContent === "memcpy")`)
	if s := p.Text(`document.querySelector(".sfg-found").textContent`); s != "25.0% in 1 frame" {
		t.Errorf("a click in the table found %q", s)
	}
	p.Click(`document.querySelectorAll("th button")[1]`)
	if s := p.Text(`document.querySelector("#top tbody .fn").textContent`); s != "main" {
		t.Errorf("sorted by total, the first is %q", s)
	}
	p.Click(`document.querySelector(".sfg-flip")`)
	var below bool
	p.Eval(find+`("all").getBoundingClientRect().y > `+find+`("main").getBoundingClientRect().y`, &below)
	if !below {
		t.Error("flipped, the root is not at the bottom")
	}
	if s := p.Text(find + fmt.Sprintf("(%q).childElementCount", hostile)); s != "0" {
		t.Errorf("the hostile name's frame has %s elements in it", s)
	}
	quiet(t, p)
}

func TestEveryPageFitsPhoneAndDesk(t *testing.T) {
	dir := pages(t)
	shots := os.Getenv("SCREENSHOTS") // a directory, for people who want to look
	b := browsertest.Start(t)
	for _, name := range []string{"large.html", "diff.html", "large.svg"} {
		for _, width := range []int{1280, 390} {
			for _, dark := range []bool{false, true} {
				p := b.Open("file://"+dir+"/"+name, browsertest.Options{Width: width, Height: 800, Dark: dark, Phone: width < 500})
				if strings.HasSuffix(name, ".html") {
					p.Wait(`document.querySelectorAll(".sfg-frame").length > 100`)
					var got int
					p.Eval("document.documentElement.scrollWidth", &got)
					if got > width {
						t.Errorf("%s at %d pixels is %d wide", name, width, got)
					}
					paper := p.Text("getComputedStyle(document.body).backgroundColor")
					if want := map[bool]string{false: "rgb(255, 255, 255)", true: "rgb(13, 17, 23)"}[dark]; paper != want {
						t.Errorf("%s, dark %v: paper is %s", name, dark, paper)
					}
				}
				quiet(t, p)
				if shots != "" {
					if err := os.WriteFile(fmt.Sprintf("%s/%s-%d-dark-%v.png", shots, name, width, dark), p.Screenshot(), 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
}

func TestSearchSaysWhenItCannotSeeEverything(t *testing.T) {
	dir := t.TempDir()
	o := options
	o.MaxNodes = 1000
	if err := Create(filepath.Join(dir, "x.html"), large(), o); err != nil {
		t.Fatal(err)
	}
	b := browsertest.Start(t)
	p := b.Open("file://"+dir+"/x.html", browsertest.Options{Width: 800, Height: 600})
	p.Wait(find + `("all")`)
	p.Eval(`document.querySelector(".sfg-search").focus()`, nil)
	p.Type("memmove")
	if s := p.Text(`document.querySelector(".sfg-found").textContent`); !strings.HasPrefix(s, "≥ ") {
		t.Errorf("with small frames left out the search says %q", s)
	}
	quiet(t, p)
}

func TestUpdateKeepsZoomAndSearch(t *testing.T) {
	b := browsertest.Start(t)
	p := b.Open("file://"+pages(t)+"/small.html", browsertest.Options{Width: 800, Height: 600})
	p.Wait(find + `("main")`)
	p.Eval(`(() => {
		const leaf = (name, n) => ({name, self: n, total: n});
		const tree = (a, b) => ({name: "all", self: 0, total: a + b, children: [{name: "f", self: 0, total: a, children: [leaf("a", a)]}, leaf("b", b)]});
		window.chosen = [];
		const first = tree(30, 70);
		window.g = window.stokerFlamegraph(document.getElementById("graph"), first, {unit: "count", onSelect: (n) => window.chosen.push(n.name)});
		g.search("a");
		g.zoom(first.children[0]);
		g.update(tree(10, 90));
	})()`, nil)
	if s := p.Text(`Array.from(document.querySelectorAll(".sfg-frame")).map(e => e.textContent).sort().join()`); s != "a,all,f" {
		t.Errorf("after the update the frames are %s", s)
	}
	if s := p.Text(`document.querySelector(".sfg-found").textContent`); s != "10.0% in 1 frame" {
		t.Errorf("after the update the search says %q", s)
	}
	p.Click(`document.querySelector(".sfg-reset")`)
	p.Click(find + `("b")`)
	if s := p.Text("chosen.join()"); s != "all,b" {
		t.Errorf("onSelect heard of %s", s)
	}
	p.Eval("g.destroy()", nil)
	if s := p.Text(`document.getElementById("graph").childElementCount`); s != "0" {
		t.Error("destroy left something")
	}
	quiet(t, p)
}

func TestScriptAndGoWriteNumbersAlike(t *testing.T) {
	b := browsertest.Start(t)
	p := b.Open("file://"+pages(t)+"/small.html", browsertest.Options{Width: 800, Height: 600})
	p.Wait(`window.stokerFlamegraph`)
	for _, unit := range []string{"nanoseconds", "microseconds", "milliseconds", "seconds", "bytes", "count", "", "goroutines"} {
		for v := int64(1); v < 1<<50; v = v*7/2 + 1 {
			if got, want := p.Text(fmt.Sprintf("stokerFlamegraph.formatValue(%d, %q)", v, unit)), FormatValue(v, unit); got != want {
				t.Errorf("%d %s: the script writes %q, Go %q", v, unit, got, want)
			}
		}
	}
	for _, v := range []int64{0, 1, 999, 5000, 99_999, 500_000, 1_000_000} {
		if got, want := p.Text(fmt.Sprintf("stokerFlamegraph.formatShare(%d / 1000000)", v)), FormatShare(v, 1_000_000); got != want {
			t.Errorf("%d: the script writes %q, Go %q", v, got, want)
		}
	}
}

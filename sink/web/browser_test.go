//go:build browser

package web_test

import (
	"context"
	"encoding/base64"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/sink/store"
	"github.com/stoker-profiler/stoker/sink/web"
	"github.com/stoker-profiler/stoker/sink/web/internal/fixture"
	"github.com/stoker-profiler/stoker/test/browsertest"
)

// sizes are the windows that the pages are tried in: a desktop and a phone.
var (
	desktop = browsertest.Options{Width: 1280, Height: 900}
	dark    = browsertest.Options{Width: 1280, Height: 900, Dark: true}
	phone   = browsertest.Options{Width: 390, Height: 844, Phone: true, Dark: true}
)

// site serves a made-up node and returns its address; filled gives it containers and profiles of the last 20 minutes.
func site(t *testing.T, cfg web.Config, filled bool) (url string, node *fixture.Node, st *store.Store) {
	t.Helper()
	now := time.Now()
	st, err := store.Open(store.Config{Path: filepath.Join(t.TempDir(), "profiles.db"), MaintainEvery: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	node = &fixture.Node{State: web.Health{Node: "edge-07", Parts: []web.HealthPart{{Name: "sampler", State: web.OK}}}}
	if filled {
		node = fixture.New(now)
		if err := fixture.Fill(t.Context(), st, now.Add(-20*time.Minute), now); err != nil {
			t.Fatal(err)
		}
	}
	h, err := web.Handler(node, st, cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	go s.Serve(l)
	t.Cleanup(func() { _ = s.Shutdown(context.Background()) })
	return "http://" + l.Addr().String(), node, st
}

// shot keeps a screenshot where STOKER_SHOTS names a directory, for people to look at.
func shot(t *testing.T, p *browsertest.Page, name string) {
	t.Helper()
	if dir := os.Getenv("STOKER_SHOTS"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, name+".png"), p.Screenshot(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// quiet fails the test for errors on the console, requests to other hosts, and names that were taken for markup.
func quiet(t *testing.T, p *browsertest.Page) {
	t.Helper()
	for _, x := range p.Trouble() {
		t.Errorf("the page is in trouble: %s", x)
	}
	if s := p.Text(`window.pwned`); s != "undefined" {
		t.Errorf("a name of a container ran as a script: %s", s)
	}
}

const (
	frames = `document.querySelectorAll(".sfg-frame").length`
	option = `[...document.querySelectorAll("#containers [role=option]")]`
)

// cpu is the CPU time that the page gives for what is selected, "" while it is loading.
const cpu = `[...document.querySelectorAll("#meta .fact")].map((e) => e.textContent).filter((s) => s.startsWith("CPU time") && !s.endsWith("…")).join()`

func frame(name string) string {
	return `[...document.querySelectorAll(".sfg-frame")].find((e) => e.textContent === ` + quote(name) + `)`
}

func quote(s string) string {
	return "`" + strings.NewReplacer("`", "\\`", "\\", "\\\\", "${", "\\${").Replace(s) + "`"
}

func TestThePageShowsContainersAndTheirProfile(t *testing.T) {
	url, _, _ := site(t, web.Config{}, true)
	b := browsertest.Start(t)
	for name, o := range map[string]browsertest.Options{"desktop": desktop, "dark": dark, "phone": phone} {
		t.Run(name, func(t *testing.T) {
			p := b.Open(url, o)
			p.Wait(frames + ` > 20`)
			p.Wait(frame("main.(*server).placeOrder"))
			for _, want := range []string{"shop/checkout", "postgres", "thumbnailer", "pause", fixture.Hostile} {
				p.Wait(option + `.some((e) => e.querySelector(".c-name").textContent === ` + quote(want) + `)`)
			}
			if s := p.Text(`document.querySelector("#chart-figure").textContent`); s == "0" || s == "–" {
				t.Errorf("the chart says %q cores", s)
			}
			// The page is not wider than the window: nothing to scroll to the side for.
			if s := p.Text(`document.documentElement.scrollWidth <= window.innerWidth`); s != "true" {
				t.Errorf("the page is %s wide in a window of %s", p.Text(`document.documentElement.scrollWidth`), p.Text(`innerWidth`))
			}
			shot(t, p, name)
			quiet(t, p)
		})
	}
}

func TestChoosingAContainerAndARangeNarrowsTheProfile(t *testing.T) {
	url, _, _ := site(t, web.Config{}, true)
	b := browsertest.Start(t)
	p := b.Open(url, desktop)
	p.Wait(frame("PostgresMain"))
	p.Click(option + `.find((e) => e.textContent.includes("postgres"))`)
	p.Wait(`!(` + frame("runtime.goexit") + `) && ` + frame("PostgresMain"))
	p.Wait(`document.querySelector("#meta").textContent.includes("docker.io/library/postgres:17")`)
	p.Wait(`document.querySelector("#meta").textContent.includes("12ms before its start")`)
	p.Wait(cpu)
	whole := p.Text(cpu)
	p.Drag(`document.querySelector("#chart")`, 0.4, 0.5, 0.6, 0.5)
	p.Wait(`location.hash.includes("sel=") && document.querySelector("#selection").textContent.includes("(")`)
	p.Wait(cpu + ` && ` + cpu + ` !== ` + quote(whole))
	shot(t, p, "selected")
	// The address is the whole state: another page that opens it shows the same.
	q := b.Open(p.Text(`location.href`), desktop)
	q.Wait(cpu)
	q.Wait(`document.querySelector("#selection").textContent === ` + quote(p.Text(`document.querySelector("#selection").textContent`)))
	if got, want := q.Text(cpu), p.Text(cpu); got != want {
		t.Errorf("the same address shows %q in one page and %q in another", got, want)
	}
	// Back goes back.
	p.Eval(`history.back()`, nil)
	p.Wait(`!location.hash.includes("sel=")`)
	p.Wait(cpu + ` && !document.querySelector("#selection").textContent.includes("(")`)
	quiet(t, p)
	quiet(t, q)
}

func TestFilteringByLabelCompletesNamesAndValues(t *testing.T) {
	url, _, _ := site(t, web.Config{}, true)
	p := browsertest.Start(t).Open(url, desktop)
	p.Wait(frames + ` > 20`)
	p.Click(`document.querySelector("#filter-input")`)
	p.Type("compose_pro")
	p.Wait(`document.querySelectorAll("#filter-list [role=option]").length === 1`)
	p.Key("ArrowDown")
	p.Key("Enter")
	p.Wait(`document.querySelectorAll("#filter-list [role=option]").length === 2`) // its two values
	shot(t, p, "filter")
	p.Key("ArrowDown")
	p.Key("Enter")
	p.Wait(`document.querySelector(".chip-value") && document.querySelector(".chip-value").textContent === "edge"`)
	p.Wait(option + `.length === 2`)
	p.Wait(frame("ngx_worker_process_cycle") + ` && !(` + frame("PostgresMain") + `)`)
	p.Type("nonsense")
	p.Key("Enter")
	p.Wait(`document.querySelector("#filter.bad")`)
	p.Click(`document.querySelector(".chip button")`)
	p.Wait(frame("PostgresMain"))
	quiet(t, p)
}

func TestTheTableSortsAndSearches(t *testing.T) {
	url, _, _ := site(t, web.Config{}, true)
	for name, o := range map[string]browsertest.Options{"desktop": desktop, "phone": phone} {
		t.Run(name, func(t *testing.T) {
			p := browsertest.Start(t).Open(url, o)
			p.Wait(frames + ` > 5`)
			p.Click(`document.querySelector("#tab-top")`)
			first := `document.querySelector("tbody tr .fn span").textContent`
			p.Wait(`document.querySelectorAll("tbody tr").length > 20`)
			p.Wait(`document.querySelector("th[aria-sort=descending]")?.dataset.id === "self"`)
			shot(t, p, "functions-"+name)
			p.Click(`document.querySelector("th[data-id=name] button")`)
			p.Wait(`document.querySelector("th[aria-sort=ascending]")?.dataset.id === "name"`)
			names := p.Text(`JSON.stringify([...document.querySelectorAll("tbody tr .fn span")].map((e) => e.textContent))`)
			if !strings.Contains(names, "PostgresMain") {
				t.Errorf("the table lacks a function: %s", names)
			}
			p.Click(`document.querySelector("#search")`)
			p.Type("ngx_.*cycle")
			p.Wait(`document.querySelectorAll("tbody tr").length === 2 && ` + first + `.startsWith("ngx_")`)
			p.Click(`document.querySelector("tbody .fn")`)
			p.Wait(`document.querySelectorAll(".sfg-match").length > 0`)
			quiet(t, p)
		})
	}
}

func TestTwoRangesAreCompared(t *testing.T) {
	url, _, _ := site(t, web.Config{}, true)
	b := browsertest.Start(t)
	for name, o := range map[string]browsertest.Options{"desktop": desktop, "phone": phone} {
		t.Run(name, func(t *testing.T) {
			p := b.Open(url+"/#from=now-18m&view=compare", o)
			p.Wait(`document.querySelectorAll("tbody tr").length > 5 && document.querySelector(".sfg-diff")`)
			p.Drag(`document.querySelector("#chart")`, 0.15, 0.5, 0.35, 0.5)
			p.Wait(`/[#&]a=\d/.test(location.hash)`)
			p.Drag(`document.querySelector("#chart")`, 0.75, 0.5, 0.95, 0.5)
			p.Wait(`/[#&]b=\d/.test(location.hash)`)
			p.Wait(`document.querySelectorAll(".brush-a, .brush-b").length === 2`)
			// The coupon check grows over the range: it stands first and is marked as more.
			p.Wait(`document.querySelector("tbody tr .fn span").textContent === "regexp.(*Regexp).backtrack" && document.querySelector("tbody td.up")`)
			shot(t, p, "compare-"+name)
			p.Click(`[...document.querySelectorAll(".segmented button")].find((e) => e.textContent === "Side by side")`)
			p.Wait(`document.querySelectorAll("#flame-a .sfg-frame").length > 5 && document.querySelectorAll("#flame-b .sfg-frame").length > 5`)
			shot(t, p, "sides-"+name)
			// One container on the other side.
			p.Eval(`(() => { const s = document.querySelector("#card-b select"); s.value = [...s.options].find((o) => o.text === "postgres").value; s.dispatchEvent(new Event("change")); })()`, nil)
			p.Wait(`![...document.querySelectorAll("#flame-b .sfg-frame")].some((e) => e.textContent.startsWith("net/http"))`)
			p.Wait(`[...document.querySelectorAll("#flame-a .sfg-frame")].some((e) => e.textContent.startsWith("net/http"))`)
			if s := p.Text(`document.documentElement.scrollWidth <= window.innerWidth`); s != "true" {
				t.Errorf("the page is wider than the window: %s", p.Text(`document.documentElement.scrollWidth`))
			}
			quiet(t, p)
		})
	}
}

func TestAProfileIsDownloaded(t *testing.T) {
	url, _, _ := site(t, web.Config{}, true)
	p := browsertest.Start(t).Open(url, desktop)
	p.Wait(frames + ` > 20`)
	p.Eval(`window.blobs = []; window.names = []; { const make = URL.createObjectURL; URL.createObjectURL = (b) => { blobs.push(b); return make.call(URL, b); };
		const click = HTMLAnchorElement.prototype.click; HTMLAnchorElement.prototype.click = function () { names.push(this.download); }; }`, nil)
	p.Click(`document.querySelector("#download-menu summary")`)
	shot(t, p, "download")
	p.Click(`document.querySelector("#download-list button")`)
	p.Wait(`blobs.length === 1`)
	if s := p.Text(`names[0]`); !strings.HasPrefix(s, "stoker-all-") || !strings.HasSuffix(s, ".pb.gz") {
		t.Errorf("the file is called %q", s)
	}
	p.Eval(`(async () => { const b = new Uint8Array(await blobs[0].arrayBuffer()); let s = ""; for (const x of b) s += String.fromCharCode(x); window.b64 = btoa(s); })()`, nil)
	gz, err := base64.StdEncoding.DecodeString(p.Text(`window.b64`))
	if err != nil {
		t.Fatal(err)
	}
	prof, err := profile.ParseData(gz)
	if err != nil {
		t.Fatal(err)
	}
	if len(prof.Sample) < 10 {
		t.Errorf("the profile has %d samples", len(prof.Sample))
	}
	quiet(t, p)
}

func TestWhatIsNewAppearsByItself(t *testing.T) {
	url, node, st := site(t, web.Config{}, false)
	now := time.Now()
	*node = *fixture.New(now)
	p := browsertest.Start(t).Open(url+"/#from=now-1m&refresh=1", desktop)
	p.Wait(`document.querySelector(".empty.big")`)
	if err := fixture.Fill(t.Context(), st, now.Add(-50*time.Second), now); err != nil {
		t.Fatal(err)
	}
	p.Wait(frames + ` > 20`)
	// Zoom and search outlive a refresh.
	p.Click(frame("PostmasterMain"))
	p.Wait(`document.querySelectorAll(".sfg-above").length > 0`)
	p.Wait(cpu)
	before := p.Text(cpu)
	if err := fixture.Fill(t.Context(), st, now.Add(-50*time.Second), now); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := fixture.WriteWindow(t.Context(), st, now.Add(time.Duration(i)*time.Second), 0.5); err != nil {
			t.Fatal(err)
		}
	}
	p.Wait(cpu + ` && ` + cpu + ` !== ` + quote(before))
	p.Wait(`document.querySelectorAll(".sfg-above").length > 0`)
	quiet(t, p)
}

func TestEmptyStatesSayWhatToDo(t *testing.T) {
	url, node, st := site(t, web.Config{}, false)
	b := browsertest.Start(t)
	for name, o := range map[string]browsertest.Options{"desktop": desktop, "phone": phone} {
		p := b.Open(url, o)
		p.Wait(`document.querySelector("#containers").textContent.includes("No containers yet") && document.querySelector("#containers").textContent.includes("stoker doctor")`)
		p.Wait(`document.querySelector(".empty.big")?.textContent.includes("The store is empty")`)
		shot(t, p, "empty-"+name)
		quiet(t, p)
	}
	now := time.Now()
	if err := fixture.Fill(t.Context(), st, now.Add(-3*time.Hour), now.Add(-3*time.Hour+5*time.Minute)); err != nil {
		t.Fatal(err)
	}
	p := b.Open(url, desktop)
	p.Wait(`document.querySelector(".empty.big")?.textContent.includes("The store holds profiles from")`)
	p.Click(`[...document.querySelectorAll(".empty.big button")].find((e) => e.textContent === "Show the newest hour")`)
	p.Wait(frames + ` > 20`)
	node.State.Parts = []web.HealthPart{{Name: "store", State: web.Failing, Message: "the disk is full", Remedy: "free some space"}}
	p.Click(`document.querySelector("#refresh")`)
	p.Wait(`!document.querySelector("#banner").hidden && document.querySelector("#banner").textContent.includes("free some space")`)
	shot(t, p, "failing")
}

func TestAnAgentThatIsGoneIsSaid(t *testing.T) {
	url, _, st := site(t, web.Config{}, true)
	p := browsertest.Start(t).Open(url, desktop)
	p.Wait(frames + ` > 20`)
	st.Close()
	p.Click(`document.querySelector("#refresh")`)
	p.Wait(`!document.querySelector("#banner").hidden && document.querySelector("#banner").textContent.includes("store")`)
	p.Wait(frames + ` > 20`) // what was there stays
}

func TestKeysAreEnough(t *testing.T) {
	url, _, _ := site(t, web.Config{}, true)
	p := browsertest.Start(t).Open(url, desktop)
	p.Wait(frames + ` > 20`)
	p.Key("/")
	p.Wait(`document.activeElement.id === "search"`)
	p.Type("regexp")
	p.Wait(`document.querySelectorAll(".sfg-match").length > 0`)
	p.Eval(`document.querySelector("#tab-flame").focus()`, nil)
	p.Key("ArrowRight")
	p.Wait(`document.querySelector("#tab-top").getAttribute("aria-selected") === "true" && document.activeElement.id === "tab-top"`)
	p.Eval(`document.querySelector("#containers").focus()`, nil)
	p.Key("ArrowDown")
	p.Wait(`location.hash.includes("c=")`)
	p.Eval(`document.querySelector("#chart canvas").focus()`, nil)
	p.Key("ArrowLeft")
	p.Wait(`!document.querySelector("#tooltip").hidden`)
	p.Eval(`document.querySelector("#chart canvas").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft", shiftKey: true, bubbles: true}))`, nil)
	p.Wait(`location.hash.includes("sel=")`)
	p.Key("Escape")
	p.Wait(`!location.hash.includes("sel=")`)
	quiet(t, p)
}

func TestThemeAndTimesAreRemembered(t *testing.T) {
	url, _, _ := site(t, web.Config{}, true)
	b := browsertest.Start(t)
	p := b.Open(url, desktop)
	p.Wait(frames + ` > 20`)
	p.Click(`document.querySelector("#theme")`)
	p.Wait(`document.documentElement.dataset.theme === "dark"`)
	p.Click(`document.querySelector("#utc")`)
	p.Wait(`document.querySelector("#utc").textContent === "Times in UTC"`)
	q := b.Open(url, desktop)
	q.Wait(`document.documentElement.dataset.theme === "dark" && document.querySelector("#utc").textContent === "Times in UTC"`)
	q.Wait(frames + ` > 20`)
	shot(t, q, "dark-chosen")
	quiet(t, q)
}

func TestDeepViewWorksInItsSandbox(t *testing.T) {
	url, _, _ := site(t, web.Config{}, true)
	b := browsertest.Start(t)
	p := b.Open(url+"/pprof/?container=postgres", desktop)
	p.Wait(`document.querySelectorAll("#stack-chart div").length > 10 && location.pathname.endsWith("/flamegraph")`)
	shot(t, p, "deep")
	p.Eval(`document.querySelector("#topbtn").click()`, nil)
	p.Wait(`location.pathname.endsWith("/top") && document.querySelectorAll("#rows tr").length > 3`)
	p.Eval(`fetch("/api/v1/containers").then(() => { window.tried = "read"; }, () => { window.tried = "refused"; })`, nil)
	if s := p.Text(`window.tried`); s != "refused" {
		t.Errorf("a script of the deep view could ask the API: %s", s)
	}
	q := b.Open(url+"/pprof/", desktop) // hostile names
	q.Wait(`document.querySelectorAll("#stack-chart div").length > 10`)
	quiet(t, q)
}

func TestATokenIsAskedFor(t *testing.T) {
	const token = "correct-horse-battery-staple"
	url, _, _ := site(t, web.Config{Token: token}, true)
	p := browsertest.Start(t).Open(url, desktop)
	p.Wait(`document.querySelector("dialog[open]")`)
	shot(t, p, "token")
	p.Click(`document.querySelector("dialog input")`)
	p.Type(token)
	p.Click(`document.querySelector("dialog button")`)
	p.Wait(frames + ` > 20`)
	p.Eval(`window.open = (u) => { window.opened = u; }`, nil)
	p.Click(`document.querySelector("#deep")`)
	p.Wait(`window.opened`)
	q := browsertest.Start(t).Open(url+p.Text(`window.opened`), desktop)
	q.Wait(`document.querySelectorAll("#stack-chart div").length > 10`)
}

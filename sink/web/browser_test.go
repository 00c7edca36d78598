//go:build browser

package web_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/test/browsertest"
	"github.com/stoker-profiler/stoker/sink/store"
	"github.com/stoker-profiler/stoker/sink/web"
	"github.com/stoker-profiler/stoker/sink/web/internal/fixture"
)

// sizes are the windows that the pages are tried in: a desktop and a phone.
var (
	desktop = browsertest.Options{Width: 1280, Height: 900}
	phone   = browsertest.Options{Width: 390, Height: 844, Phone: true, Dark: true}
)

// site serves a made-up node with profiles of the last 40 minutes and returns its address.
func site(t *testing.T, cfg web.Config, filled bool) (url string, node *fixture.Node, st *store.Store) {
	t.Helper()
	now := time.Now()
	st, err := store.Open(store.Config{Path: filepath.Join(t.TempDir(), "profiles.db"), MaintainEvery: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	node = &fixture.Node{}
	if filled {
		node = fixture.New(now)
		if err := fixture.Fill(t.Context(), st, now.Add(-40*time.Minute), now); err != nil {
			t.Fatal(err)
		}
	}
	return serve(t, node, st, cfg), node, st
}

func serve(t *testing.T, node *fixture.Node, st *store.Store, cfg web.Config) string {
	t.Helper()
	h, err := web.Handler(node, st, cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ConnContext: web.ConnContext}
	go s.Serve(l)
	t.Cleanup(func() { _ = s.Shutdown(context.Background()) })
	return "http://" + l.Addr().String()
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

func quiet(t *testing.T, p *browsertest.Page) {
	t.Helper()
	for _, x := range p.Trouble() {
		t.Errorf("the page is in trouble: %s", x)
	}
}

func TestThePageShowsContainersAndTheirProfile(t *testing.T) {
	url, _, _ := site(t, web.Config{}, true)
	b := browsertest.Start(t)
	for name, o := range map[string]browsertest.Options{"desktop": desktop, "phone": phone} {
		p := b.Open(url, o)
		p.Wait(`document.querySelectorAll(".sfg-frame").length > 20`)
		shot(t, p, name)
		quiet(t, p)
	}
}

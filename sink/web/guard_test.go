package web

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stoker-profiler/stoker/internal/unixsocket"
	"time"
)

func guarded(cfg Config) http.Handler {
	cfg.Logger = slog.New(slog.DiscardHandler)
	return newGuard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/panic" {
			panic("a fault")
		}
		io.WriteString(w, "reached")
	}), cfg.withDefaults())
}

func ask(h http.Handler, method, target string, header map[string]string, local string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	if local != "" {
		addr, _ := net.ResolveTCPAddr("tcp", local)
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(addr)))
	}
	for k, v := range header {
		if k == "Host" {
			r.Host = v
			continue
		}
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestOnlyOurOwnNamesAreServed(t *testing.T) {
	h := guarded(Config{Hosts: []string{"Node7.example.net"}})
	for _, c := range []struct {
		host string
		ok   bool
	}{
		{"localhost", true}, {"localhost:4041", true}, {"LOCALHOST:8080", true}, {"127.0.0.1:4041", true}, {"127.0.0.7", true}, {"[::1]:4041", true}, {"localhost.", true},
		{"node7.example.net:80", true}, {"10.1.2.3:4041", true}, {"10.1.2.4", false}, {"evil.example", false}, {"localhost.evil.example", false}, {"127.0.0.1.evil.example", false}, {"", false}, {"0.0.0.0", false}, {"[::ffff:127.0.0.1]", true},
	} {
		w := ask(h, "GET", "http://x/api/v1/containers", map[string]string{"Host": c.host}, "10.1.2.3:4041")
		if ok := w.Code == 200; ok != c.ok {
			t.Errorf("Host %q: status %d, want it served: %v", c.host, w.Code, c.ok)
		}
	}
}

func TestPagesOfOthersMayNotAct(t *testing.T) {
	h := guarded(Config{})
	for _, c := range []struct {
		method string
		header map[string]string
		ok     bool
	}{
		{"POST", nil, true}, // not a browser
		{"POST", map[string]string{"Origin": "http://localhost"}, true},
		{"POST", map[string]string{"Origin": "http://evil.example"}, false},
		{"POST", map[string]string{"Origin": "null"}, false},
		{"POST", map[string]string{"Sec-Fetch-Site": "same-origin"}, true},
		{"POST", map[string]string{"Sec-Fetch-Site": "cross-site"}, false},
		{"POST", map[string]string{"Sec-Fetch-Site": "same-site"}, false},
		{"GET", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, true},
		{"GET", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, false},
		{"GET", map[string]string{"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, true},
	} {
		w := ask(h, c.method, "http://localhost/api/v1/record", c.header, "")
		if ok := w.Code == 200; ok != c.ok {
			t.Errorf("%s with %v: status %d, want it served: %v", c.method, c.header, w.Code, c.ok)
		}
	}
}

func TestATokenKeepsOthersOut(t *testing.T) {
	h := guarded(Config{Token: "0123456789abcdef"})
	for _, c := range []struct {
		path, auth string
		want       int
	}{
		{"/api/v1/containers", "", 401}, {"/api/v1/containers", "Bearer 0123456789abcdef", 200}, {"/api/v1/containers", "bearer 0123456789abcdef", 200}, {"/api/v1/containers", "Bearer 0123456789abcdeg", 401},
		{"/api/v1/containers", "Basic 0123456789abcdef", 401}, {"/api/v1/containers", "0123456789abcdef", 401}, {"/metrics", "", 401}, {"/", "", 200}, {"/assets/app.js", "", 200}, {"/healthz", "", 200},
	} {
		header := map[string]string{}
		if c.auth != "" {
			header["Authorization"] = c.auth
		}
		if w := ask(h, "GET", "http://localhost"+c.path, header, ""); w.Code != c.want {
			t.Errorf("%s with %q: status %d, want %d", c.path, c.auth, w.Code, c.want)
		}
	}
	// Whoever reached the socket needs none.
	r := httptest.NewRequest("GET", "http://anything/api/v1/containers", nil)
	r = r.WithContext(context.WithValue(r.Context(), peerKey{}, unixsocket.Peer{UID: 1000}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 200 {
		t.Errorf("over the Unix socket: status %d", w.Code)
	}
}

func TestEveryAnswerHasItsSecurityHeaders(t *testing.T) {
	h := guarded(Config{})
	for _, target := range []string{"http://localhost/", "http://evil.example/", "http://localhost/panic"} {
		w := ask(h, "GET", target, nil, "")
		for name, want := range map[string]string{"Content-Security-Policy": "default-src 'self'", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin"} {
			if got := w.Header().Get(name); !strings.HasPrefix(got, want) {
				t.Errorf("%s: %s is %q, want %q", target, name, got, want)
			}
		}
		if csp := w.Header().Get("Content-Security-Policy"); strings.Contains(csp, "unsafe") || !strings.Contains(csp, "frame-ancestors 'none'") {
			t.Errorf("%s: %s", target, csp)
		}
		if w.Header().Get("Set-Cookie") != "" || w.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: a cookie, or open to other origins", target)
		}
	}
}

func TestAFaultInOneAnswerDoesNotEndTheAgent(t *testing.T) {
	w := ask(guarded(Config{}), "GET", "http://localhost/panic", nil, "")
	if w.Code != 500 || !strings.Contains(w.Body.String(), "internal error") || strings.Contains(w.Body.String(), "goroutine") {
		t.Errorf("status %d, %s", w.Code, w.Body)
	}
}

func TestTokensThatCanBeGuessedAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	for content, ok := range map[string]bool{"0123456789abcdef\n": true, "  0123456789abcdef  \nsecond line\n": true, "short\n": false, "": false, strings.Repeat("a", 5000): false} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadToken(path)
		if ok != (err == nil) || (ok && got != "0123456789abcdef") {
			t.Errorf("%.30q: %q, %v", content, got, err)
		}
	}
	if _, err := ReadToken(path + ".none"); err == nil || !strings.Contains(err.Error(), "token_file") {
		t.Errorf("no file: %v", err)
	}
}

func TestHeavyRequestsWaitForTheirTurnAndAreThenTurnedAway(t *testing.T) {
	h := &heavy{slots: make(chan struct{}, 1), wait: time.Millisecond}
	leave, err := h.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = h.enter(t.Context())
	if e, ok := errors.AsType[*Error](err); !ok || e.Status != http.StatusServiceUnavailable || e.Remedy == "" {
		t.Errorf("the second got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h.wait = time.Hour
	if _, err := h.enter(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("one that was given up got %v", err)
	}
	leave()
	if leave, err = h.enter(t.Context()); err != nil {
		t.Errorf("the place is free, and yet: %v", err)
	} else {
		leave()
	}
}

package web_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink/store"
	"github.com/stoker-profiler/stoker/sink/web"
	"github.com/stoker-profiler/stoker/sink/web/internal/fixture"
)

// served is a node that is served as the agent does it: a page over TCP that wants a token, and a unix socket. Log is what it logs.
type served struct {
	tcp, unix net.Addr
	log       *lockedBuffer
}

const token = "0123456789abcdef-of-the-page"

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func serve(t *testing.T) *served {
	t.Helper()
	dir, err := os.MkdirTemp("", "stoker-web-") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	st, err := store.Open(store.Config{Path: filepath.Join(dir, "profiles.db"), MaintainEvery: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	if err := fixture.Fill(t.Context(), st, now.Add(-minutes*time.Minute), now); err != nil {
		t.Fatal(err)
	}
	s := &served{log: &lockedBuffer{}}
	log := slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	ctx, cancel := context.WithCancel(t.Context())
	var servers sync.WaitGroup
	open := func(addr string, cfg web.Config) net.Addr {
		cfg.Logger, cfg.Now = log, func() time.Time { return now }
		h, err := web.Handler(fixture.New(now), st, cfg)
		if err != nil {
			t.Fatal(err)
		}
		l, err := web.Listen(addr, "")
		if err != nil {
			t.Fatal(err)
		}
		servers.Go(func() {
			if err := web.Serve(ctx, l, h, log); err != nil {
				t.Errorf("serving on %s ended: %v", addr, err)
			}
		})
		if path, ok := strings.CutPrefix(addr, "unix:"); ok { // the listener's own address is the one before it got its name
			return &net.UnixAddr{Name: path, Net: "unix"}
		}
		return l.Addr()
	}
	s.tcp = open("127.0.0.1:0", web.Config{Token: token})
	s.unix = open("unix:"+filepath.Join(dir, "s"), web.Config{})
	t.Cleanup(func() { cancel(); servers.Wait() })
	return s
}

// say sends bytes over a connection of its own and returns the answer, nil if the server hung up without one.
func say(t *testing.T, to net.Addr, request string) (*http.Response, string) {
	t.Helper()
	c, err := net.Dial(to.Network(), to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	sent := make(chan struct{})
	go func() { // the server may answer, and hang up, before it has read all
		defer close(sent)
		io.WriteString(c, request)
	}()
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("%.80q: no answer, and the connection stays open", request)
		}
		return nil, ""
	}
	defer r.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(r.Body, 8<<20)) // what the server does not want to read ends in a reset of the connection
	c.Close()
	<-sent
	return r, string(body)
}

// Whatever somebody sends to the page's port or to the socket: the answer is the one of the table, has the headers that keep a browser
// from doing anything with it, leaks nothing, repeats no control character, and the next one is served as if nothing were.
func TestHostileClients(t *testing.T) {
	const get, over = "GET /api/v1/containers HTTP/1.1\r\n", "Connection: close\r\n\r\n"
	authorized := "Authorization: Bearer " + token + "\r\n"
	local := "Host: localhost\r\n" + authorized
	post := func(header, body string) string {
		return "POST /api/v1/record HTTP/1.1\r\nHost: localhost\r\n" + authorized + header + over + body
	}
	length := func(n int) string { return fmt.Sprintf("Content-Length: %d\r\n", n) }
	path := func(p string) string { return "GET " + p + " HTTP/1.1\r\n" + local + over }
	record := `{"targets": [], "duration": "1s"}`
	mega := strings.Repeat("a", 1<<20)
	const hangsUp = 0
	s := serve(t)
	table := []struct {
		name, request string
		tcp, unix     []int // statuses; hangsUp: none
	}{
		{"the page's own", path("/api/v1/containers"), []int{200}, []int{200}},
		// Tokens.
		{"no token", get + "Host: localhost\r\n" + over, []int{401}, []int{200}},
		{"no token for metrics", "GET /metrics HTTP/1.1\r\nHost: localhost\r\n" + over, []int{401}, []int{200}},
		{"wrong token", get + "Host: localhost\r\nAuthorization: Bearer " + token + "x\r\n" + over, []int{401}, []int{200}},
		{"part of the token", get + "Host: localhost\r\nAuthorization: Bearer " + token[:16] + "\r\n" + over, []int{401}, []int{200}},
		{"empty token", get + "Host: localhost\r\nAuthorization: Bearer \r\n" + over, []int{401}, []int{200}},
		{"token in a query", "GET /api/v1/containers?token=" + token + " HTTP/1.1\r\nHost: localhost\r\n" + over, []int{401}, []int{200}},
		{"token in a cookie", get + "Host: localhost\r\nCookie: token=" + token + "\r\n" + over, []int{401}, []int{200}},
		{"token as a password", get + "Host: localhost\r\nAuthorization: Basic Omk=\r\n" + over, []int{401}, []int{200}},
		{"two tokens, the first one wrong", get + "Host: localhost\r\nAuthorization: Bearer wrong\r\n" + authorized + over, []int{401}, []int{200}},
		{"deep view without its proof", "GET /pprof/ HTTP/1.1\r\nHost: localhost\r\n" + over, []int{401}, []int{302}},
		{"deep view with a forged proof", path("/pprof/eyJ0eXBlIjoicHJvY2Vzc19jcHUifQ.AAAA/top"), []int{400, 401, 403, 404}, []int{200}},
		// Host and Origin.
		{"foreign host", get + "Host: evil.example\r\n" + authorized + over, []int{403}, []int{200}},
		{"host that begins like ours", get + "Host: localhost.evil.example\r\n" + authorized + over, []int{403}, []int{200}},
		{"no host", get + authorized + over, []int{400}, []int{400}},
		{"no host, HTTP/1.0", "GET /api/v1/containers HTTP/1.0\r\n" + authorized + "\r\n", []int{403}, []int{200}},
		{"two hosts", get + local + "Host: evil.example\r\n" + over, []int{400}, []int{400}},
		{"host with control characters", get + "Host: \x1b]0;owned\x07\r\n" + authorized + over, []int{400}, []int{400}},
		{"foreign host in the request line", "GET http://evil.example/api/v1/containers HTTP/1.1\r\n" + local + over, []int{403}, []int{200}},
		{"page of another origin", post("Origin: http://evil.example\r\n"+length(len(record)), record), []int{403}, []int{403}},
		{"page without an origin", post("Origin: null\r\n"+length(len(record)), record), []int{403}, []int{403}},
		{"script of another site", get + local + "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n" + over, []int{403}, []int{403}},
		{"may I, from another origin", "OPTIONS /api/v1/record HTTP/1.1\r\n" + local + "Origin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\n" + over, []int{403, 404, 405}, []int{403, 404, 405}},
		// Sizes and nonsense.
		{"header of a megabyte", get + local + "X-A: " + mega + "\r\n" + over, []int{431}, []int{431}},
		{"headers without number", get + local + strings.Repeat("X-A: b\r\n", 100_000) + over, []int{431}, []int{431}},
		{"path of a megabyte", path("/" + mega), []int{431, 414}, []int{431, 414}},
		{"query that is too long", path("/api/v1/profile?match=" + mega[:40<<10]), []int{400, 431}, []int{400, 431}},
		{"conditions without number", path("/api/v1/profile?" + strings.Repeat("match=a%3Db&", 4000)), []int{400, 431}, []int{400, 431}},
		{"query that is none", path("/api/v1/profile?match=a%3Db;container=checkout"), []int{400}, []int{400}},
		{"expression that explodes", path("/api/v1/labels?match=a%3D~" + strings.Repeat("(", 900) + "x" + strings.Repeat("%2A)%2A", 900)), []int{400}, []int{400}},
		{"format that is a path", path("/api/v1/profile?format=../../../etc/passwd"), []int{400}, []int{400}},
		{"container that is a path", path("/api/v1/profile?container=../../../etc/passwd"), []int{200, 400, 404}, []int{200, 400, 404}},
		{"body of ten megabytes", post(length(10<<20), `{"targets": ["`+strings.Repeat("a", 10<<20)), []int{403}, []int{400}},
		{"body that is nested", post(length(60_000), strings.Repeat("[", 60_000)), []int{403}, []int{400}},
		{"unknown key", post(length(12), `{"evil": 12}`), []int{403}, []int{400}},
		{"more than one body", post(length(2*len(record)), record+record), []int{403}, []int{400}},
		{"targets without number", post(length(3*20_000+16), `{"targets": [`+strings.Repeat(`"",`, 20_000)+`""]`), []int{403}, []int{400}},
		{"recording without end", post(length(20), `{"duration": "999h"}`), []int{403}, []int{400}},
		{"length that is no number", post("Content-Length: -1\r\n", record), []int{400}, []int{400}},
		{"length and chunks", post("Transfer-Encoding: chunked\r\n"+length(5), "0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"), []int{400, 403}, []int{400, 403}},
		{"chunk that is too long", post("Transfer-Encoding: chunked\r\n", "ffffffffffffffff\r\n"+mega), []int{400, 403}, []int{400}},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\x00", 600) + "\r\n\r\n", []int{400, hangsUp}, []int{400, hangsUp}},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{403}, []int{400, 404, 505}},
		{"another protocol's upgrade", get + local + "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", []int{200}, []int{200}},
		{"no HTTP", "\x00\xff\x1b[2J garbage\r\n\r\n", []int{400, hangsUp}, []int{400, hangsUp}},
		{"method of another kind", "DELETE /api/v1/containers HTTP/1.1\r\n" + local + over, []int{404, 405}, []int{404, 405}},
		{"trace", "TRACE / HTTP/1.1\r\n" + local + "X-Secret: 1\r\n" + over, []int{404, 405}, []int{404, 405}},
		{"connect", "CONNECT 169.254.169.254:80 HTTP/1.1\r\n" + local + over, []int{400, 403, 404, 405}, []int{400, 404, 405}},
		{"method of control characters", "\x1b[31m / HTTP/1.1\r\n" + local + over, []int{400}, []int{400}},
		// Paths and what is repeated.
		{"up from the assets", path("/assets/../../../../etc/passwd"), []int{301, 307, 404}, []int{301, 307, 404}},
		{"up, escaped", path("/assets/..%2f..%2f..%2f..%2fetc%2fpasswd"), []int{404}, []int{404}},
		{"up, escaped dots", path("/assets/%2e%2e/%2e%2e/etc/passwd"), []int{301, 307, 404}, []int{301, 307, 404}},
		{"up, backslashes", path(`/assets/..\..\..\etc\passwd`), []int{404}, []int{404}},
		{"up, from the embedded files", path("/assets/..%2fweb.go"), []int{404}, []int{404}},
		{"absolute path", path("//etc/passwd"), []int{301, 307, 404}, []int{301, 307, 404}},
		{"zero byte", path("/assets/app.js%00.png"), []int{404}, []int{404}},
		{"directory", path("/assets/"), []int{404}, []int{404}},
		{"the deep view's path", path("/pprof/..%2f..%2fetc/passwd"), []int{400, 401, 403, 404}, []int{400, 403, 404}},
		{"no path", "GET passwd HTTP/1.1\r\n" + local + over, []int{400}, []int{400}},
		{"escapes in the path", path("/api/v1/%1b%5d0;owned%07%1b[31m<script>"), []int{404}, []int{404}},
		{"escapes in the query", path("/api/v1/profile?format=%1b%5d0:owned%07<script>alert(1)</script>"), []int{400}, []int{400}},
		{"raw escapes in the path", "GET /api/v1/\x1b[31m HTTP/1.1\r\n" + local + over, []int{400, 404}, []int{400, 404}},
		{"header in a redirect", path("/pprof/?match=a%3Db%0d%0aSet-Cookie:%20owned=1"), []int{302, 400, 401}, []int{302, 400}},
	}
	t.Run("table", func(t *testing.T) { // ends when all of it has
		for _, c := range table {
			for _, to := range []net.Addr{s.tcp, s.unix} {
				t.Run(c.name+" over "+to.Network(), func(t *testing.T) {
					t.Parallel()
					want := c.tcp
					if to == s.unix {
						want = c.unix
					}
					r, body := say(t, to, c.request)
					if r == nil {
						if !slices.Contains(want, hangsUp) {
							t.Errorf("it hangs up, want status %v", want)
						}
						return
					}
					if !slices.Contains(want, r.StatusCode) {
						t.Errorf("status %d, want %v: %.300q", r.StatusCode, want, body)
					}
					harmless(t, r, body)
				})
			}
		}
	})
	for _, to := range []net.Addr{s.tcp, s.unix} {
		if r, body := say(t, to, path("/api/v1/containers")); r == nil || r.StatusCode != http.StatusOK || !strings.Contains(body, "checkout") {
			t.Errorf("over %s it does not serve any more: %v, %.300q", to.Network(), r, body)
		}
	}
	if log := s.log.String(); strings.ContainsAny(log, "\x1b\x07") || strings.Contains(log, token) || strings.Contains(log, "level=ERROR") {
		t.Errorf("the log repeats control characters or the token, or has errors of ours:\n%.3000q", log)
	}
}

// Whoever can open a connection to the page's port can take all of its places, by sending one byte at a time or nothing at all: not for
// long, and the agent's own socket, which has places of its own, answers meanwhile.
func TestSlowClientsKeepTheirPlacesForAMoment(t *testing.T) {
	s := serve(t)
	const many = 200 // more than there are places
	var slow sync.WaitGroup
	stop := make(chan struct{})
	ended := make(chan struct{}, many)
	for i := range many {
		c, err := net.Dial("tcp", s.tcp.String())
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			slow.Go(func() { // drop by drop, until it is hung up on
				for _, b := range []byte("GET /api/v1/containers HTTP/1.1\r\nHost: localhost\r\nX-A: " + strings.Repeat("a", 10_000)) {
					if _, err := c.Write([]byte{b}); err != nil {
						return
					}
					select {
					case <-stop:
						return
					case <-time.After(100 * time.Millisecond):
					}
				}
			})
		}
		slow.Go(func() {
			io.Copy(io.Discard, c) // until it is hung up on
			c.Close()
			ended <- struct{}{}
		})
		defer c.Close()
	}
	defer slow.Wait()
	defer close(stop)
	good := "GET /api/v1/containers HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + token + "\r\nConnection: close\r\n\r\n"
	if r, _ := say(t, s.unix, good); r == nil || r.StatusCode != http.StatusOK {
		t.Errorf("the socket does not answer: %v", r)
	}
	select {
	case <-ended:
		t.Log("a slow connection had ended before the socket answered: the machine is slow, and this proves less")
	default:
	}
	if r, _ := say(t, s.tcp, good); r == nil || r.StatusCode != http.StatusOK {
		t.Errorf("the page does not answer after the slow ones: %v", r)
	}
	for range many {
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Fatal("a slow connection stays open")
		}
	}
}

// harmless checks what holds for every answer.
func harmless(t *testing.T, r *http.Response, body string) {
	t.Helper()
	h := r.Header
	if h.Get("Set-Cookie") != "" || h.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("a cookie, or open to other origins: %v", h)
	}
	// What net/http refuses by itself is one line of plain text.
	csp := h.Get("Content-Security-Policy")
	if csp == "" && (r.StatusCode < 400 || h.Get("Content-Type") != "text/plain; charset=utf-8" || len(body) > 100) {
		t.Errorf("no content security policy: status %d, %v, %.200q", r.StatusCode, h, body)
	}
	// google/pprof's pages have inline styles.
	if csp != "" && (strings.Contains(strings.Replace(csp, "style-src 'unsafe-inline'", "", 1), "unsafe") || h.Get("X-Frame-Options") != "DENY" || !strings.Contains(csp, "default-src '") || h.Get("X-Content-Type-Options") != "nosniff") {
		t.Errorf("headers %v", h)
	}
	if strings.Contains(body, "root:") || strings.Contains(body, "package web") || strings.Contains(body, token) || strings.Contains(body, "goroutine ") {
		t.Errorf("it tells what it should not: %.300q", body)
	}
	if r.StatusCode >= 400 && strings.ContainsFunc(body, func(c rune) bool { return c < ' ' && c != '\n' && c != '\t' && c != '\r' || c == 0x7f }) {
		t.Errorf("control characters in the answer: %.300q", body)
	}
	if body != "" && r.StatusCode >= 400 && csp != "" && h.Get("Content-Type") != "application/json" && h.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("an error of type %s", h.Get("Content-Type"))
	}
	for name, values := range h {
		if strings.ContainsAny(strings.Join(values, ""), "\x1b\x07") {
			t.Errorf("control characters in the header %s: %q", name, values)
		}
	}
}

package web

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// pageCSP is the policy of everything but google/pprof's pages: nothing from elsewhere, no inline script, no frame around it.
const pageCSP = "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// guard is the outermost handler. It keeps out what no browser page of ours sends: a foreign Host (DNS rebinding), a foreign
// Origin (a page of somebody else that posts to us), a missing token; and puts the security headers on every answer.
type guard struct {
	next  http.Handler
	log   *slog.Logger
	hosts map[string]bool
	token []byte // SHA-256 of the token, nil when there is none
	cross *http.CrossOriginProtection
}

func newGuard(next http.Handler, cfg Config) *guard {
	g := &guard{next: next, log: cfg.Logger, hosts: map[string]bool{"localhost": true}, cross: http.NewCrossOriginProtection()}
	for _, h := range cfg.Hosts {
		g.hosts[strings.ToLower(strings.TrimSuffix(h, "."))] = true
	}
	if cfg.Token != "" {
		sum := sha256.Sum256([]byte(cfg.Token))
		g.token = sum[:]
	}
	return g
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		// A fault in one answer must not end the agent that samples; net/http would log to nowhere we see.
		if v := recover(); v != nil {
			if v == http.ErrAbortHandler {
				panic(v)
			}
			g.log.Error("a request made the web server fail; please report it", "path", r.URL.Path, "err", fmt.Sprint(v), "stack", string(debug.Stack()))
			writeError(w, &Error{Message: "internal error", Remedy: "see the agent's log"})
		}
	}()
	h := w.Header()
	h.Set("Content-Security-Policy", pageCSP)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")

	// Whoever reached a Unix socket was let in by its file mode and is no browser page.
	_, local := PeerOf(r.Context())
	if !local && !g.hostAllowed(r) {
		writeError(w, &Error{Status: http.StatusForbidden, Message: fmt.Sprintf("host %q is not served here", clip(r.Host, 100)),
			Remedy: "use http://localhost or http://127.0.0.1, or add the name to web.hosts"})
		return
	}
	if err := g.cross.Check(r); err != nil {
		writeError(w, &Error{Status: http.StatusForbidden, Message: "a page of another origin may not do this", Remedy: "use this server's own page, or a client that sends no Origin"})
		return
	}
	// Another site's page could not read our answers, but it could make us compute them.
	if r.Header.Get("Sec-Fetch-Site") == "cross-site" && r.Header.Get("Sec-Fetch-Mode") != "navigate" {
		writeError(w, &Error{Status: http.StatusForbidden, Message: "a page of another site may not ask for this", Remedy: "open this server's own page"})
		return
	}
	if !local && needsToken(r.URL.Path) && !g.tokenRight(r) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="stoker"`)
		writeError(w, &Error{Status: http.StatusUnauthorized, Message: "a token is needed", Remedy: "send the content of web.token_file as Authorization: Bearer TOKEN"})
		return
	}
	// URL.Query leaves out what it cannot read: a condition that is lost would show more than was asked for.
	if _, err := url.ParseQuery(r.URL.RawQuery); err != nil {
		writeError(w, badRequest("write ; as %3B and % as %25", "the query cannot be read: %v", err))
		return
	}
	g.next.ServeHTTP(w, r)
}

// hostAllowed accepts localhost, configured names, and an address that is loopback or the very one the connection came in
// by: rebinding needs a name, so an address cannot be used for it. The port is not compared: it differs behind ssh -L.
func (g *guard) hostAllowed(r *http.Request) bool {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if g.hosts[host] {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	if ip.IsLoopback() {
		return true
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && local.AddrPort().Addr().Unmap() == ip.Unmap()
}

// needsToken: the page itself and its assets hold nothing of the node. Links of google/pprof's pages carry their own proof,
// because a browser sends no Authorization when it follows one; /healthz says less without the token.
func needsToken(path string) bool {
	return strings.HasPrefix(path, "/api/") || path == "/metrics"
}

// tokenRight is true when no token is configured.
func (g *guard) tokenRight(r *http.Request) bool {
	if g.token == nil {
		return true
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	sum := sha256.Sum256([]byte(strings.TrimSpace(token)))
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(sum[:], g.token) == 1
}

// ReadToken reads the token of a token_file: its first line, at least 16 bytes so that it cannot be guessed.
func ReadToken(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read web.token_file: %w", err)
	}
	t, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	t = strings.TrimSpace(t)
	if len(t) < 16 || len(t) > 4096 {
		return "", fmt.Errorf("read web.token_file %s: the token has %d bytes; make one of 16 to 4096, for example with: head -c 24 /dev/urandom | base64", path, len(t))
	}
	return t, nil
}

// heavy bounds how many requests read and merge profiles at the same time.
type heavy struct {
	slots chan struct{}
	wait  time.Duration
}

// enter waits for a slot, for a while; leave must be called when it returned no error.
func (h *heavy) enter(ctx context.Context) (leave func(), err error) {
	t := time.NewTimer(h.wait)
	defer t.Stop()
	select {
	case h.slots <- struct{}{}:
		return func() { <-h.slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.C:
		return nil, &Error{Status: http.StatusServiceUnavailable, Message: "too many requests that merge profiles at once", Remedy: "try again in a moment"}
	}
}

// writeError answers with {"error", "remedy"} and the status that fits.
func writeError(w http.ResponseWriter, err error) {
	var e *Error
	out := Error{Status: http.StatusInternalServerError}
	switch {
	case errors.As(err, &e):
		out = *e
		// What was attempted, from the wrapping, belongs to the message.
		if text := strings.TrimSuffix(err.Error(), e.Error()); text != err.Error() {
			out.Message = text + e.Message
		}
		if out.Status == 0 {
			out.Status = http.StatusInternalServerError
		}
	case errors.Is(err, context.DeadlineExceeded):
		out = Error{Status: http.StatusServiceUnavailable, Message: "the request took too long", Remedy: "ask for a shorter range or fewer series"}
	case errors.Is(err, context.Canceled):
		out = Error{Status: 499, Message: "the client went away"}
	default:
		out.Message, out.Remedy = err.Error(), "see the agent's log; stoker doctor tells what does not work"
	}
	if out.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "2")
	}
	writeJSON(w, out.Status, out)
}

// writeJSON answers with v. An error while writing means that the client is gone: nobody is left to tell.
func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"error":"cannot encode the answer"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}
